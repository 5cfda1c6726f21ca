"""Recipes: Python modules whose public names are the fields of one frozen :class:`Recipe`::

    recipe = load(Path("recipes/alpine.py"), {"size": "8G"})
    recipe.architecture("amd64").packages

``spec`` has the fields, ``loading`` turns a file into a :class:`Recipe`, ``faults`` finds and describes its faults.
"""

from imgkit.recipe.loading import load, parse_setting
from imgkit.recipe.spec import (
    OFFICIAL_MIRROR,
    Architecture,
    PartitionKind,
    PartitionSpec,
    Recipe,
    Runlevel,
    UserSpec,
    parse_size,
)

__all__ = [
    "OFFICIAL_MIRROR",
    "Architecture",
    "PartitionKind",
    "PartitionSpec",
    "Recipe",
    "Runlevel",
    "UserSpec",
    "load",
    "parse_setting",
    "parse_size",
]
