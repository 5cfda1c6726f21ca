"""A terminal for tests: a program runs on a real pty, and a small model says what is on the screen in the end."""

from __future__ import annotations

import errno
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from select import select

from tests.images import ROOT

COLUMNS = 60


class Screen:
    """What a terminal shows that does not scroll: lines of text, and a cursor. Colours are remembered, not shown.

    The sequences are those that imgkit and tqdm write: CR, LF, CUU (cursor up), EL (erase the rest of the line) and
    SGR. Anything else is an error, so that a test notices it. Lines are not wrapped, but noted as ``wide``.
    """

    _SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.colours: set[str] = set()
        self.wide = False

    def feed(self, text: str) -> Screen:
        """Write text to the screen; return the screen."""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                match = self._SEQUENCE.match(text, at)
                assert match is not None, text[at : at + 20]
                self._control(*match.groups())
                at = match.end()
            else:
                self._put(text[at])
                at += 1
        return self

    def _control(self, numbers: str, kind: str) -> None:
        if kind == "K":
            assert numbers in ("", "0"), numbers
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif kind == "A":
            self.row -= int(numbers or 1)
        else:
            assert kind == "m", kind
            self.colours.add(numbers)

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        else:
            assert character.isprintable(), repr(character)
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1
            self.wide = self.wide or self.column > COLUMNS

    @property
    def text(self) -> list[str]:
        """The lines without blanks at their ends, and without empty lines at the end of the screen."""
        shown = [line.rstrip() for line in self.lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown


@dataclass(frozen=True)
class Session:
    """How a program on a terminal ended: its status, and everything that it wrote, in the pieces in which it came."""

    status: int
    pieces: tuple[str, ...]

    @property
    def screen(self) -> Screen:
        """The screen in the end."""
        return Screen().feed("".join(self.pieces))

    def ever(self, pattern: str) -> bool:
        """Return whether the last line with the cursor ever matched ``pattern`` while the program ran."""
        screen, found = Screen(), False
        for piece in re.split(r"(?=\r)", "".join(self.pieces)):
            screen.feed(piece)
            found = found or re.search(pattern, screen.lines[screen.row]) is not None
        return found


def run_on_terminal(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, typed: bytes = b"", timeout: float = 60
) -> Session:
    """Run a program with a pty as its standard input, output and error.

    Args:
        env: variables that are added to the environment.
        typed: what is typed at the start.
    """
    controller, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    clean = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    child = subprocess.Popen(
        words, stdin=end, stdout=end, stderr=end, cwd=ROOT, env={**clean, "TERM": "xterm", **(env or {})}
    )
    os.close(end)
    os.write(controller, typed)
    pieces = []
    deadline = time.monotonic() + timeout
    try:
        while data := _read(controller, deadline):
            pieces.append(data.decode())
        return Session(child.wait(timeout), tuple(pieces))
    finally:
        child.kill()
        child.wait()
        os.close(controller)


def _read(controller: int, deadline: float) -> bytes:
    """Return what the program wrote; empty at its end."""
    ready, _, _ = select([controller], [], [], max(0.0, deadline - time.monotonic()))
    assert ready, "the program has not ended"
    try:
        return os.read(controller, 1 << 16)
    except OSError as cause:  # Linux' way to say that the other end is closed
        if cause.errno != errno.EIO:
            raise
        return b""


def python(script: str) -> list[str]:
    """Return the words that run a script with this interpreter."""
    return [sys.executable, "-c", script]
