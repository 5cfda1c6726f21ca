"""Colours for messages, where the terminal has them and nobody minds.

    print(paint("error:", "red", sys.stderr), message, file=sys.stderr)

``NO_COLOR`` (https://no-color.org: any value but an empty one) switches colours off, and ``FORCE_COLOR`` or
``CLICOLOR_FORCE`` (any value but an empty one and 0) switches them on where the output is no terminal, as in the logs
of some CI systems. Otherwise a terminal has them, unless ``TERM`` is not set or "dumb".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TextIO, TypeAlias

Colour: TypeAlias = Literal["red", "green", "yellow", "cyan"]
_CODES: Mapping[Colour, str] = {"red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}  # SGR of ECMA-48


def has_colours(stream: TextIO | None, environ: Mapping[str, str] | None = None) -> bool:
    """Return whether text for a stream should be coloured.

    Args:
        environ: the environment; None is that of this process.
    """
    environ = os.environ if environ is None else environ
    if stream is None or environ.get("NO_COLOR"):
        return False
    if any(environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def paint(text: str, colour: Colour, stream: TextIO | None) -> str:
    """Return ``text`` in a colour if ``stream`` has colours. ``text`` must be safe on a terminal already."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if has_colours(stream) else text


def paint_first_word(text: str, colour: Colour | None, stream: TextIO | None) -> str:
    """Return ``text`` with its first word in a colour, as :func:`paint` does; None leaves it as it is."""
    if colour is None:
        return text
    word, space, rest = text.partition(" ")
    return paint(word, colour, stream) + space + rest
