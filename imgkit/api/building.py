"""Load recipes, plan what images are made of, and build them.

::

    recipe = imgkit.load_recipe("recipes/core.py", size="8G")
    disk = imgkit.build(recipe, "amd64", out="out")
    print(disk.image, disk.build_id)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.api.enginechoice import EngineChoice, engine_for
from imgkit.engines.interface import LaunchEngine
from imgkit.fetch.cache import Cache, default_folder
from imgkit.host import scratch
from imgkit.host.gitfacts import GitFacts
from imgkit.host.sourcedate import source_date
from imgkit.image import assemble
from imgkit.image.assemble import BuildRequest, BuildResult
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.recipe import DiskOutput, Output, Recipe, Shape, load
from imgkit.vm.qemu.machines import host_arch

if TYPE_CHECKING:
    from imgkit.image.containerimage import ContainerResult
    from imgkit.registry.access import RegistryAccess
    from imgkit.vm.bootspec import StrPath


def load_recipe(path: StrPath, **fields: object) -> Recipe:
    """Load and check a recipe. Environment variables such as ALPINE_MIRROR are not looked at.

    Args:
        path: the recipe's file.
        fields: replace the recipe's: ``size="8G"``. Paths in them are relative to the recipe.

    Raises:
        RecipeError: the file is missing, is not Python, raises an exception, or has wrong values; every fault is in
            ``problems``.
        UsageError: all faults are in ``fields``.
    """
    return load(Path(path), fields, {name: name for name in fields})


def plan(
    recipe: Recipe,
    arch: str | None = None,
    *,
    shape: Shape = "disk",
    offline: bool = False,
    allow_stale: bool = False,
    access: RegistryAccess | None = None,
) -> Plan:
    """Find out exactly which files of the mirror an image is made of, and download them into the cache.

    Args:
        arch: ``amd64`` or ``arm64``; None takes this host's.
        shape: what the root filesystem is for, "disk" or "container".
        offline: take everything from the cache.
        allow_stale: warn of an index or minirootfs that is older than one seen before, instead of refusing it.
        access: how the registry of the recipe's base is reached; None for the usual way.

    Raises:
        InputError: the mirror cannot be reached or cannot be trusted.
        RecipeError: packages are unknown or cannot be installed together.
    """
    arch = arch or host_arch()
    return plans(recipe, arch, [shape], offline=offline, allow_stale=allow_stale, access=access)[0]


def plans(
    recipe: Recipe,
    arch: str,
    shapes: Sequence[Shape],
    *,
    offline: bool = False,
    allow_stale: bool = False,
    access: RegistryAccess | None = None,
) -> list[Plan]:
    """Return the plans of several root filesystems for one architecture, as :func:`plan` does."""
    cache = Cache(default_folder(), offline=offline)
    with scratch.folder() as folder:
        base = fetch_base(recipe, arch, cache, folder / "minirootfs", allow_stale=allow_stale, access=access)
        made = [make_plan(recipe, arch, base, cache, shape=shape, allow_stale=allow_stale) for shape in shapes]
        return [fetch_packages(plan, base, cache)[0] for plan in made]


def build(
    recipe: Recipe,
    arch: str | None = None,
    *,
    out: StrPath = "out",
    lock: StrPath | None = None,
    offline: bool = False,
    allow_stale: bool = False,
    work: StrPath | None = None,
    engine: EngineChoice | LaunchEngine | None = None,
    output: DiskOutput = "disk",
    access: RegistryAccess | None = None,
) -> BuildResult:
    """Build a disk image, or its root filesystem alone. Nothing appears in ``out`` before all of it is there.

    Args:
        arch: ``amd64`` or ``arm64``; None takes this host's.
        out: the folder for the results.
        lock: a lock file, which is built exactly; None builds what the mirror has now.
        offline: take everything from the cache.
        allow_stale: warn of an index or minirootfs that is older than one seen before, instead of refusing it.
        work: the folder for scratch files; None makes one in ``out``.
        engine: what makes the disk: "guestfs", "native", or "auto" for libguestfs where this host can use it and
            the native one elsewhere; None takes the variable IMGKIT_ENGINE, or else libguestfs.
        output: "disk", or "rootfs" for its root filesystem alone, which Firecracker and Cloud Hypervisor start.
        access: how the registry of the recipe's base is reached; None for the usual way.

    Raises:
        ImgkitError: the build failed; the subclass says whose fault it is. No output file and no process is left.
    """
    arch = arch or host_arch()
    request = BuildRequest(
        recipe,
        arch,
        Path(out),
        Cache(default_folder(), offline=offline),
        engine_for(engine) if engine is None or isinstance(engine, str) else engine,
        work=None if work is None else Path(work),
        locked=None if lock is None else lockfile.read(Path(lock), recipe, arch),
        allow_stale=allow_stale,
        epoch=source_date(os.environ),
        access=access,
        output=output,
    )
    return assemble.build(request)


def build_container(
    recipe: Recipe,
    arches: Sequence[str] | None = None,
    *,
    out: StrPath = "out",
    outputs: Sequence[Output] = ("oci",),
    lock: StrPath | None = None,
    offline: bool = False,
    allow_stale: bool = False,
    work: StrPath | None = None,
    sources: GitFacts | None = None,
    access: RegistryAccess | None = None,
) -> ContainerResult:
    """Build a container image for some architectures. Nothing appears in ``out`` before all of it is there.

    Args:
        arches: ``amd64``, ``arm64``; None takes this host's.
        outputs: the forms to write: "oci", "oci-archive", "docker-archive".
        sources: what git knows about the recipe, for labels of the image; None if that is nothing.
        out, lock, offline, allow_stale, work, access: as for :func:`build`.

    Raises:
        ImgkitError: the build failed; the subclass says whose fault it is. No output file and no process is left.
    """
    from imgkit.image import containerimage

    arches = arches or (host_arch(),)
    request = containerimage.ContainerRequest(
        recipe,
        arches,
        Path(out),
        Cache(default_folder(), offline=offline),
        outputs,
        work=None if work is None else Path(work),
        locked={} if lock is None else {arch: lockfile.read(Path(lock), recipe, arch, "container") for arch in arches},
        allow_stale=allow_stale,
        epoch=source_date(os.environ),
        sources=sources,
        access=access,
    )
    return containerimage.build_container(request)
