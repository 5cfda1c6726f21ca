"""The mirror that options and environment variables name, and the key that vouches for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from imgkit.recipe.mirroraddress import absolute_mirror

VARIABLES = {"ALPINE_MIRROR": "mirror", "ALPINE_RELEASE_KEY": "release_key"}
"""Environment variable → the field of a recipe that it sets."""
OPTIONS = {"mirror": "--mirror", "release_key": "--release-key"}
"""Field of a recipe → the option that sets it, which takes precedence over the variable."""


def mirror_fields(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields that are set, with paths relative to the current folder.

    Returns:
        The values by field, and by field the option or variable that set it, for messages.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for variable, field in VARIABLES.items():
        given = getattr(options, field)
        text = environ.get(variable) if given is None else str(given)
        if text:
            values[field] = absolute(field, text)
            origins[field] = variable if given is None else OPTIONS[field]
    return values, origins


def absolute(field: str, value: str | Path) -> str | Path:
    """Return the value that an option or a variable gives a field of a recipe; paths are relative to this folder."""
    if field == "mirror":
        return absolute_mirror(str(value), Path.cwd())
    return Path(value).absolute() if field == "release_key" or isinstance(value, Path) else value
