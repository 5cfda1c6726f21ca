"""The header ``WWW-Authenticate``: what a server wants to know of whom it talks to (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_HEADER = 1 << 14
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar of RFC 9110, section 5.6.2
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|{_TOKEN})')
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+|$|(?=,))")
_SPACE = re.compile(r"[ \t,]*")


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate: the scheme in lower case, and its parameters with names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Parse the header, in which several servers' words may have been joined by commas.

    What cannot be understood ends the list; a header of more than 16 KiB has none.
    """
    found: list[tuple[str, dict[str, str]]] = []
    position = len(header) if len(header) > _MAX_HEADER else 0
    while position < len(header):
        start = position = _after(_SPACE, header, position)
        if found and (parameter := _PARAMETER.match(header, position)):
            found[-1][1].setdefault(parameter[1].lower(), _value(parameter[2]))
            position = parameter.end()
        elif scheme := _SCHEME.match(header, position):
            found.append((scheme[1].lower(), {}))
            position = scheme.end()
        if position == start:
            break
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()


def _value(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
