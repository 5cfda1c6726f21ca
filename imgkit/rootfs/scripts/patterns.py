"""Shell patterns (POSIX.1-2017, 2.13), matched without backtracking::

    shell_pattern("*.conf", Budget()).fullmatch("a.conf")       # → True

A pattern is split at its asterisks into segments, whose items each match one character. Segments are searched one
after the other, each as early as possible. Nothing is tried twice, so the time is at most proportional to the product
of the lengths of pattern and text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imgkit.rootfs.scripts.budget import Budget

CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
BRACKET = re.compile(r"\[([!^]?)((?:\]|\[:[a-z]+:\]|\\.|[^\]\\])(?:\[:[a-z]+:\]|\\.|[^\]\\])*)\]", re.DOTALL)
_INSIDE = re.compile(r"\[:([a-z]+):\]|\\(.)|(.)", re.DOTALL)


class PatternSegment:
    """Items that match one character each; every item is a regular expression of that width."""

    def __init__(self, items: Sequence[str], flags: int) -> None:
        self.width = len(items)
        self._expression = re.compile("".join(items), re.DOTALL | flags)

    def find(self, text: str, start: int) -> int | None:
        """Return the first place at or after ``start`` where the segment matches, None if there is none."""
        match = self._expression.search(text, start)
        return match.start() if match else None

    def find_last(self, text: str, start: int) -> int | None:
        """Return the last place at or after ``start`` where the segment matches, None if there is none."""
        places = reversed(range(start, len(text) - self.width + 1))
        return next((place for place in places if self.at(text, place)), None)

    def at(self, text: str, place: int) -> bool:
        """Return whether the segment matches at ``place``."""
        return self._expression.match(text, place) is not None


@dataclass(frozen=True)
class _Part:
    """A pattern without a slash: segments, with any characters between each two of them."""

    segments: tuple[PatternSegment, ...]

    def prefix(self, text: str, *, longest: bool) -> int | None:
        """Return the length of the shortest or longest prefix of ``text`` that matches, None if none does."""
        first, *others = self.segments
        if not first.at(text, 0):
            return None
        end = first.width
        for segment in others[:-1]:
            place = segment.find(text, end)
            if place is None:
                return None
            end = place + segment.width
        if not others:
            return end
        last = others[-1]
        place = last.find_last(text, end) if longest else last.find(text, end)
        return None if place is None else place + last.width

    def matches(self, text: str) -> bool:
        """Return whether all of ``text`` matches."""
        *others, last = self.segments
        if not others:
            return len(text) == last.width and last.at(text, 0)
        start = _Part((*others, _NOTHING)).prefix(text, longest=False)
        place = len(text) - last.width
        return start is not None and place >= start and last.at(text, place)


_NOTHING = PatternSegment((), 0)


@dataclass(frozen=True)
class ShellPattern:
    """A compiled pattern; callers limit its length, and so the time that matching takes.

    Attributes:
        parts: what is between the slashes of a pathname pattern; other patterns have one part.
        backwards: the last part with its segments and items reversed, which matches reversed text.
    """

    parts: tuple[_Part, ...]
    backwards: _Part

    def fullmatch(self, text: str) -> bool:
        """Return whether all of ``text`` matches."""
        if len(self.parts) == 1:
            return self.parts[0].matches(text)
        pieces = text.split("/")
        return len(pieces) == len(self.parts) and all(
            part.matches(piece) for part, piece in zip(self.parts, pieces, strict=True)
        )

    def prefix(self, text: str, *, longest: bool) -> int | None:
        """Return the length of the shortest or longest matching prefix, None without one. Not for pathname patterns."""
        return self.parts[0].prefix(text, longest=longest)

    def suffix(self, text: str, *, longest: bool) -> int | None:
        """Return the length of the shortest or longest matching suffix, None without one. Not for pathname patterns."""
        return self.backwards.prefix(text[::-1], longest=longest)


def shell_pattern(pattern: str, budget: Budget, *, pathname: bool = False, ignore_case: bool = False) -> ShellPattern:
    """Compile a shell pattern; a backslash quotes the next character.

    Args:
        pattern: the pattern.
        budget: what compiling it is charged to.
        pathname: ``*``, ``?`` and brackets do not match a slash (FNM_PATHNAME).
        ignore_case: letters match without regard to case.

    Raises:
        ValueError: a bracket expression is not valid.
        Exhausted: the pattern is too long, or the budget does not suffice.
    """
    budget.pattern(pattern)
    flags = re.IGNORECASE if ignore_case else 0
    pieces: list[list[list[str]]] = [[[]]]
    for item in _items(pattern):
        if item == "*":
            pieces[-1].append([])
        elif pathname and item == "/":
            pieces.append([[]])
        else:
            pieces[-1][-1].append(item)
    parts = tuple(_Part(tuple(PatternSegment(items, flags) for items in segments)) for segments in pieces)
    backwards = tuple(PatternSegment(items[::-1], flags) for items in pieces[-1][::-1])
    return ShellPattern(parts, _Part(backwards))


def _items(pattern: str) -> list[str]:
    """Return the items of a pattern as regular expressions for one character; an asterisk stays an asterisk."""
    items = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        bracket = BRACKET.match(pattern, at) if character == "[" else None
        if bracket:
            items.append(bracket_expression(bracket))
            at = bracket.end()
            continue
        if character == "\\" and at + 1 < len(pattern):
            at += 1
            items.append(re.escape(pattern[at]))
        else:
            items.append({"*": "*", "?": "."}.get(character, re.escape(character)))
        at += 1
    return items


def bracket_expression(bracket: re.Match[str]) -> str:
    """Translate a match of :data:`BRACKET` to a character class of Python's regular expressions.

    Raises:
        ValueError: a character class is unknown, or a range is not valid.
    """
    items = _INSIDE.findall(bracket[2])
    inside = []
    for index, (name, quoted, plain) in enumerate(items):
        if name and name not in CLASSES:
            raise ValueError(f"character class {name!r}")
        between = index < len(items) - 1 and "-" not in (items[index - 1][2], items[index + 1][2])
        inside.append(CLASSES[name] if name else "-" if plain == "-" and between else re.escape(quoted or plain))
    expression = f"[{'^' if bracket[1] else ''}{''.join(inside)}]"
    try:
        re.compile(expression)
    except re.error as cause:
        raise ValueError(f"{bracket[0][:80]}: {cause}") from cause
    return expression
