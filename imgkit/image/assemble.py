"""Build one image. :func:`build` runs the steps in order and times each of them; other modules do the work::

result = build(BuildRequest(recipe, "amd64", Path("out"), cache, Options()))
print(result.image, result.build_id)
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgkit.disk.grub import make_boot_files
from imgkit.disk.layout import Layout, make_layout, sized_partitions
from imgkit.disk.regions import regions_of
from imgkit.disk.size import too_small
from imgkit.engines.chunks import map_disk
from imgkit.engines.convert import convert
from imgkit.engines.engineerrors import MAKE_ROOM
from imgkit.engines.interface import LaunchEngine
from imgkit.errors import HostError
from imgkit.fetch.cache import Cache
from imgkit.fetch.http import no_room
from imgkit.host import interrupts, process, scratch, wholefile
from imgkit.host.progress import Steps
from imgkit.image.manifest import Outputs, boot_names, describe, write_manifest
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.indexes import providers
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, parse_size
from imgkit.rootfs.binaries.policy import apply_policy
from imgkit.rootfs.compose import Composition, compose
from imgkit.rootfs.kernel import direct_boot_image
from imgkit.rootfs.npm.prepare import prepare as prepare_payload
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Tree
from imgkit.vm.qemu.machines import host_arch

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are URLs

_SCRATCH_PREFIX = ".imgkit-"  # how the names of scratch folders in the output folder begin
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class BuildRequest:
    """What to build and where to put it.

    Attributes:
        arch: imgkit's name of the architecture, ``amd64``.
        out: the folder for the results.
        engine: starts the engine that writes the disk.
        work: the folder for scratch files; None makes one in ``out``.
        locked: the plan of a lock file, which is built exactly; None makes a plan.
        allow_stale: warn of an old or misplaced index or minirootfs instead of refusing it.
        epoch: the time of what a build generates, in seconds since 1970 (SOURCE_DATE_EPOCH); None takes the plan's.
    """

    recipe: Recipe
    arch: str
    out: Path
    cache: Cache
    engine: LaunchEngine
    work: Path | None = None
    locked: Plan | None = None
    allow_stale: bool = False
    epoch: int | None = None


@dataclass(frozen=True)
class BuildResult:
    """The files that a build put into place.

    Attributes:
        build_id: equal for equal root filesystems.
        size: of the image file, in bytes.
        steps: how long each step took.
    """

    image: Path
    kernel: Path
    initramfs: Path
    manifest: Path
    build_id: str
    size: int
    steps: Steps


def build(request: BuildRequest) -> BuildResult:
    """Make one image. Nothing appears in ``out`` before all of it is there.

    Raises:
        ImgkitError: the build failed; the subclass says whose fault it is. No output file and no process is left.
    """
    recipe, arch, steps = request.recipe, request.arch, Steps()
    size = parse_size(recipe.size)
    _check_programs()
    with _workspace(request) as work, request.engine(_folder(work, "disk"), size) as engine:
        with steps.step("plan"):
            base, plan = _plan(request, work / "minirootfs")
        layout = _layout(recipe, arch, plan, size)
        engine.prepare(layout)
        engine.check()
        _check_size(plan, size)
        with steps.step("fetch packages"):
            plan, packages = _fetch_packages(request, base, plan, work / "packages")
        with steps.step("prepare the payload"):
            payload = _payload(request, work / "payload")
        engine.check()
        with steps.step("compose the root filesystem"):
            composition = _compose(request, base.tree, packages, payload, layout, plan.epoch)
            _judge(request, plan, base, composition)
        with steps.step("make the boot loader"):
            boot = make_boot_files(composition.tree, recipe.architecture(arch).grub_platforms, layout)
        written = engine.write(composition.tree, layout, boot, steps, composition.scripts.pending)
        with steps.step("map the disk"):
            disk = map_disk(written.disk, regions_of(layout))
        with steps.step("compress"):
            image_size = convert(written.disk, work / "image.qcow2", recipe.compression)
        _write_boot_files(composition, work)
        outputs = Outputs(disk, boot.esp, work / "image.qcow2", work / "vmlinuz", work / "initramfs")
        write_manifest(describe(recipe, plan, composition, layout, outputs), work / "manifest.json")
        with steps.step("put into place"):
            return _place(request, work, composition.build_id, image_size, steps)


def _check_programs() -> None:
    """Check early for the programs that are needed late.

    Raises:
        HostError: one of them is missing.
    """
    for program in ("grub-mkimage", "qemu-img"):
        if shutil.which(program) is None:
            raise process.missing(program)


@contextmanager
def _workspace(request: BuildRequest) -> Iterator[Path]:
    """Yield a folder for scratch files and results, which is removed when the block ends.

    Raises:
        HostError: the folder cannot be made, or the disk is full or fails during the block.
    """
    parent = request.work or request.out
    with ExitStack() as stack:
        try:
            for folder in (request.out, parent):
                stack.enter_context(scratch.parents(folder))
            work = stack.enter_context(scratch.folder(parent, _SCRATCH_PREFIX))
        except OSError as cause:
            hint = "choose another with " + ("WORK_DIR" if request.work else "--out")
            raise HostError(f"{cause.filename or parent}: {cause.strerror}", hint=hint) from cause
        with _disk_faults(parent):
            yield work


@contextmanager
def _disk_faults(folder: Path) -> Iterator[None]:
    """Turn every error of a full or broken disk in the block into HostError."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in _DISK_FAULTS:
            raise
        reason = "no space left" if no_room(cause) else cause.strerror
        where = cause.filename or folder
        raise HostError(f"{where}: {reason}", hint=MAKE_ROOM) from cause


