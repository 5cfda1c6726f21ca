"""Print text that comes from images, guests, mirrors and file names so that a terminal does not obey it::

    print(terminal.line(f"system     {pretty_name}"))
    print(terminal.block(console_text))
    print(terminal.as_json({"path": path}))

A terminal obeys control characters: they can make it hide a line, change its title, or send input as if the user had
typed it. Other characters deceive the reader: marks that reverse the direction of text, characters that are invisible,
accents that are piled up until they cover other lines. All of them are printed as visible escapes (``\\x1b``,
``\\u202e``), and so are bytes that are not UTF-8 (``\\xff``), which Python keeps as surrogates. Up to two accents on
one character are left as they are.
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
"""Characters of one line. A longer line would push the lines above it off the screen."""
MAX_LOGGED = 1 << 16
"""Characters of one line of the log. Commands that are to be pasted into a shell can be long."""
_MOST_MARKS = 2  # combining marks on one character

# Characters that are invisible, although Python counts them as printable: fillers, joiners and selectors of
# Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the empty Braille pattern.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


def line(text: object, limit: int = MAX_LINE) -> str:
    """Escape ``text`` as one line, and cut it after ``limit`` characters.

    Line breaks are escaped as well, so that a name cannot begin a line of its own.
    """
    full = str(text)
    shown = full[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(map(_visible, _without_piles(shown)))
    return shown if len(full) <= limit else f"{shown} … ({len(full) - limit} characters more)"


def block(text: object, limit: int = MAX_LINE) -> str:
    """Escape text of several lines as :func:`line` does, but keep its line breaks. A tab becomes a space.

    Args:
        limit: characters of each line.
    """
    return "\n".join(line(part, limit) for part in str(text).replace("\t", " ").split("\n"))


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """Return ``value`` as JSON in printable ASCII. A parser reads the same value as from JSON without the escapes."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")  # json escapes the rest


def _without_piles(text: str) -> Iterator[str]:
    """Yield the characters of ``text``, with combining marks escaped that would cover other text.

    A mark is drawn over the character before it. Up to :data:`_MOST_MARKS` of them are kept, as living languages need
    them; more would cover the lines above and below. A mark at the beginning would cover what is printed before the
    text.
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
    """Return the character, or its escape if it has no visible form. Escapes are passed through."""
    if len(character) > 1 or (character.isprintable() and not _INVISIBLE.match(character)):
        return character
    return _escape(character)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a surrogate of os.fsdecode, for a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say_path(path: os.PathLike[str] | str) -> None:
    """Print a path that is the result of a command: escaped on a terminal, and byte for byte otherwise, for scripts."""
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        sys.stdout.write(line(os.fspath(path)) + "\n")
        sys.stdout.flush()
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def tolerate(*streams: TextIO) -> None:
    """Let ``streams`` escape characters that their encoding lacks (``LANG=C``), where they would raise an error."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class Formatter(logging.Formatter):
    """A formatter of log records that escapes them: as :func:`line`, or as :func:`block` if they have a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as text that is safe on a terminal."""
        return (block if record.exc_info else line)(super().format(record), MAX_LOGGED)
