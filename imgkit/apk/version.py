"""Alpine package versions: grammar, order and the prefix match of ``~``.

The grammar and the order are those of apk-tools 3 (release 2.14 differs only for components with leading zeros and
for ``~hash``, which it does not know)::

    number{.number}… {letter} {_suffix{number}}… {~hex} {-rN}

Two versions are compared token by token. As long as both tokens are of one kind, they decide: numbers numerically
(except that a component behind a dot which starts with ``0`` makes it a comparison of bytes), letters and hashes by
bytes, suffixes by their place in alpha < beta < pre < rc < (none) < cvs < svn < git < hg < p. Where the kinds differ,
a pre-release suffix makes its side the smaller one; otherwise the side whose kind is earlier in number, letter,
suffix, suffix number, hash, revision, end is the greater.

All this is a plain lexicographic order over tuples when each kind has the right rank, which is what :func:`_key`
makes.
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

_BEFORE_RELEASE = {"alpha": 0, "beta": 1, "pre": 2, "rc": 3}
_AFTER_RELEASE = {"cvs": 0, "svn": 1, "git": 2, "hg": 3, "p": 4}

# Rank of a kind of token against another kind: a higher one makes its side the greater.
_PRE, _WRONG, _END, _REVISION, _HASH, _SUFFIX_NUMBER, _POST, _LETTER, _NUMBER = range(9)

_Token: TypeAlias = tuple[int, int, str]


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A valid version. Equal are those that compare equal (``1.0-r1`` and ``01.0-r01``), as apk sees it."""

    text: str
    _key: tuple[_Token, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version that ``text`` is.

        Raises:
            ValueError: it does not follow the grammar.
        """
        return _parse(text)

    @classmethod
    def lenient(cls, text: str | None) -> Version:
        """``text`` as apk compares it when it is not valid, or not there (None).

        Real indexes have such versions (``0.99f7-r1``, ``v2.4``). They compare by the part that is valid; what follows
        makes them less than that part alone. No version at all is less than every version.
        """
        return _lenient(text or "")

    def starts_with(self, prefix: Version) -> bool:
        """What ``~`` means: this version has the tokens of ``prefix`` first (1.20 does not start with 1.2)."""
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
    """Whether ``text`` follows the grammar of versions."""
    return _VERSION.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _lenient(text: str) -> Version:
    match = _VERSION.match(text)
    tokens = _key(match)[:-1] if match else []
    whole = match is not None and match.end() == len(text)
    return Version(text, (*tokens, (_END if whole else _WRONG, 0, "")))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Version:
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a valid version")
    return Version(text, tuple(_key(match)))


def _key(match: re.Match[str]) -> list[_Token]:
    """One tuple (rank, number, text) a token, and one for the end."""
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
    """Numeric order without conversion (length, then digits): a version of ten thousand digits is no int."""
    significant = digits.lstrip("0")
    return (rank, len(significant), significant)


def _component(digits: str) -> _Token:
    """A number behind a dot. One with a leading zero is compared as bytes, so it is less than any without."""
    return (_NUMBER, -1, digits) if digits.startswith("0") else _number(_NUMBER, digits)
