"""Run a program on a pseudo terminal, as a user does, and look at what it draws.

with UserTerminal([sys.executable, "-m", "imgkit", "shell", image], rows=33, columns=101) as user:
    user.expect(b"$ ")
    user.type(b"exit 3\r")
    assert user.wait() == 3
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 120.0  # seconds; the machine may be emulated and busy


def _take_terminal() -> None:
    """Make standard input the controlling terminal, which sends SIGWINCH, and heed SIGHUP, which nohup ignores."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class UserTerminal:
    """A program on a terminal of its own, with the test in the place of the user."""

    def __init__(
        self, argv: Sequence[str | Path], *, rows: int = 24, columns: int = 80, env: Mapping[str, str] | None = None
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.shown = bytearray()
        self._seen = 0
        self.process = subprocess.Popen(
            list(map(str, argv)),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=_take_terminal,  # two system calls
        )

    def __enter__(self) -> UserTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self.slave)
        os.close(self.master)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal's window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list[Any]:
        """Return the terminal's settings, which are :attr:`before` unless the program has changed them."""
        return termios.tcgetattr(self.slave)

    def type(self, data: bytes) -> None:
        """Type on the keyboard."""
        os.write(self.master, data)

    def look(self, seconds: float = 0.0) -> bytes:
        """Wait up to ``seconds`` for more on the screen, and return all that was ever shown."""
        while select.select([self.master], [], [], seconds)[0]:
            try:
                self.shown += os.read(self.master, 65536)
            except OSError:
                break
            seconds = 0.0
        return bytes(self.shown)

    def expect(self, wanted: bytes, patience: float = PATIENCE) -> bytes:
        """Wait for ``wanted`` behind what was expected before, and return what was shown up to its end."""
        deadline = time.monotonic() + patience
        while (found := self.look(0.1).find(wanted, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{wanted!r} is not in {bytes(self.shown[self._seen :])!r}"
            assert self.process.poll() is None or self.look(0.5).find(wanted, self._seen) >= 0, bytes(self.shown)
        begun, self._seen = self._seen, found + len(wanted)
        return bytes(self.shown[begun : self._seen])

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait until the program has ended, and return its exit status."""
        deadline = time.monotonic() + patience
        while self.process.poll() is None:
            assert time.monotonic() < deadline, bytes(self.shown[-2000:])
            self.look(0.05)
        self.look(0.05)
        return int(self.process.returncode)
