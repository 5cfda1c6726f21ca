"""What all records of a recipe have in common: they never change, and they refuse unknown fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints

K = TypeVar("K")
V = TypeVar("V")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]


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
