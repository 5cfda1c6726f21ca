"""Parse and compare Alpine's package versions, and match them by prefix (``~``).

The grammar and the order are those of apk-tools 3. Release 2.14 differs only for components with leading zeros, and
does not know ``~hash``::

    number{.number}… {letter} {_suffix{number}}… {~hex} {-rN}

Two versions are compared token by token; the first difference decides. Tokens of one kind compare as follows: numbers
numerically (but by bytes if one of them comes after a dot and starts with ``0``), letters and hashes by bytes,
suffixes by their place in alpha < beta < pre < rc < (none) < cvs < svn < git < hg < p. If the kinds differ, the side
with a pre-release suffix is the smaller one; otherwise the side whose kind comes first in number, letter, suffix,
suffix number, hash, revision, end is the greater.

With the right rank for each kind this is the lexicographic order of the tuples that :func:`_key` makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache, total_ordering
from typing import TypeAlias

_VERSION = re.compile(
    r"(?P<first>[0-9]+)(?P<others>(?:\.[0-9]+)*)(?P<letter>[a-z]?)"
    r"(?P<suffixes>(?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)[0-9]*)*)"
    r"(?:~(?P<hash>[0-9a-f]+))?(?:-r(?P<revision>[0-9]+))?"
)
_SUFFIX = re.compile(r"_([a-z]+)([0-9]*)")

_BEFORE_RELEASE = {name: place for place, name in enumerate(("alpha", "beta", "pre", "rc"))}
_AFTER_RELEASE = {name: place for place, name in enumerate(("cvs", "svn", "git", "hg", "p"))}

# The rank of each kind of token against other kinds: the higher one makes its side the greater.
_PRE, _WRONG, _END, _REVISION, _HASH, _SUFFIX_NUMBER, _POST, _LETTER, _NUMBER = range(9)

_Token: TypeAlias = tuple[int, int, str]


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A version. Versions are equal if apk compares them as equal (``1.0-r1`` and ``01.0-r01``)."""

    text: str
    _key: tuple[_Token, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse a version.

        Raises:
            ValueError: ``text`` does not follow the grammar.
        """
        return _parse(text)

    @classmethod
    def lenient(cls, text: str | None) -> Version:
        """Parse a version as apk compares it even if it is not valid, or missing (None).

        Real indexes have invalid versions (``0.99f7-r1``, ``v2.4``). They compare by their valid part; the rest makes
        them less than that part alone. A missing version is less than every other.
        """
        return _lenient(text or "")

    def starts_with(self, prefix: Version) -> bool:
        """Return whether the tokens of this version start with those of ``prefix`` (1.20 does not start with 1.2)."""
        wanted = prefix._key[:-1]
        return self._key[: len(wanted)] == wanted

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Version) else NotImplemented

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)


def is_valid(text: str) -> bool:
    """Return whether ``text`` follows the grammar of versions."""
    return _VERSION.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _lenient(text: str) -> Version:
    match = _VERSION.match(text)
    tokens = _key(match)[:-1] if match else []
    complete = match is not None and match.end() == len(text)
    return Version(text, (*tokens, (_END if complete else _WRONG, 0, "")))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Version:
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a valid version")
    return Version(text, tuple(_key(match)))


def _key(match: re.Match[str]) -> list[_Token]:
    """Return a tuple (rank, number, text) for each token, and one for the end."""
    tokens = [_number(_NUMBER, match["first"])]
    tokens += [_component(digits) for digits in match["others"].split(".")[1:]]
    if match["letter"]:
        tokens.append((_LETTER, 0, match["letter"]))
    for name, digits in _SUFFIX.findall(match["suffixes"]):
        tokens.append(
            (_PRE, _BEFORE_RELEASE[name], "") if name in _BEFORE_RELEASE else (_POST, _AFTER_RELEASE[name], "")
        )
        if digits:
            tokens.append(_number(_SUFFIX_NUMBER, digits))
    if match["hash"]:
        tokens.append((_HASH, 0, match["hash"]))
    if match["revision"]:
        tokens.append(_number(_REVISION, match["revision"]))
    tokens.append((_END, 0, ""))
    return tokens


def _number(rank: int, digits: str) -> _Token:
    """Return a number in numeric order without converting it (length, then digits): it may have any length."""
    significant = digits.lstrip("0")
    return (rank, len(significant), significant)


def _component(digits: str) -> _Token:
    """Return a number after a dot. One with a leading zero compares as bytes, so it is less than any without."""
    return (_NUMBER, -1, digits) if digits.startswith("0") else _number(_NUMBER, digits)
