"""Ctrl-C, SIGTERM and a closed terminal end imgkit in the same way: through every context manager, once.

The first signal raises KeyboardInterrupt in the main thread. Those that follow shortly are the same wish: they must not
cut the cleaning up short.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 15.0  # seconds that the cleaning up may take before a further signal cuts it short


class _Handler:
    """Raises for the first signal, and again only when that had no effect for long."""

    def __init__(self) -> None:
        self.last = float("-inf")
        self.held = self.pending = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last < _PATIENCE:
            return
        self.last = now
        if not self.held:
            raise KeyboardInterrupt
        self.pending = True


_handler = _Handler()


@contextmanager
def raised() -> Iterator[None]:
    """Let the signals raise KeyboardInterrupt in the block; those that the caller ignores (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():  # only there can Python handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handler.last, _handler.held, _handler.pending = float("-inf"), False, False
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, _handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Let a few quick lines be done altogether or not at all: a signal that comes meanwhile raises after them.

    Raises:
        KeyboardInterrupt: there was one, and nothing else was raised.
    """
    with postponed():
        yield
    check()


@contextmanager
def postponed() -> Iterator[None]:
    """Let a signal that comes in the block wait for :func:`check`."""
    if threading.current_thread() is not threading.main_thread():  # which is the only one that signals interrupt
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
        KeyboardInterrupt: there was one.
    """
    if _handler.pending and not _handler.held and threading.current_thread() is threading.main_thread():
        _handler.pending = False
        raise KeyboardInterrupt


def prefer(error: BaseException) -> None:
    """What goes wrong because of an interrupt is the interrupt: cleaning up cut short, a program ended under our hands.

    (The interpreter itself makes a SystemError of two signals that come close enough together.)

    Raises:
        KeyboardInterrupt: ``error`` happened in the course of one.
    """
    link: BaseException | None = error
    for _ in range(50):  # chains can be circular
        if link is None:
            return
        if isinstance(link, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        link = link.__cause__ or link.__context__


def ignore() -> None:
    """Ignore them from now on, to the end of the block of :func:`raised`."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
