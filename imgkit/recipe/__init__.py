"""Recipes: Python modules whose public names are the fields of one frozen :class:`Recipe`::

    recipe = load(Path("recipes/alpine.py"), {"size": "8G"})
    recipe.architecture("amd64").packages

``spec`` has the fields, ``containerspec`` those of the container image, ``agentspec`` those of the agent;
``loading`` turns a file into a :class:`Recipe`, ``faults`` finds and describes its faults.
"""

from imgkit.recipe.agentspec import AgentSpec
from imgkit.recipe.containerspec import ContainerSpec
from imgkit.recipe.loading import load, parse_setting
from imgkit.recipe.spec import (
    OFFICIAL_MIRROR,
    SHAPES,
    Architecture,
    Output,
    PartitionKind,
    PartitionSpec,
    Recipe,
    Runlevel,
    Shape,
    UserSpec,
    parse_size,
)

__all__ = [
    "OFFICIAL_MIRROR",
    "SHAPES",
    "AgentSpec",
    "Architecture",
    "ContainerSpec",
    "Output",
    "PartitionKind",
    "PartitionSpec",
    "Recipe",
    "Runlevel",
    "Shape",
    "UserSpec",
    "load",
    "parse_setting",
    "parse_size",
]
