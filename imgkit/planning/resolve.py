"""Make a plan: find the exact packages for the names in a recipe, in the mirror's newest indexes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from imgkit.apk.dependency import Dependency
from imgkit.apk.solver import UnknownPackageError, solve
from imgkit.errors import RecipeError
from imgkit.fetch.cache import Cache
from imgkit.fetch.checks import shown
from imgkit.planning.base import Base, freshness_of
from imgkit.planning.freshness import Freshness
from imgkit.planning.indexes import INDEX, fetch_indexes
from imgkit.planning.plan import Plan, PlannedPackage
from imgkit.recipe import Recipe, Shape
from imgkit.rootfs.install import installed_in, world_in

if TYPE_CHECKING:
    from imgkit.planning.baseimage import BaseImage

_MOST_NAMED = 5  # packages that a message names


def make_plan(
    recipe: Recipe, arch: str, base: Base, cache: Cache, *, shape: Shape = "disk", allow_stale: bool = False
) -> Plan:
    """Fetch and verify the indexes, and solve for the recipe's packages.

    Args:
        shape: what the root filesystem is for, which decides the packages.
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.

    Raises:
        InputError: an index cannot be downloaded or trusted, is older than one seen before, or of another branch.
        RecipeError: packages are unknown, cannot be installed together, or cannot be installed in the base.
    """
    facts = recipe.architecture(arch)
    freshness = freshness_of(recipe, arch, base, cache, allow_stale=allow_stale)
    if base.image is not None:
        if not recipe.wanted(arch, shape):
            return _as_it_is(recipe, arch, base, shape)
        _check_image(base, base.image, recipe.wanted(arch, shape), freshness)
    branch = freshness.branch if base.image is not None else recipe.branch  # latest-stable moves on, an image does not
    indexes = fetch_indexes(recipe.model_copy(update={"branch": branch}), facts.alpine, base, cache)
    dated = [index for index in indexes if index.is_dated]
    for index in dated:
        freshness.check_index(f"{index.repository.url}/{INDEX}", index.name, index.description, index.date)
    standing, added = world_in(base.tree), recipe.wanted(arch, shape)
    candidates = [package for index in indexes for package in index.packages]
    installed = {record.package.name: record.package for record in installed_in(base.tree)}
    with _repositories_named(recipe, branch):
        solution = solve(added, candidates, arch=facts.alpine, installed=installed, standing=standing)
    used = {package.repository.url for package in solution}
    for index in dated:
        if index.repository.url in used:
            freshness.remember_index(index.name, index.date)
    return Plan(
        arch=arch,
        branch=recipe.branch,
        version=base.version,
        base=base.artefact,
        indexes=tuple(index.artefact for index in indexes if index.artefact is not None),
        world=(*standing, *_guest_words(recipe, added)),
        packages=tuple(PlannedPackage(package, f"{package.repository.url}/{package}.apk") for package in solution),
        shape=shape,
    )


@contextmanager
def _repositories_named(recipe: Recipe, branch: str) -> Iterator[None]:
    """Say in the error for packages that no repository has, which repositories these are."""
    try:
        yield
    except UnknownPackageError as unknown:
        named = [entry for entry in recipe.repositories if isinstance(entry, str)]
        searched = [f"{', '.join(named)} of {branch} at {shown(recipe.mirror)}"] if named else []
        searched += [entry.url for entry in recipe.further_repositories]
        where = f"(the repositories are {'; '.join(searched)})"
        message = f"{unknown.message} {where}"
        if len(unknown.problems) > 1:  # the command line lists them below the first part
            message = f"{len(unknown.problems)} packages are in no repository {where}: {unknown.message}"
        raise UnknownPackageError(message, hint=unknown.hint, problems=unknown.problems) from unknown


def _guest_words(recipe: Recipe, words: Sequence[str]) -> tuple[str, ...]:
    """Return words of the world as the image's own apk gets them: without tags of folders on this computer.

    The image has no such repository, and apk refuses to do anything with a world that has a tag of none. A package
    that is installed stays without one.
    """
    known = {entry.tag for entry in recipe.further_repositories if entry.folder is None}
    parsed = [Dependency.parse(word) for word in words]
    return tuple(
        str(replace(dependency, tag=None)) if dependency.tag and dependency.tag not in known else word
        for word, dependency in zip(words, parsed, strict=True)
    )


def _as_it_is(recipe: Recipe, arch: str, base: Base, shape: Shape) -> Plan:
    """Return the plan for an image that gets no packages. No mirror is asked."""
    return Plan(
        arch=arch,
        branch=recipe.branch,
        version=base.version,
        base=base.artefact,
        indexes=(),
        world=world_in(base.tree),
        packages=tuple(PlannedPackage(record.package, f"/{record.package}.apk") for record in installed_in(base.tree)),
        shape=shape,
    )


def _check_image(base: Base, image: BaseImage, wanted: Sequence[str], freshness: Freshness) -> None:
    """Check that Alpine's packages can be installed in an image.

    Raises:
        RecipeError: the image is not Alpine, or has no package database.
        InputError: it is Alpine of another branch.
    """
    packages = ", ".join(wanted[:_MOST_NAMED]) + (" …" if len(wanted) > _MOST_NAMED else "")
    if not base.version:
        known = f"is {image.description}" if image.description else "is not Alpine"
        message = f"packages: {packages}: the base {image.source.name} {known}, where they cannot be installed"
        raise RecipeError(message, hint="start from an image of Alpine, or leave the recipe without packages")
    if not base.keyring.keys or not installed_in(base.tree):
        message = f"packages: {packages}: the base {image.source.name} has no package database, or no keys"
        raise RecipeError(message, hint="start from an image in which apk can install packages")
    freshness.check_image(image.source.name)