def _folder(work: Path, name: str) -> Path:
    path = work / name
    path.mkdir()
    return path


def _plan(request: BuildRequest, spool: Path) -> tuple[Base, Plan]:
    """Return the minirootfs, and the plan of the lock file or a new one."""
    recipe, arch, cache, stale = request.recipe, request.arch, request.cache, request.allow_stale
    base = fetch_base(recipe, arch, cache, spool, locked=request.locked, allow_stale=stale)
    return base, request.locked or make_plan(recipe, arch, base, cache, allow_stale=stale)


def _layout(recipe: Recipe, arch: str, plan: Plan, size: int) -> Layout:
    """Return the layout of the disk.

    Its identifiers are derived from the recipe and the plan, so a repeated build makes the same disk.
    """
    seed = uuid.uuid5(_NAMESPACE, f"imgkit:{recipe.name}:{plan.digest}")
    return make_layout(sized_partitions(recipe.architecture(arch)), size, seed)


def _check_size(plan: Plan, size: int) -> None:
    """Refuse, before anything is downloaded, packages whose stated sizes are far too large for the disk.

    Raises:
        RecipeError: the packages need more than twice the disk's size. A smaller excess is found later.
    """
    stated = sum(planned.package.installed_size for planned in plan.packages)
    if stated > 2 * size:
        raise too_small(size, stated)


def _fetch_packages(request: BuildRequest, base: Base, plan: Plan, spool: Path) -> tuple[Plan, PackageSet]:
    """Download and verify the packages. The plan that is returned has their hashes."""
    plan, files = fetch_packages(plan, base, request.cache, locked=request.locked is not None)
    if request.locked is not None:
        check_locked(plan, base, request.cache, files)
    packages = tuple(planned.package for planned in plan.packages)
    return plan, PackageSet(packages, partial(open_planned, files, base, spool), plan.world)


def _payload(request: BuildRequest, folder: Path) -> Path | None:
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


def _compose(
    request: BuildRequest, minirootfs: Tree, packages: PackageSet, payload: Path | None, layout: Layout, epoch: int
) -> Composition:
    return compose(
        minirootfs,
        packages,
        request.recipe,
        request.arch,
        payload=payload,
        can_run=request.arch == host_arch(),
        root_uuid=layout.root.fs_uuid,
        epoch=epoch if request.epoch is None else request.epoch,
    )


def _judge(request: BuildRequest, plan: Plan, base: Base, composition: Composition) -> None:
    """Warn of programs in the payload that cannot run in the image, or refuse them, as the recipe says."""
    recipe = request.recipe
    apply_policy(
        composition.binaries,
        recipe.payload_binaries,
        recipe.architecture(request.arch).alpine,
        partial(providers, plan, base, request.cache),
        copied=recipe.agent_runner is not None and recipe.agent_runner_build == "0",
    )


def _write_boot_files(composition: Composition, work: Path) -> None:
    (work / "vmlinuz").write_bytes(direct_boot_image(composition.tree, composition.kernel))
    (work / "initramfs").write_bytes(composition.tree.read(composition.kernel.initramfs))


def _place(request: BuildRequest, work: Path, build_id: str, size: int, steps: Steps) -> BuildResult:
    """Rename all files into place, the image last: where the image is, the others are."""
    name, arch, out = request.recipe.name, request.arch, request.out
    kernel, initramfs = boot_names(request.recipe, arch)
    result = BuildResult(
        image=out / f"{name}-{arch}.qcow2",
        kernel=out / kernel,
        initramfs=out / initramfs,
        manifest=out / f"{name}-{arch}.manifest.json",
        build_id=build_id,
        size=size,
        steps=steps,
    )
    moves = {
        "vmlinuz": result.kernel,
        "initramfs": result.initramfs,
        "manifest.json": result.manifest,
        "image.qcow2": result.image,
    }
    with scratch.folder(out, _SCRATCH_PREFIX) as near:  # WORK_DIR may be on another filesystem
        for source in moves:
            shutil.move(work / source, near / source)
        placed = {near / source: target for source, target in moves.items()}
        wholefile.settle(placed)
        with scratch.alone(out), interrupts.held_back():
            wholefile.rename_together(placed)
    return result
