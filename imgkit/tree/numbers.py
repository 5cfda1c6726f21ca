"""Decimal numbers in Alpine's formats: sizes, times, priorities, the text of extended tar headers."""

from __future__ import annotations

_MOST_DIGITS = 19  # enough for 64 bits


def parse_number(text: str) -> int | None:
    """Parse a number of ASCII digits, at most 19 of them. Returns None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None
