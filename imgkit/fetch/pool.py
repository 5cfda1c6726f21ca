"""Several downloads at a time that can be cancelled together, with one progress bar for all of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from imgkit.host import progress

T = TypeVar("T")
_JOIN_TIMEOUT = 0.5  # seconds that the threads get to end when their results are no longer needed


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
        """Add ``size`` bytes to the total."""
        with self._lock:
            self._bar.total = (self._bar.total or 0) + size

    def advance(self, size: int) -> None:
        """Count ``size`` bytes that have arrived; a negative number if they must come again."""
        with self._lock:
            self._bar.update(size)


def in_parallel(jobs: Sequence[Callable[[threading.Event], T]], *, workers: int) -> list[T]:
    """Run ``jobs`` on a few threads and return their results in order.

    The first failure, or an interrupt, is raised at once. Threads that hang on the network do not hold up the caller
    then: they are daemons, and their results are dropped.

    Args:
        jobs: each is called with an event that is set when its result is no longer needed.
        workers: threads at a time.
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
        deadline = time.monotonic() + _JOIN_TIMEOUT
        for thread in threads:  # most end at once, and then touch no file that the caller is about to remove
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise


def side_by_side(jobs: Sequence[Callable[[], T]], *, workers: int) -> list[T]:
    """Do what :func:`in_parallel` does, for jobs that end soon even if their results are no longer needed."""

    def unaware(job: Callable[[], T]) -> Callable[[threading.Event], T]:
        return lambda _stop: job()

    return in_parallel([unaware(job) for job in jobs], workers=workers)


def _results(
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]],
    count: int,
) -> list[T]:
    """Wait for all results, and put them in order."""
    results: dict[int, T] = {}
    for _ in range(count):
        number, result, error = done.get()
        if error is not None:
            raise error
        results[number] = result  # type: ignore[assignment]
    return [results[number] for number in range(count)]
