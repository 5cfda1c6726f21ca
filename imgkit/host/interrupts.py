"""Ctrl-C, SIGTERM and a closed terminal end imgkit in the same way: through every context manager, once.

The command line is run by :func:`run`, which changes what a signal does as the work goes on::

    exit_on_signals()    a signal ends the process with status 130: there is nothing to clean up yet
           │
           ▼
    run() ─► work() ───► a signal raises KeyboardInterrupt in the main thread. Further signals within the
           │  │  ▲       next 15 seconds do nothing, so that they do not cut short what the context
           │  │  │       managers of the work clean up
           │  ▼  │
           │  postponed() and held_back(): a signal is remembered; check() raises KeyboardInterrupt for it
           │
           ├─ the work returned ──────────────────────┐
           ├─ KeyboardInterrupt ─► interrupted() ─────┤ signals are ignored from here on
           ▼                                          ▼
    clean_up(), the previous handlers are restored (but for the first), and run() returns the result
           │
           ▼
    ignore()             the interpreter ends: signals stay ignored

Signals that the parent process had ignored when it started imgkit (as nohup(1) does) stay ignored throughout.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_TIME = 15.0  # seconds that cleaning up may take before a further signal interrupts it

Result = TypeVar("Result")


class _Handler:
    """Raises KeyboardInterrupt for a signal, and again only if that has had no effect for a long time.

    Attributes:
        last: when the last signal that counted came, in the time of :func:`time.monotonic`.
        held: whether signals are remembered instead of raised.
        pending: whether one was remembered.
    """

    def __init__(self) -> None:
        self.last = float("-inf")
        self.held = self.pending = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last < _CLEANUP_TIME:
            return
        self.last = now
        if not self.held:
            raise KeyboardInterrupt
        self.pending = True


class _Exit:
    """Ends the process at once."""

    def __init__(self, status: int) -> None:
        self._status = status

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        os._exit(self._status)


_handler = _Handler()


def exit_on_signals(status: int) -> None:
    """Let a signal end the process at once with ``status``. Use it while modules are being imported."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _Exit(status))


def run(work: Callable[[], Result], *, interrupted: Callable[[], Result], clean_up: Callable[[], object]) -> Result:
    """Run ``work`` so that a signal interrupts it in an orderly way; see the diagram in the module's docstring.

    Args:
        work: called with signals raising KeyboardInterrupt. It must not raise anything else.
        interrupted: called if a signal came before the work was done, with signals ignored.
        clean_up: called last, with signals ignored.

    Returns:
        What ``work`` or ``interrupted`` returned.
    """
    with _installed():
        try:
            _release()
            result = work()
            ignore()
        except KeyboardInterrupt:
            ignore()
            result = interrupted()
        finally:
            clean_up()
    return result


@contextmanager
def raised() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt in the block, but for those that the parent process had ignored."""
    with _installed():
        _release()
        yield


@contextmanager
def _installed() -> Iterator[None]:
    """Install the handler for the block. It holds signals back until :func:`_release`."""
    if not _in_main_thread():  # Python delivers signals to the main thread only
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    _handler.last, _handler.held, _handler.pending = float("-inf"), True, False
    try:
        for number, handler in previous.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _handler)
        yield
    finally:
        _handler.held = False
        for number, handler in previous.items():
            signal.signal(number, _afterwards(handler))


def _afterwards(handler: signal._HANDLER) -> signal._HANDLER:
    """Return what a signal does after the block, from what it did before.

    A process that would have ended at once, because it had not begun to work, has its result by now: it ends with that.
    """
    if isinstance(handler, _Exit):
        return signal.SIG_IGN
    return handler if handler is not None else signal.SIG_DFL


def _release() -> None:
    """Let signals raise from now on, and raise for one that came since :func:`_installed`."""
    if _in_main_thread():
        _handler.held = False
        check()


@contextmanager
def held_back() -> Iterator[None]:
    """Run a few quick steps as one: a signal that arrives in the block raises at its end.

    Raises:
        KeyboardInterrupt: a signal came, and the block itself raised nothing.
    """
    with postponed():
        yield
    check()


@contextmanager
def postponed() -> Iterator[None]:
    """Let a signal that comes in the block wait for :func:`check`."""
    if not _in_main_thread():  # signals interrupt no other thread
        yield
        return
    before, _handler.held = _handler.held, True
    try:
        yield
    finally:
        _handler.held = before


def check() -> None:
    """Raise for a signal that was postponed.

    Raises:
        KeyboardInterrupt: a signal came while signals were postponed.
    """
    if _handler.pending and not _handler.held and _in_main_thread():
        _handler.pending = False
        raise KeyboardInterrupt


def prefer(error: BaseException) -> None:
    """Raise KeyboardInterrupt in place of an error that an interrupt has caused.

    Cleaning up that was interrupted fails in other ways, and so does a program that got the same signal. (The
    interpreter itself makes a SystemError of two signals that come close enough together.)

    Raises:
        KeyboardInterrupt: ``error`` was raised while a KeyboardInterrupt was handled, or because of one.
    """
    link: BaseException | None = error
    for _ in range(50):  # chains can be circular
        if link is None:
            return
        if isinstance(link, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        link = link.__cause__ or link.__context__


def ignore() -> None:
    """Ignore the signals from now on: to the end of :func:`run` or :func:`raised`, or of the process."""
    if _in_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
