"""Connect the user's terminal to a session in a guest, until the program there ends or the user leaves.

    status = attend(session, RawTerminal())

Everything that is typed goes to the guest, Ctrl-C as well. After the Enter key, ``~.`` leaves a guest that does not
answer, as in ssh; ``~~`` types one ``~``, ``~^Z`` stops imgkit, ``~?`` lists these.
"""

from __future__ import annotations

import enum
import os
import select
import signal
from collections.abc import Mapping

from imgkit.errors import INTERRUPTED, UsageError
from imgkit.host import statusline
from imgkit.host.rawmode import RawTerminal, has_terminal
from imgkit.vm.sessions.guestsession import GuestSession, SessionEnd

LEAVING = "Enter ~ . leaves a guest that does not answer"
"""How to leave, for the user."""
_HELP = b"\r\n~.  leave    ~^Z  stop imgkit    ~~  type ~    ~?  this list\r\n"
_STEP = 0.05  # seconds until input is sent again that the guest did not take


class Escape(enum.Enum):
    """What a user can ask for with ``~`` at the beginning of a line."""

    LEAVE = b"."
    HELP = b"?"
    SUSPEND = b"\x1a"


class EscapeFilter:
    """Finds the escapes in what is typed."""

    def __init__(self) -> None:
        self._begins = True  # whether the next byte begins a line
        self._tilde = False  # whether a ~ at the beginning of a line is held back

    def feed(self, data: bytes) -> list[bytes | Escape]:
        """Return what ``data`` means, in order: bytes for the guest, and escapes."""
        parts: list[bytes | Escape] = []
        typed = bytearray()
        for byte in (data[index : index + 1] for index in range(len(data))):
            meaning = self._next(byte)
            if isinstance(meaning, Escape):
                parts += [bytes(typed), meaning] if typed else [meaning]
                typed.clear()
            else:
                typed += meaning
        return [*parts, bytes(typed)] if typed else parts

    def _next(self, byte: bytes) -> bytes | Escape:
        if self._tilde:
            self._tilde = False
            for escape in Escape:
                if byte == escape.value:
                    self._begins = True
                    return escape
            self._begins = byte in (b"\r", b"\n")
            return byte if byte == b"~" else b"~" + byte
        if self._begins and byte == b"~":
            self._tilde = True
            return b""
        self._begins = byte in (b"\r", b"\n")
        return byte


def need_terminal(option: str) -> None:
    """Check that the user has a terminal.

    Raises:
        UsageError: standard input or output is not one.
    """
    if not has_terminal():
        raise UsageError(
            f"{option} needs a terminal for standard input and output",
            hint="imgkit run IMAGE -- COMMAND… works without one",
        )


def environment(host: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell the guest what the user's terminal is."""
    return {"TERM": host.get("TERM") or "dumb", **({"COLORTERM": host["COLORTERM"]} if "COLORTERM" in host else {})}


def attend(session: GuestSession, terminal: RawTerminal) -> int:
    """Connect the terminal to the session until it is over.

    Returns:
        The exit status: that of the program; 128 and the number of the signal that ended it; 130 if the user left.

    Raises:
        GuestError: the program could not be started, or the machine is gone.
    """
    statusline.stop()  # the screen is the guest's
    with terminal:
        left = _follow(session, terminal, EscapeFilter())
    return INTERRUPTED if left else status_of(session.wait(0.0))


def status_of(end: SessionEnd) -> int:
    """Return the exit status that a shell shows for the end of a program."""
    if end.signal is None:
        return end.exit_code or 0
    number = getattr(signal, end.signal, None)
    return 128 + int(number) if isinstance(number, signal.Signals) else 1


def _follow(session: GuestSession, terminal: RawTerminal, keys: EscapeFilter) -> bool:
    """Pass bytes on in both directions. Returns True if the user left."""
    while not session.over:
        waiting = _STEP if session.holds_input else None
        ready = select.select([terminal.input, terminal.changed, session.fileno()], [], [], waiting)[0]
        if session.fileno() in ready:
            terminal.show(session.take())
        if terminal.changed in ready:
            terminal.forget_change()
            session.resize(*terminal.size())
        typed = os.read(terminal.input, 4096) if terminal.input in ready else None
        if typed == b"" or not _type(session, terminal, keys.feed(typed or b"")):
            return True
    return False


def _type(session: GuestSession, terminal: RawTerminal, parts: list[bytes | Escape]) -> bool:
    """Send what is typed to the guest. Returns False if the user leaves."""
    session.write(b"")  # what it did not take before
    for part in parts:
        if part is Escape.LEAVE:
            return False
        if part is Escape.SUSPEND:
            terminal.suspend()
        elif part is Escape.HELP:
            terminal.show(_HELP)
        elif isinstance(part, bytes):
            session.write(part)
    return True
