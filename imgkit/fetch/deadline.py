"""One deadline for a whole download, which holds whatever the HTTP library does inside a single call.

The timeout of a socket is no such deadline: it starts again with every byte, and a library that reads a status line, a
header, ``100 Continue`` or the page of a redirect may go on reading forever. So the work runs in a thread of its own,
and the caller waits for it until the deadline::

    deadline = Deadline(timeout=20, rate=1024)
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

_POLL_INTERVAL = 0.1  # seconds between looks at the clock and at ``cancelled``
_JOIN_TIMEOUT = 0.5  # seconds that the thread gets to end once its connections are cut


class ExpiredError(Exception):
    """The deadline has passed."""


class CancelledError(Exception):
    """The result is no longer needed."""


class Deadline:
    """The time until which a download must be complete. It moves as bytes arrive.

    Args:
        timeout: seconds until the first bytes must have come; later, the longest pause between two of them.
        rate: bytes a second that must come on average. ``rate`` bytes move the deadline by one second, but never
            further away than ``timeout`` seconds, so a download of ``n`` bytes ends within ``timeout + n / rate``
            seconds.
        connect_allowance: seconds, of all connections together, that do not count: a name may have several addresses,
            and each address that does not answer takes its time.

    Attributes:
        passed: True when the caller no longer waits.
        began: True when bytes of the file have arrived.
    """

    def __init__(self, timeout: float, rate: float, connect_allowance: float = 0) -> None:
        self.timeout = timeout
        self.rate = rate
        self.passed = False
        self.began = False
        self._end = time.monotonic() + timeout
        self._allowance = connect_allowance
        self._connecting_since: float | None = None

    def received(self, size: int) -> None:
        """Count ``size`` bytes of a file that have arrived."""
        self.began = True
        self._end = min(self._end + size / self.rate, time.monotonic() + self.timeout)

    def extend(self, seconds: float) -> None:
        """Let at least ``seconds`` pass from now: the server is busy with what was sent."""
        self._end = max(self._end, time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds until the deadline; zero or less when it has passed."""
        now = time.monotonic()
        since = self._connecting_since  # set by another thread, so it is read once
        return self._end - now + (0 if since is None else min(now - since, self._allowance))

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Leave the time of the block, in which a connection is made, out of account as far as the allowance goes."""
        self._connecting_since = start = time.monotonic()
        try:
            yield
        finally:
            spent = min(time.monotonic() - start, self._allowance)
            self._end, self._allowance, self._connecting_since = self._end + spent, self._allowance - spent, None


def within(deadline: Deadline, work: Callable[[], T], *, cancelled: threading.Event, cut: Callable[[], object]) -> T:
    """Run ``work`` in a thread, and return what it returns or raise what it raises.

    Args:
        cancelled: set by another thread when the result is no longer needed.
        cut: makes ``work`` fail soon. It is called when the deadline passes or the caller is interrupted. Work that
            does not end even then, because it waits for the name service for example, is left to itself: it must look
            at ``deadline.passed`` before it changes anything.

    Raises:
        ExpiredError: the deadline passed first.
        CancelledError: ``cancelled`` was set first.
    """
    if cancelled.is_set():
        raise CancelledError
    future: Future[T] = Future()

    def run() -> None:
        """Do the work, and give its result or its error to the thread that waits."""
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
        thread.join(_JOIN_TIMEOUT)
        raise
    return future.result()


def _await(future: Future[T], deadline: Deadline, cancelled: threading.Event) -> None:
    while not future.done():
        if cancelled.is_set():
            raise CancelledError
        left = deadline.left()
        if left <= 0:
            raise ExpiredError
        wait([future], timeout=min(left, _POLL_INTERVAL))
