"""Recipes: Python modules whose public names are the fields of one frozen :class:`Recipe`::

    recipe = load(Path("recipes/alpine.py"), {"size": "8G"})
    recipe.architecture("amd64").packages

``spec`` has the fields, ``containerspec`` those of the container image, ``agentspec`` those of the agent,
``filespecs`` and ``repositoryspec`` those of files and repositories; ``loading`` turns a file into a :class:`Recipe`,
``locations`` makes its paths absolute, ``faults`` and ``sourcefaults`` find and describe its faults.
"""

from imgkit.recipe.agentspec import AgentSpec
from imgkit.recipe.containerspec import ContainerSpec
from imgkit.recipe.filespecs import FileSpec, OverlaySpec
from imgkit.recipe.loading import load, parse_setting
from imgkit.recipe.repositoryspec import RepositorySpec
from imgkit.recipe.spec import (
    OFFICIAL_MIRROR,
    SHAPES,
    Architecture,
    DiskOutput,
    ImageFormat,
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
    "DiskOutput",
    "FileSpec",
    "ImageFormat",
    "Output",
    "OverlaySpec",
    "PartitionKind",
    "PartitionSpec",
    "Recipe",
    "RepositorySpec",
    "Runlevel",
    "Shape",
    "UserSpec",
    "load",
    "parse_setting",
    "parse_size",
]
