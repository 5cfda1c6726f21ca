"""Paths in the fields of a recipe, which are relative to the file that states them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from imgkit.recipe import basereference
from imgkit.recipe.faults import PATHS


def absolute(fields: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return fields of a recipe with absolute paths.

    Args:
        fields: as a module or the command line states them.
        folder: the one that the recipe's file is in.
    """
    changed = dict(fields)
    for name in PATHS:
        value = fields.get(name)
        if isinstance(value, (str, Path)) and value != "":
            changed[name] = (folder / value).resolve()
    if isinstance(fields.get("base"), str):
        changed["base"] = basereference.absolute(str(fields["base"]), folder)
    return changed
