"""What all records of a recipe have in common: they never change, and they refuse unknown fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict

K = TypeVar("K")
V = TypeVar("V")


def matching(pattern: str, words: str) -> AfterValidator:
    """Return the check that a whole text matches a pattern. Messages have ``words``, which say so without a pattern."""
    form = re.compile(pattern)

    def check(text: str) -> str:
        if form.fullmatch(text) is None:
            raise ValueError(words)
        return text

    return AfterValidator(check)


Name = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.+-]*",
        "is not a name: letters, digits and . _ + -, the first of them a letter, a digit or _",
    ),
]


class RecipeRecord(BaseModel):
    """A record that never changes and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def records_in(annotation: object) -> Iterator[type[RecipeRecord]]:
    """Yield the records in the type of a field: of ``tuple[UserSpec, ...]``, ``UserSpec``."""
    if arguments := get_args(annotation):
        for argument in arguments:
            yield from records_in(argument)
    elif isinstance(annotation, type) and issubclass(annotation, RecipeRecord):
        yield annotation


def frozen(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Return a mapping with the same items that cannot be changed."""
    return MappingProxyType(dict(mapping))
