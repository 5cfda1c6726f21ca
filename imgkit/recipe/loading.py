"""Load a recipe's file, and the fields that the command line sets, into a frozen :class:`Recipe`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import cast

import yaml
from pydantic import ValidationError

from imgkit.errors import RecipeError, UsageError
from imgkit.host import lookup
from imgkit.host.suggest import close_matches, did_you_mean
from imgkit.recipe import faults, locations
from imgkit.recipe.extending import all_fields
from imgkit.recipe.merging import OVERLAYS, Stated
from imgkit.recipe.spec import Recipe

_NOTHING: Mapping[str, str] = MappingProxyType({})


def load(path: Path, overrides: Mapping[str, object] = _NOTHING, origins: Mapping[str, str] = _NOTHING) -> Recipe:
    """Load and check a recipe.

    Args:
        path: the recipe's file.
        overrides: fields that the command line or the environment set; they replace the recipe's.
        origins: where overrides come from, for messages: field → ``--mirror``, ``IMAGE_SIZE``.

    Raises:
        RecipeError: the file is missing or cannot be looked up, is not Python, raises an exception, or has wrong
            values; every fault is in ``problems``.
        UsageError: all faults are in overrides.
    """
    if not lookup.is_file(path, RecipeError):
        raise _missing(path)
    stated, problems = all_fields(path)
    values = cast("Mapping[str, object]", stated.plain())
    if overrides.keys() & OVERLAYS:
        values = {name: value for name, value in values.items() if name not in OVERLAYS}
    fields = locations.absolute({**values, **overrides}, path.parent)
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as invalid:
        problems += faults.sentences(invalid.errors())
        raise _error(path, _with_modules(problems, stated, overrides), origins) from invalid
    problems += faults.contradictions(recipe)
    if problems:
        raise _error(path, _with_modules(problems, stated, overrides), origins)
    return recipe


def _with_modules(problems: Sequence[str], stated: Stated, overrides: Mapping[str, object]) -> list[str]:
    """Return problems that name the module that a value comes from, if it is not the recipe itself.

    Args:
        problems: each begins with its field.
        overrides: fields that do not come from any module.
    """

    def where(place: str) -> str:
        origin = stated.origin if place.partition(".")[0] in overrides else stated.origin_of(place)
        return "" if origin == stated.origin else f" (in {origin})"

    return [problem + where(problem.partition(":")[0]) for problem in problems]


def _missing(path: Path) -> RecipeError:
    """Return the error for a recipe that does not exist."""
    if lookup.is_folder(path, RecipeError):
        return RecipeError(f"{path}: a folder, not a recipe", hint="give the path of the recipe's file, e.g. image.py")
    names = close_matches(path.name, [other.name for other in path.parent.glob("*.py")])
    hint = f"did you mean {path.parent / names[0]}?" if names else "give the path of a recipe, e.g. recipes/alpine.py"
    return RecipeError(f"{path}: no such recipe", hint=hint)


def _error(path: Path, problems: Sequence[str], origins: Mapping[str, str]) -> RecipeError | UsageError:
    """Return the error for problems, each of which begins with its field.

    A problem with a field that the command line or the environment set is not the recipe's fault.
    """
    split = [re.split(r"(?=[.:])", problem, maxsplit=1) for problem in problems]
    if all(field in origins for field, _ in split):
        return UsageError("; ".join(origins[field] + rest for field, rest in split))
    if len(problems) == 1:
        return RecipeError(f"{path}: {problems[0]}", problems=problems)
    return RecipeError(f"{path}: {len(problems)} faults: " + "; ".join(problems), problems=problems)


def parse_setting(text: str) -> tuple[str, object]:
    """Parse ``NAME=VALUE`` of the command line.

    Returns:
        The name of a field, and its value: the text itself for a text field, otherwise the text parsed as YAML.

    Raises:
        UsageError: there is no ``=``, recipes have no such field, or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: no '=' in it", hint="write --set size=8G")
    if name not in Recipe.model_fields:
        known = f"the fields are {', '.join(Recipe.model_fields)}"
        hint = did_you_mean(name, Recipe.model_fields) or known
        raise UsageError(f"--set {name}: recipes have no such field", hint=hint)
    annotation = Recipe.model_fields[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, str):
        return name, value
    try:
        parsed: object = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # ValueError: a number too long for Python
        raise UsageError(f"--set {text[:80]}: not a value in YAML", hint="lists are written [a, b]") from cause
    is_number = isinstance(parsed, (int, float)) and not isinstance(parsed, bool)
    return name, value if is_number else parsed
