"""What every root filesystem is made of: a base, packages and a payload, fetched and verified, in this order::

base, plan = gathering.plan(request, spool)
plan, selection = gathering.packages(request, base, plan, packages_spool)
payload = gathering.payload(request, folder)
agent = gathering.agent_payload(request, agent_folder)
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgkit.fetch.cache import Cache
from imgkit.host.room import check_room
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, missing_packages
from imgkit.planning.indexes import providers
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.unpackedpackages import UnpackedPackages
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, Shape
from imgkit.rootfs.binaries.examine import BinaryFindings
from imgkit.rootfs.binaries.policy import apply_policy
from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.npm.prepare import Build
from imgkit.rootfs.npm.prepare import prepare as prepare_payload
from imgkit.rootfs.steps import PackageSet

if TYPE_CHECKING:
    from imgkit.registry.access import RegistryAccess


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
    """Download, verify and unpack the packages. The plan that is returned has the hashes of their files.

    What is kept from an earlier build is not downloaded, except for a lock: its signatures are checked again.

    Args:
        spool: a new folder, which takes the contents of packages if the cache cannot.

    Raises:
        HostError: there is not enough room for their contents.
    """
    cache, locked = request.cache, request.locked is not None
    unpacked = UnpackedPackages(cache.folder)
    kept = unpacked.take_all(missing_packages(plan, base), base)
    known = {} if locked else {name: package.sha256 for name, package in kept.items()}
    plan, files = fetch_packages(plan, base, cache, locked=locked, known=known)
    if locked:
        check_locked(plan, base, cache, files)
    chosen = tuple(planned.package for planned in plan.packages)
    needed = sum(package.installed_size for package in chosen if package.name in files.keys() - kept.keys())
    check_room(spool.parent, needed, "unpacking the packages")
    opened = unpacked.open_all(plan.packages, kept, files, base, spool)
    return plan, PackageSet(chosen, lambda package: opened[package.name], plan.world, KeptSteps(cache.folder))


def payload(request: RootRequest, folder: Path) -> Path | None:
    """Return the prepared payload; None if the payload of the overlay is used."""
    recipe = request.recipe
    return _prepared(request, recipe.agent_runner, recipe.agent_runner_build, folder)


def agent_payload(request: RootRequest, folder: Path) -> Path | None:
    """Return the prepared payload of the recipe's agent; None if it has none."""
    agent = request.recipe.agent
    return None if agent is None else _prepared(request, agent.payload, agent.build, folder)


def _prepared(request: RootRequest, source: Path | None, build: Build, folder: Path) -> Path | None:
    recipe, npm = request.recipe, request.cache.folder / "npm"
    if source is None:
        return None
    with suppress(OSError):  # its age counts from here (imgkit cache)
        os.utime(npm)
    return prepare_payload(
        source,
        folder,
        build=build,
        architecture=recipe.architecture(request.arch).alpine,
        allow_scripts=recipe.npm_scripts,
        allow_git=recipe.npm_git,
        offline=request.cache.offline,
        cache=npm,
    )


def judge(request: RootRequest, plan: Plan, base: Base, binaries: BinaryFindings) -> None:
    """Warn of programs in the payload that cannot run in the image, or refuse them, as the recipe says."""
    recipe = request.recipe
    apply_policy(
        binaries,
        recipe.payload_binaries,
        recipe.architecture(request.arch).alpine,
        partial(providers, plan, base, request.cache),
        copied="0" in _builds(recipe),
    )


def _builds(recipe: Recipe) -> set[Build]:
    """Return how the payloads of a recipe are built."""
    runner: set[Build] = set() if recipe.agent_runner is None else {recipe.agent_runner_build}
    return runner if recipe.agent is None or recipe.agent.payload is None else runner | {recipe.agent.build}
