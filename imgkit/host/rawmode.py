"""The terminal of the user in raw mode: what is typed goes to a guest, what a guest draws goes to the screen.

    with RawTerminal() as terminal:
        columns, rows = terminal.size()
        data = os.read(terminal.input, 4096)

The settings are restored when the block ends, however it ends: with an exception, or with a signal that
:mod:`imgkit.host.interrupts` turns into one. They are restored as well while the process is stopped (SIGTSTP), and set
again when it continues. What the terminal has sent but nobody has read is dropped then: a guest may have asked the
terminal a question, and the shell of the user must not take the answer for a command.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
import tty
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any

RESET = (
    b"\x1b[?1000;1002;1003;1006;1015;1004;2004l"  # no reports of the mouse, of the focus and of what is pasted
    b"\x1b[?47l"  # the screen on which the shell is
    b"\x1b[!p\x1b[?25h\x1b[0m"  # soft reset: scrolling region, cursor keys, insert mode; a cursor; no colours
)
"""What undoes the modes of full-screen programs that had no time to do so (xterm's control sequences, ``ctlseqs``)."""
_WATCHED = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP)


def has_terminal() -> bool:
    """Return whether standard input and standard output are terminals."""
    return os.isatty(0) and os.isatty(1)


class RawTerminal:
    """The terminal of this process, for its main thread.

    Attributes:
        input, output: its file descriptors.
        changed: a descriptor that is readable when the size may have changed; see :meth:`forget_change`. Whoever waits
            for input waits for it as well: the kernel may hand a signal to another thread, and the main thread, whose
            handlers do the work, then sleeps on.
    """

    def __init__(self, input: int = 0, output: int = 1) -> None:
        self.input = input
        self.output = output
        self.changed = -1
        self._wake = -1
        self._stack = ExitStack()
        self._settings: list[Any] = []

    def __enter__(self) -> RawTerminal:
        self._settings = termios.tcgetattr(self.input)
        with ExitStack() as stack:
            self.changed, self._wake = os.pipe()
            for descriptor in (self.changed, self._wake):
                os.set_blocking(descriptor, False)
                stack.callback(os.close, descriptor)
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False))
            for number in _WATCHED:
                previous = signal.signal(number, self._handle)
                stack.callback(signal.signal, number, previous)
            stack.callback(self._restore)
            self._set()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def size(self) -> tuple[int, int]:
        """Return the columns and the rows of the terminal."""
        try:
            columns, rows = os.get_terminal_size(self.output)
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def forget_change(self) -> None:
        """Let :attr:`changed` wait for the next change."""
        with suppress(BlockingIOError):
            os.read(self.changed, 4096)

    def show(self, data: bytes) -> None:
        """Write ``data`` to the screen as it is."""
        while data:
            try:
                data = data[os.write(self.output, data) :]
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self.output], [])

    def suspend(self) -> None:
        """Give the terminal back to the shell and stop this process until it is continued."""
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)  # SIGCONT sets the terminal again

    def _set(self) -> None:
        _uninterrupted(lambda: tty.setraw(self.input, termios.TCSADRAIN))

    def _restore(self) -> None:
        with suppress(OSError):  # the terminal has been closed
            self.show(RESET)
        with suppress(termios.error):
            _uninterrupted(lambda: termios.tcsetattr(self.input, termios.TCSAFLUSH, self._settings))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self.suspend()
            return
        if number == signal.SIGCONT:
            with suppress(termios.error):
                self._set()


def _uninterrupted(change: Callable[[], object]) -> None:
    """Change settings, however often a signal interrupts that: it waits until the terminal has shown everything."""
    while True:
        try:
            change()
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise
        else:
            return
