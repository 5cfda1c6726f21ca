"""One line at the bottom of a terminal that says what is being done, and for how long.

    with enabled(sys.stderr):                    # once, around a command
        with doing("booting") as say:            # the line is there during this block
            say("the kernel has started")
            log.info("a message")                # goes above the line, through StatusHandler
        print("the result")

Where standard error is no terminal, or one that cannot move its cursor (``TERM=dumb``), there is no line, and
:func:`doing` does nothing. Code that has something to say therefore need not know whether anybody looks. A progress bar
takes the place of the line while it is shown (:func:`imgkit.host.progress.bar`).

The sequences are those of ECMA-48 that every terminal understands: carriage return, and EL, which erases the rest of
the line.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, TextIO

from imgkit.host import terminal

_TICK = 0.25  # seconds between two drawings; what takes less is not shown
_ERASE = "\r\x1b[K"
_WIDTH = 80  # columns of a terminal that does not say


class _StatusLine:
    """The line of one terminal. Several threads may say what they are doing; the one that began last is shown."""

    def __init__(self, stream: TextIO) -> None:
        self.lock = threading.RLock()
        self.hidden = 0  # how many want the line away at the moment
        self._stream = stream
        self._started = time.monotonic()
        self._activities: dict[object, str] = {}  # in the order in which they began
        self._shown = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status line", daemon=True)
        self._thread.start()

    def set(self, activity: object, text: str | None) -> None:
        """Set what an activity is about; None ends it."""
        with self.lock:
            if text is not None:
                self._activities[activity] = text
                return
            self._activities.pop(activity, None)
            if not self._activities:
                self.erase()

    def erase(self) -> None:
        """Take the line away until it is drawn again."""
        with self.lock:
            if self._shown:
                self._shown = False
                self._write(_ERASE)

    def draw(self) -> None:
        """Draw the line, if there is anything to say."""
        with self.lock:
            if self._activities and not self.hidden:
                text = f"{time.monotonic() - self._started:4.0f} s  {list(self._activities.values())[-1]}"
                self._shown = True
                self._write(_ERASE + terminal.line(text)[: self._columns() - 1])

    def stop(self) -> None:
        """Take the line away for good."""
        self._ended.set()
        with self.lock:
            self._activities.clear()
            self.hidden += 1
            self.erase()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._ended.wait(_TICK):
            self.draw()

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal may be gone
            self._stream.write(text)
            self._stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _WIDTH
        except (OSError, ValueError):
            return _WIDTH


_current: _StatusLine | None = None


def possible(stream: TextIO | None, environ: Mapping[str, str]) -> bool:
    """Return whether a stream is a terminal on which a line can be drawn again and again."""
    return stream is not None and stream.isatty() and environ.get("TERM", "dumb") != "dumb"


@contextmanager
def enabled(stream: TextIO | None) -> Iterator[None]:
    """Let :func:`doing` show what is done in the block, if ``stream`` is a terminal that can."""
    global _current  # noqa: PLW0603 - there is one terminal, as there is one root logger
    if stream is None or not possible(stream, os.environ):
        yield
        return
    _current = _StatusLine(stream)
    try:
        yield
    finally:
        stop()


def stop() -> None:
    """Take the line away for the rest of the command, because the output of something else begins."""
    global _current
    line, _current = _current, None
    if line is not None:
        line.stop()


def active() -> bool:
    """Return whether there is a terminal on which :func:`doing` shows something."""
    return _current is not None


@contextmanager
def doing(text: str) -> Iterator[Callable[[str], None]]:
    """Say what is done in the block. Yields a function that changes the text."""
    line, activity = _current, object()
    if line is None:
        yield lambda _: None
        return
    line.set(activity, text)
    try:
        yield lambda changed: line.set(activity, changed)
    finally:
        line.set(activity, None)


@contextmanager
def hidden() -> Iterator[None]:
    """Take the line, and progress bars, away while something else is written to the terminal."""
    line = _current
    bars = _bars()
    with nullcontext() if line is None else line.lock:
        hide()
        try:
            with bars:
                yield
        finally:
            show()


def _bars() -> AbstractContextManager[object]:
    """Return a context manager that takes the progress bars away. tqdm is imported only where there are any."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return nullcontext()
    manager: AbstractContextManager[object] = tqdm.external_write_mode(file=sys.stderr)
    return manager


def hide() -> None:
    """Take the line away until :func:`show` was called as often."""
    line = _current
    if line is not None:
        with line.lock:
            line.hidden += 1
            line.erase()


def show() -> None:
    """Let the line be drawn again."""
    line = _current
    if line is not None:
        with line.lock:
            line.hidden = max(0, line.hidden - 1)


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # which takes no parameter before Python 3.11


class StatusHandler(_StreamHandler):
    """Writes log records above the status line and the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with hidden():
            super().emit(record)
