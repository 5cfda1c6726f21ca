"""Names on a FAT: which are legal, and the short names that go with the long ones.

Format: fatgen103, "Name Limits and Character Sets" and "Name Matching In Short & Long Names".
"""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping

MAX_UNITS = 255
"""UTF-16 units of a long name."""
_ILLEGAL = frozenset(map(chr, range(32))) | frozenset('"*/:<>?\\|')
_SHORT = frozenset(string.ascii_uppercase + string.digits + "$%'-_@~`!(){}^#&")
_BASE, _EXTENSION = 8, 3


def fault_of(name: str) -> str:
    """Return what is wrong with a name, as the end of a sentence that begins with it; empty if nothing is."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "is not Unicode"
    if len(name.encode("utf-16-le")) > 2 * MAX_UNITS:
        return f"is longer than {MAX_UNITS} characters"
    illegal = sorted(_ILLEGAL.intersection(name))
    if illegal:
        return f"has a character that FAT does not allow, {illegal[0]!r}"
    if not name or name[-1] in ". ":
        return "is empty or ends with a period or a space, which FAT does not allow"
    return ""


def folded(name: str) -> str:
    """Return the form in which two names are equal that must not lie in one directory: FAT ignores case."""
    return name.upper()


def short_names(names: Collection[str]) -> Mapping[str, bytes]:
    """Return the short name of each name of a directory: 8 + 3 bytes, filled with spaces.

    A name that is a short name but for its case gets that one. The others get what is left of them with a number, in
    their order, so that equal directories have equal short names.
    """
    fitting = {name: _packed(*_parts(name)) for name in names if _fits(name)}
    taken = set(fitting.values())
    counts: dict[tuple[str, str], int] = {}
    result = dict(fitting)
    for name in sorted(set(names) - fitting.keys()):
        parts = _parts(name)
        number, short = _numbered(*parts, counts.get(parts, 0) + 1, taken)
        counts[parts] = number
        taken.add(short)
        result[name] = short
    return result


def _numbered(base: str, extension: str, number: int, taken: Collection[bytes]) -> tuple[int, bytes]:
    """Return the first number from ``number`` on whose short name is free, and that name."""
    while True:
        tail = f"~{number}"
        short = _packed(base[: _BASE - len(tail)] + tail, extension)
        if short not in taken:
            return number, short
        number += 1


def is_short(name: str, short: bytes) -> bool:
    """Return whether the short name says all of the name, so that no long entry is needed."""
    return _fits(name) and name == name.upper() and _packed(*_parts(name)) == short


def _parts(name: str) -> tuple[str, str]:
    """Return the base and the extension of a name in the characters of short names, the base cut to 8, that to 3."""
    stem, dot, extension = name.lstrip(". ").rpartition(".")
    if not dot:
        stem, extension = extension, ""
    return _short_text(stem)[:_BASE], _short_text(extension)[:_EXTENSION]


def _short_text(text: str) -> str:
    return "".join(_short_character(character) for character in text if character not in ". ")


def _short_character(character: str) -> str:
    upper = character.upper() if character.isascii() else ""
    return upper if upper in _SHORT else "_"


def _fits(name: str) -> bool:
    """Return whether a name is a short name but for its case."""
    base, extension = _parts(name)
    return name.isascii() and name.upper() == (f"{base}.{extension}" if extension else base)


def _packed(base: str, extension: str) -> bytes:
    return base.encode("ascii").ljust(_BASE) + extension.encode("ascii").ljust(_EXTENSION)
