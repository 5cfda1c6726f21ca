"""Limit what one run of a package script may cost, in steps of work and bytes of memory.

A script comes from a package and cannot be trusted: one that doubles a variable or calls itself would fill the memory
of the host or never end. Everything that a script can make large or repeat draws on the :class:`Budget` of its run:
commands, loops, expansions, patterns, regular expressions, input, output and the files that it writes. Costs are
charged before the work is done.

The limits are far above what scripts need (the largest one of Alpine's base packages takes 8,000 steps and 70 KB), and
low enough that a hostile script ends within seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

MAX_STEPS = 4_000_000
"""Steps of one run. A step takes about a microsecond; a command is :data:`COMMAND` of them."""
MAX_BYTES = 256 << 20
"""Bytes of memory that the texts and files of one run may take together; what is freed in between counts, too."""
MAX_PATTERN = 4096
"""Characters of one shell pattern or regular expression."""
COMMAND = 40
"""Steps of calling a command, whatever it does."""
HEAVY = 200_000
"""Steps of a command that imgkit computes as a whole, such as ``update-ca-certificates``."""
NODE = 512
"""Bytes of memory that a file, link or directory of the Tree takes besides its content."""
PIECE = 100
"""Bytes of memory that a piece of a text takes besides its characters."""
PARSED = 128
"""Bytes of memory that are charged for a character of a script that is parsed; it takes about twice as many at most."""
COMPILED = 60
"""Steps of compiling a part of a pattern, a bracket expression or a range in it."""
WIDE = 20_000
"""Steps of compiling a range outside of ASCII: Python's compiler looks at each of its up to 65,536 characters."""
MAX_DIGITS = 18
"""Digits of a number. Converting more would take quadratic time, and no command of a script needs them."""

_CHARACTERS_PER_STEP = 64  # that C code copies, searches or compares, at the slowest


class Exhausted(Exception):  # noqa: N818 - a verdict on the script rather than an error in it
    """The script asks for more than a package script may; the message says what it asks for."""


class Budget:
    """The steps and bytes that a script has left. Methods that charge raise :class:`Exhausted` beyond the limit.

    Args:
        steps: steps that may be charged.
        size: bytes of memory that may be charged.
    """

    def __init__(self, steps: int = MAX_STEPS, size: int = MAX_BYTES) -> None:
        self._limits = steps, size
        self.steps = steps
        self.bytes = size

    def work(self, steps: int) -> None:
        """Charge ``steps`` of work."""
        self.steps -= steps
        if self.steps < 0:
            raise Exhausted(f"takes more than {self._limits[0]} steps: it may never end")

    def memory(self, size: int) -> None:
        """Charge ``size`` bytes of memory, and the work of filling them."""
        self.bytes -= size
        if self.bytes < 0:
            raise Exhausted(f"needs more than {self._limits[1] >> 20} MiB of memory")
        self.work(size >> 10)

    def text(self, text: str) -> str:
        """Charge for a new text, and return the text."""
        self.memory(sys.getsizeof(text))
        return text

    def joined(self, texts: Sequence[str], separator: str = "") -> str:
        """Join texts, charged before the result is made."""
        self.memory(sum(map(len, texts)) + len(separator) * len(texts))
        return self.text(separator.join(texts))

    def scan(self, size: int, times: int = 1) -> None:
        """Charge looking at ``size`` characters, ``times`` times."""
        self.work(size * times // _CHARACTERS_PER_STEP + 1)

    def words(self, count: int) -> None:
        """Charge a list of ``count`` words, which commands process in quadratic time (option parsing, ``shift``)."""
        self.work(count + count * count // 1000)

    def lines(self, text: str) -> list[str]:
        """Split ``text`` into lines as commands do: only a newline ends a line."""
        self.memory(len(text) + PIECE * text.count("\n"))
        return text.removesuffix("\n").split("\n") if text else []

    def pieces(self, text: str, delimiter: str) -> list[str]:
        """Split ``text`` at each ``delimiter``."""
        self.memory(len(text) + PIECE * text.count(delimiter))
        return text.split(delimiter)

    def pattern(self, text: str) -> str:
        """Charge for compiling a pattern, and return the pattern."""
        if len(text) > MAX_PATTERN:
            raise Exhausted(f"has a pattern of more than {MAX_PATTERN} characters")
        self.work(4 * len(text) + COMPILED * (text.count("*") + 1))
        if "[" in text:
            ranges = text.count("[") + text.count("-")
            self.work(ranges * (COMPILED if text.isascii() else WIDE))
        return text


def whole_number(text: str) -> int | None:
    """Parse a number in decimal digits; None if ``text`` is not one or has more than 18 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None
