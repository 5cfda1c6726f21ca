"""Text of others on a terminal: what images, guests, mirrors and file names say is shown, and never obeyed.

    print(terminal.line(f"system     {pretty_name}"))
    print(terminal.block(console_text))
    print(terminal.as_json({"path": path}))

A terminal obeys control characters: it can be told to hide a line, to change its title, or to answer as if somebody had
typed. Others deceive the reader: directions that turn text around, characters without a mark of their own, accents that
are piled up until they cover other lines. All of them come out as visible escapes (``\\x1b``, ``\\u202e``), and so do
bytes outside UTF-8 (``\\xff``), which Python keeps as surrogates. Two accents on one character are left as they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

MAX_LINE = 4000
"""Characters of one line. A longer one would push the lines above it off the screen."""
MAX_LOGGED = 1 << 16
"""Characters of one line of the log: commands that are to be pasted into a shell can be long."""
_MOST_MARKS = 2  # accents and the like on one character

# Characters that leave no mark of their own though Python counts them as printable: fillers, joiners and selectors of
# Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the empty Braille pattern.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


def line(text: object, limit: int = MAX_LINE) -> str:
    """``text`` as one line of at most ``limit`` characters in which nothing is left that a terminal would obey.

    Line breaks are escaped, too: a name must not be able to begin a line of its own.
    """
    whole = str(text)
    shown = whole[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(map(_visible, _without_piles(shown)))
    return shown if len(whole) <= limit else f"{shown} … ({len(whole) - limit} characters more)"


def block(text: object, limit: int = MAX_LINE) -> str:
    """The same for text of several lines, which stay; ``limit`` is for each of them. A tab becomes a space."""
    return "\n".join(line(each, limit) for each in str(text).replace("\t", " ").split("\n"))


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """``value`` as JSON in printable ASCII. It means the same as it would without the escapes."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")  # json escapes all others of them


def _without_piles(text: str) -> Iterator[str]:
    """The characters of ``text``; marks that would cover others of it come as escapes.

    A mark is drawn over the character before it. :data:`_MOST_MARKS` stay, as words of living languages have them; more
    would cover the lines above and below, and one at the start what stands before the text.
    """
    marks = _MOST_MARKS
    for character in text:
        if unicodedata.category(character) in ("Mn", "Me"):
            marks += 1
            yield character if marks <= _MOST_MARKS else _escape(character)
        else:
            marks = 0 if _visible(character) == character else _MOST_MARKS
            yield character


def _visible(character: str) -> str:
    if len(character) > 1 or (character.isprintable() and not _INVISIBLE.match(character)):
        return character
    return _escape(character)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode: a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say_path(path: os.PathLike[str] | str) -> None:
    """Print a path that is the result of a command: escaped on a terminal, else byte for byte, for scripts."""
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        sys.stdout.write(line(os.fspath(path)) + "\n")
        sys.stdout.flush()
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def tolerate(*streams: TextIO) -> None:
    """Let ``streams`` write every text: what their encoding lacks (``LANG=C``) is escaped instead of raising."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class Formatter(logging.Formatter):
    """Formats records as :func:`line` does, tracebacks as :func:`block` does."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text that a terminal can be given."""
        return (block if record.exc_info else line)(super().format(record), MAX_LOGGED)
