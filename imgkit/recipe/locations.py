"""Paths in the fields of a recipe, which are relative to the file that states them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imgkit.host import lookup
from imgkit.recipe import basereference
from imgkit.recipe.mirroraddress import absolute_mirror
from imgkit.recipe.record import RecipeRecord

PATHS = ("release_key", "overlay", "agent_runner")
"""Fields that name a file or folder."""


def absolute(fields: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return fields of a recipe with absolute paths.

    Values of wrong types stay as they are: the model refuses them.

    Args:
        fields: as a module or the command line states them.
        folder: the one that the recipe's file is in.
    """

    def place(value: object) -> object:
        return lookup.real(folder / value) if isinstance(value, (str, Path)) and value != "" else value

    def location(value: object) -> object:
        is_url = isinstance(value, str) and ("://" in value or value.startswith("file:") or value == "")
        return value if is_url else str(place(value)) if isinstance(value, (str, Path)) else value

    changes: dict[str, Callable[[object], object]] = dict.fromkeys(PATHS, place)
    changes["overlay"] = lambda value: _in_record(value, {"path": place}) if _is_record(value) else place(value)
    changes["overlays"] = lambda value: _each(value, changes["overlay"])
    changes["agent"] = lambda value: _in_record(value, {"payload": place})
    changes["files"] = lambda value: _each(value, lambda file: _in_record(file, {"source": place}))
    changes["repositories"] = lambda value: _each(value, lambda one: _in_record(one, {"url": location, "key": place}))
    changes["mirror"] = lambda value: absolute_mirror(value, folder) if isinstance(value, str) else value
    changes["base"] = lambda value: basereference.absolute(value, folder) if isinstance(value, str) else value
    return {name: changes[name](value) if name in changes else value for name, value in fields.items()}


def _is_record(value: object) -> bool:
    return isinstance(value, (Mapping, RecipeRecord))


def _each(value: object, change: Callable[[object], object]) -> object:
    return [change(item) for item in value] if isinstance(value, (list, tuple)) else value


def _in_record(value: object, changes: Mapping[str, Callable[[object], object]]) -> object:
    """Return a mapping, or the fields of a record, with some of its values changed."""
    if not _is_record(value):
        return value
    items: dict[str, Any] = dict(value.items()) if isinstance(value, Mapping) else dict(value)  # type: ignore[call-overload]
    return {name: changes[name](item) if name in changes else item for name, item in items.items()}
