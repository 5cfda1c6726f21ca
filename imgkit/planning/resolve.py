"""Make a plan: find the exact packages for the names in a recipe, in the mirror's newest indexes."""

from __future__ import annotations

from imgkit.apk.solver import solve
from imgkit.fetch.cache import Cache
from imgkit.planning.base import Base, freshness_of
from imgkit.planning.indexes import fetch_indexes
from imgkit.planning.plan import Plan, PlannedPackage
from imgkit.recipe import Recipe, Shape
from imgkit.rootfs.install import installed_in, world_in


def make_plan(
    recipe: Recipe, arch: str, base: Base, cache: Cache, *, shape: Shape = "disk", allow_stale: bool = False
) -> Plan:
    """Fetch and verify the indexes, and solve for the recipe's packages.

    Args:
        shape: what the root filesystem is for, which decides the packages.
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.

    Raises:
        InputError: an index cannot be downloaded or trusted, is older than one seen before, or of another branch.
        RecipeError: packages are unknown, or cannot be installed together.
    """
    facts = recipe.architecture(arch)
    freshness = freshness_of(recipe, arch, base, cache, allow_stale=allow_stale)
    indexes = fetch_indexes(recipe, facts.alpine, base.keyring, cache)
    for index in indexes:
        freshness.check_index(index.artefact.url, index.name, index.description, index.date)
    standing, added = world_in(base.tree), recipe.wanted(arch, shape)
    candidates = [package for index in indexes for package in index.packages]
    installed = {record.package.name: record.package for record in installed_in(base.tree)}
    solution = solve(added, candidates, arch=facts.alpine, installed=installed, standing=standing)
    used = {package.repository for package in solution}
    for index in indexes:
        if index.repository in used:
            freshness.remember_index(index.name, index.date)
    return Plan(
        arch=arch,
        branch=recipe.branch,
        version=base.version,
        minirootfs=base.artefact,
        indexes=tuple(index.artefact for index in indexes),
        world=(*standing, *added),
        packages=tuple(PlannedPackage(package, f"{package.repository.url}/{package}.apk") for package in solution),
        shape=shape,
    )
