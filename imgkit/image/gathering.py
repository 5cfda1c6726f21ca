"""What every root filesystem is made of: a base, packages and a payload, fetched and verified, in this order::

base, plan = gathering.plan(request, spool)
plan, selection = gathering.packages(request, base, plan, packages_spool)
payload = gathering.payload(request, folder)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Protocol

from imgkit.fetch.cache import Cache
from imgkit.host.room import check_room
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.indexes import providers
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, Shape
from imgkit.registry.access import RegistryAccess
from imgkit.rootfs.binaries.examine import BinaryFindings
from imgkit.rootfs.binaries.policy import apply_policy
from imgkit.rootfs.npm.prepare import prepare as prepare_payload
from imgkit.rootfs.steps import PackageSet


class RootRequest(Protocol):
    """The part of a request for a build that decides what the root filesystem is made of."""

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        ...

    @property
    def arch(self) -> str:
        """imgkit's name of the architecture, ``amd64``."""
        ...

    @property
    def shape(self) -> Shape:
        """What the root filesystem is for."""
        ...

    @property
    def cache(self) -> Cache:
        """Where downloads are kept."""
        ...

    @property
    def locked(self) -> Plan | None:
        """The plan of a lock file, which is built exactly; None makes a plan."""
        ...

    @property
    def access(self) -> RegistryAccess | None:
        """How the registry of the recipe's base is reached; None for the usual way."""
        ...

    @property
    def allow_stale(self) -> bool:
        """Whether to warn of an old or misplaced index or minirootfs instead of refusing it."""
        ...


def plan(request: RootRequest, spool: Path) -> tuple[Base, Plan]:
    """Return the base, and the plan of the lock file or a new one.

    Args:
        spool: a new file, which takes the contents of the base.
    """
    recipe, arch, cache, stale = request.recipe, request.arch, request.cache, request.allow_stale
    base = fetch_base(recipe, arch, cache, spool, locked=request.locked, allow_stale=stale, access=request.access)
    return base, request.locked or make_plan(recipe, arch, base, cache, shape=request.shape, allow_stale=stale)


def packages(request: RootRequest, base: Base, plan: Plan, spool: Path) -> tuple[Plan, PackageSet]:
    """Download and verify the packages. The plan that is returned has their hashes.

    Raises:
        HostError: there is not enough room for their contents.
    """
    plan, files = fetch_packages(plan, base, request.cache, locked=request.locked is not None)
    if request.locked is not None:
        check_locked(plan, base, request.cache, files)
    chosen = tuple(planned.package for planned in plan.packages)
    needed = sum(package.installed_size for package in chosen if package.name in files)
    check_room(spool.parent, needed, "unpacking the packages")
    return plan, PackageSet(chosen, partial(open_planned, files, base, spool), plan.world)


def payload(request: RootRequest, folder: Path) -> Path | None:
    """Return the prepared payload; None if the payload of the overlay is used."""
    recipe = request.recipe
    if recipe.agent_runner is None:
        return None
    return prepare_payload(
        recipe.agent_runner,
        folder,
        build=recipe.agent_runner_build,
        architecture=recipe.architecture(request.arch).alpine,
        allow_scripts=recipe.npm_scripts,
        allow_git=recipe.npm_git,
        offline=request.cache.offline,
        cache=request.cache.folder / "npm",
    )


def judge(request: RootRequest, plan: Plan, base: Base, binaries: BinaryFindings) -> None:
    """Warn of programs in the payload that cannot run in the image, or refuse them, as the recipe says."""
    recipe = request.recipe
    apply_policy(
        binaries,
        recipe.payload_binaries,
        recipe.architecture(request.arch).alpine,
        partial(providers, plan, base, request.cache),
        copied=recipe.agent_runner is not None and recipe.agent_runner_build == "0",
    )
