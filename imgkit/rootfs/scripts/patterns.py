"""Shell patterns (POSIX.1-2017, 2.13) and basic regular expressions (9.3) as Python's."""

from __future__ import annotations

import re
from functools import lru_cache

_CLASSES = {
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
_BRACKET = re.compile(r"\[([!^]?)((?:\]|\[:[a-z]+:\]|\\.|[^\]\\])(?:\[:[a-z]+:\]|\\.|[^\]\\])*)\]", re.DOTALL)
_INSIDE = re.compile(r"\[:([a-z]+):\]|\\(.)|(.)", re.DOTALL)
_SWAPPED = {"(", ")", "{", "}", "|", "+", "?"}  # plain in a basic expression, operators behind a backslash
_KEPT = set("wWsSbB123456789")


@lru_cache(maxsize=1024)
def shell_pattern(pattern: str, *, pathname: bool = False) -> re.Pattern[str]:
    """A shell pattern as a regular expression for ``fullmatch``; a backslash quotes the next character.

    Args:
        pathname: ``*``, ``?`` and brackets do not match a slash (FNM_PATHNAME).

    Raises:
        ValueError: a bracket expression that means nothing.
    """
    out = ""
    at = 0
    anything = "[^/]" if pathname else "."
    while at < len(pattern):
        character = pattern[at]
        bracket = _BRACKET.match(pattern, at) if character == "[" else None
        if bracket:
            out += ("(?!/)" if pathname else "") + _bracket(bracket)
            at = bracket.end()
            continue
        if character == "\\" and at + 1 < len(pattern):
            at += 1
            out += re.escape(pattern[at])
        else:
            out += {"*": f"{anything}*", "?": anything}.get(character, re.escape(character))
        at += 1
    return re.compile(out, re.DOTALL)


def _bracket(found: re.Match[str]) -> str:
    """A bracket expression.

    Raises:
        ValueError: an unknown class, or a range that is none.
    """
    items = _INSIDE.findall(found.group(2))
    inside = ""
    for index, (name, quoted, plain) in enumerate(items):
        if name and name not in _CLASSES:
            raise ValueError(f"character class {name!r}")
        between = 0 < index < len(items) - 1 and "-" not in (items[index - 1][2], items[index + 1][2])
        inside += _CLASSES[name] if name else "-" if plain == "-" and between else re.escape(quoted or plain)
    expression = f"[{'^' if found.group(1) else ''}{inside}]"
    try:
        re.compile(expression)
    except re.error as cause:
        raise ValueError(f"{found.group()}: {cause}") from cause
    return expression


def regular_expression(pattern: str, *, extended: bool = False) -> str:
    """A POSIX regular expression in Python's syntax.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    out = ""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "[":
            found = _BRACKET.match(pattern, at)
            if not found:
                raise ValueError("unterminated bracket expression")
            out += _bracket(found)
            at = found.end()
            continue
        if character == "\\":
            at += 1
            out += _escaped(pattern[at : at + 1], extended=extended)
        elif not extended and character in _SWAPPED:
            out += re.escape(character)
        elif not extended and character == "*" and (not out or out in ("^", "(")):
            out += r"\*"
        else:
            out += character
        at += 1
    return out


def _escaped(character: str, *, extended: bool) -> str:
    if character in ("<", ">"):
        return r"\b"
    if character in _KEPT:
        return "\\" + character
    if not extended and character in _SWAPPED:
        return character
    if not character or character.isalnum():
        raise ValueError(f"escape \\{character}")
    return re.escape(character)
