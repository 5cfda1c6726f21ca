"""Several downloads at a time that can be given up at once, and one bar for all of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from imgkit.host import progress

T = TypeVar("T")
_PARTING = 0.5  # seconds that threads get to end which are not needed any more


class Meter:
    """A progress bar in bytes that several threads advance, and whose total grows as downloads begin."""

    def __init__(self, description: str) -> None:
        self._bar = progress.bar(0, description)
        self._lock = threading.Lock()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def expect(self, size: int) -> None:
        """``size`` more bytes are on their way."""
        with self._lock:
            self._bar.total = (self._bar.total or 0) + size

    def advance(self, size: int) -> None:
        """``size`` bytes came (negative: have to come again)."""
        with self._lock:
            self._bar.update(size)


def in_parallel(jobs: Sequence[Callable[[threading.Event], T]], *, workers: int) -> list[T]:
    """Run ``jobs`` on a few threads and return their results in order.

    Each job gets an event that is set when its result is no longer wanted. The first failure is raised as soon as it
    is known; so is an interrupt. Threads that hang on the network then do not keep the caller: they are daemons, and
    what they still do comes to nothing.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for number in range(len(jobs)):
        todo.put(number)

    def work() -> None:
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, jobs[number](stop), None))
            except BaseException as error:  # noqa: BLE001 - raised again where the results are awaited
                done.put((number, None, error))

    threads = [threading.Thread(target=work, name="imgkit-fetch", daemon=True) for _ in range(min(workers, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        return _results(done, len(jobs))
    except BaseException:
        stop.set()
        deadline = time.monotonic() + _PARTING
        for thread in threads:  # most end at once, and then touch no file that the caller is about to remove
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _results(
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]],
    count: int,
) -> list[T]:
    found: dict[int, T] = {}
    for _ in range(count):
        number, result, error = done.get()
        if error is not None:
            raise error
        found[number] = result  # type: ignore[assignment]
    return [found[number] for number in range(count)]
