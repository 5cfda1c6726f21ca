"""Sessions for the exchanges of several threads. Their connections are used again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from imgkit.fetch.deadline import Deadline, within
from imgkit.fetch.session import Session

T = TypeVar("T")


class SessionPool:
    """Sessions that were used and may be used again, each by one thread at a time.

    Args:
        make: makes a session when there is none left.
    """

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._idle: list[Session] = []  # a list's append and pop are atomic

    def within(self, deadline: Deadline, work: Callable[[Session], T], *, cancelled: threading.Event) -> T:
        """Do ``work`` with a session of the pool. What is not done in time is cut off.

        Raises:
            ExpiredError: the deadline passed first.
            CancelledError: ``cancelled`` was set first.
        """
        session = self._borrow()
        session.connecting = deadline.connecting
        try:
            return within(deadline, lambda: work(session), cancelled=cancelled, cut=session.cut)
        finally:
            if session.is_cut:
                session.close()
            else:
                self._idle.append(session)

    def close(self) -> None:
        """Close the connections that are kept open."""
        while self._idle:
            self._idle.pop().close()

    def _borrow(self) -> Session:
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()
