"""The field ``extends``: a recipe that builds on another one, and states only what is different.

    extends = "imgkit:alpine"    # one that comes with imgkit
    extends = "common.py"        # a file, relative to the recipe

How the fields of both are combined is said in :mod:`imgkit.recipe.merging`. What a base refers to (an overlay, a key)
is relative to the base, and a base may extend a further recipe.
"""

from __future__ import annotations

from pathlib import Path

from imgkit.errors import RecipeError
from imgkit.host import lookup
from imgkit.host.suggest import close_matches, did_you_mean
from imgkit.recipe import shipped
from imgkit.recipe.faults import EXTENDS
from imgkit.recipe.locations import absolute
from imgkit.recipe.merging import Stated, merged, stated
from imgkit.recipe.module import execute, public_values


def all_fields(path: Path) -> tuple[Stated, list[str]]:
    """Run a recipe and the recipes that it extends, and combine their fields.

    Returns:
        The fields, each with the module that it comes from; and problems, each of which begins with its field.

    Raises:
        RecipeError: a recipe cannot be run, a base does not exist, or recipes extend each other in a circle.
    """
    return _fields(path, ())


def _fields(path: Path, above: tuple[Path, ...]) -> tuple[Stated, list[str]]:
    """Return the same as :func:`all_fields`.

    Args:
        above: the recipes that extend this one, the nearest last.
    """
    chain = (*above, path)
    if path.resolve() in [other.resolve() for other in above]:
        circle = " → ".join(map(shipped.label, chain))
        raise RecipeError(f"{above[-1]}: {EXTENDS}: recipes extend each other in a circle: {circle}")
    values = public_values(execute(path))
    target = values.pop(EXTENDS, None)
    own = stated(absolute(values, path.parent), shipped.label(path))
    if target is None:
        return own, []
    base, problems = _fields(_base(path, target), chain)
    fields, further = merged(base, own)
    return fields, [*problems, *further]


def _base(path: Path, target: object) -> Path:
    """Return the file of the recipe that the one at ``path`` extends.

    Raises:
        RecipeError: there is none, or it cannot be looked up.
    """
    if not isinstance(target, (str, Path)) or not str(target):
        raise RecipeError(
            f"{path}: {EXTENDS}: must be the path of a recipe, or {shipped.PREFIX}NAME (it is {target!r})"
        )
    name = str(target)
    if name.startswith(shipped.PREFIX):
        return _shipped(path, name.removeprefix(shipped.PREFIX))
    file = path.parent / target
    try:
        if lookup.is_file(file, RecipeError):
            return file
    except RecipeError as refused:
        raise RecipeError(f"{path}: {EXTENDS}: {refused.message}") from refused
    near = close_matches(file.name, [other.name for other in file.parent.glob("*.py")], limit=1)
    hint = f"did you mean {near[0]}?" if near else f"a path is relative to {path.parent}"
    raise RecipeError(f"{path}: {EXTENDS}: {name} does not exist", hint=hint)


def _shipped(path: Path, name: str) -> Path:
    """Return the file of a recipe that comes with imgkit.

    Raises:
        RecipeError: there is none of this name.
    """
    file = shipped.path(name)
    if file is None:
        hint = did_you_mean(name, shipped.names()) or f"there are {', '.join(shipped.names())}"
        raise RecipeError(f"{path}: {EXTENDS}: no recipe of the name {name!r} comes with imgkit", hint=hint)
    return file
