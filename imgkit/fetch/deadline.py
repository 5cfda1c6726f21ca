"""One deadline for a whole download, which holds whatever the HTTP library does inside a single call.

A timeout of a socket is no such deadline: it begins anew with every byte, and a library that reads a status line, a
header, ``100 Continue`` or the page of a redirect may go on reading for ever. So the work runs in a thread of its own,
and the caller waits for it until the deadline::

    deadline = Deadline(patience=20, rate=1024)
    answer = within(deadline, work, cancelled=event, cut=session.cut)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds between looks at the clock and at the wish to end
_PARTING = 0.5  # seconds that the thread gets to end once its connections are cut


class ExpiredError(Exception):
    """The deadline has passed."""


class CancelledError(Exception):
    """The result is not wanted any more."""


class Deadline:
    """The time until which a download must be complete. It moves as bytes arrive.

    Args:
        patience: seconds until the first bytes must have come; later, the longest pause between two of them.
        rate: bytes a second that must come on average; ``rate`` bytes move the deadline by one second, but never
            further away than ``patience`` seconds. A download of ``n`` bytes ends within ``patience + n / rate``
            seconds.
        connecting: seconds, of all connections together, that do not count: a name may have several addresses, and
            each that is dead takes its time.
    """

    def __init__(self, patience: float, rate: float, connecting: float = 0) -> None:
        self.patience = patience
        self.rate = rate
        self.passed = False  # the caller does not wait any more
        self.began = False  # bytes of the file have come
        self._end = time.monotonic() + patience
        self._spare = connecting
        self._since: float | None = None  # when the connection was begun that is being made

    def received(self, size: int) -> None:
        """Count ``size`` bytes of a file that have arrived."""
        self.began = True
        self._end = min(self._end + size / self.rate, time.monotonic() + self.patience)

    def left(self) -> float:
        """Seconds until the deadline; zero or less when it has passed."""
        now = time.monotonic()
        since = self._since  # set by another thread
        return self._end - now + (0 if since is None else min(now - since, self._spare))

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Make a connection during the block."""
        self._since = begun = time.monotonic()
        try:
            yield
        finally:
            spent = min(time.monotonic() - begun, self._spare)
            self._end, self._spare, self._since = self._end + spent, self._spare - spent, None


def within(deadline: Deadline, work: Callable[[], T], *, cancelled: threading.Event, cut: Callable[[], object]) -> T:
    """Run ``work`` in a thread, and return what it returns or raise what it raises.

    When the deadline passes (or the caller is interrupted), ``cut`` is called: it makes ``work`` fail soon. If it does
    not end even then, because it waits for the name service for example, it is left to itself: ``work`` must look at
    ``deadline.passed`` before it changes anything.

    Raises:
        ExpiredError: the deadline passed first.
        CancelledError: ``cancelled`` was set first.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            future.set_exception(error)

    thread = threading.Thread(target=run, name="imgkit-download", daemon=True)
    thread.start()
    try:
        _await(future, deadline, cancelled)
    except BaseException:
        deadline.passed = True
        cut()
        thread.join(_PARTING)
        raise
    return future.result()


def _await(future: Future[T], deadline: Deadline, cancelled: threading.Event) -> None:
    while not future.done():
        if cancelled.is_set():
            raise CancelledError
        left = deadline.left()
        if left <= 0:
            raise ExpiredError
        wait([future], timeout=min(left, _POLL))
