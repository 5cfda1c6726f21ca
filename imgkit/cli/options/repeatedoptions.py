"""Options that may be repeated, and their values of the form ``K=V``."""

from __future__ import annotations

import argparse
from typing import Any

from imgkit.errors import UsageError


def add(parser: argparse.ArgumentParser, option: str, **settings: Any) -> None:
    """Add an option that may be repeated; its value is a list, which is empty without it."""
    parser.add_argument(option, action="append", default=[], **settings)


def pairs(words: list[str], option: str, form: str) -> dict[str, str]:
    """Parse words of the form ``K=V``.

    Args:
        words: the values of ``option``, which messages name.
        form: what the help of the option calls its form.

    Raises:
        UsageError: a word has no ``=`` or no name.
    """
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {word}: not of the form {form}")
        values[name] = value
    return values
