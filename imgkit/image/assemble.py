"""One build, as a table of contents: each step is a named, timed line; the work is done elsewhere."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imgkit.disk.grub import make_boot_files
from imgkit.disk.layout import Layout, make_layout, partition_specs
from imgkit.disk.regions import regions_of
from imgkit.disk.size import too_small
from imgkit.engines.convert import convert
from imgkit.engines.guestfs import engine as guestfs
from imgkit.engines.guestfs.channel import Options
from imgkit.engines.guestfs.chunks import map_disk
from imgkit.errors import HostError
from imgkit.fetch.cache import Cache
from imgkit.fetch.http import no_room
from imgkit.host import interrupts, process, scratch, wholefile
from imgkit.host.progress import Steps
from imgkit.image.manifest import Made, boot_names, describe
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.indexes import providers
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, parse_size
from imgkit.rootfs.binaries.verdict import judge
from imgkit.rootfs.compose import Composition, PackageSet, compose
from imgkit.rootfs.kernel import direct_boot_image
from imgkit.rootfs.npm.prepare import prepare as prepare_payload
from imgkit.vm.qemu.machines import host_arch

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are URLs

_SCRATCH = ".imgkit-"  # how the names of scratch folders in the output folder begin
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class BuildRequest:
    """What to build and where to put it.

    Attributes:
        out: folder of the results.
        work: folder for scratch files; None makes one in ``out``.
        appliance: how the appliance runs.
        locked: build exactly this plan; None makes one.
        allow_stale: warn of an old or misplaced index or minirootfs instead of refusing it.
        epoch: seconds since 1970 for what a build generates (SOURCE_DATE_EPOCH); None takes the plan's.
    """

    recipe: Recipe
    arch: str
    out: Path
    cache: Cache
    appliance: Options
    work: Path | None = None
    locked: Plan | None = None
    allow_stale: bool = False
    epoch: int | None = None


@dataclass(frozen=True)
class BuildResult:
    """Where everything is, and what it is."""

    image: Path
    kernel: Path
    initramfs: Path
    manifest: Path
    build_id: str
    size: int
    steps: Steps = field(compare=False)


def build(request: BuildRequest) -> BuildResult:
    """Make one image. Nothing appears in ``out`` before all of it is there.

    Raises:
        ImgkitError: of the kind whose fault it is; no output file is left then, and no process.
    """
    recipe, arch, steps = request.recipe, request.arch, Steps()
    size = parse_size(recipe.size)
    _check_programs()
    with _workspace(request) as work, ExitStack() as stack:
        engine = stack.enter_context(guestfs.launch(_folder(work, "disk"), size, request.appliance))
        with steps.step("plan"):
            stale = request.allow_stale
            base = fetch_base(
                recipe, arch, request.cache, work / "minirootfs", locked=request.locked, allow_stale=stale
            )
            plan = request.locked or make_plan(recipe, arch, base, request.cache, allow_stale=stale)
        layout = _layout(recipe, arch, plan, size)
        engine.prepare(layout)
        engine.check()
        _check_size(plan, size)
        with steps.step("fetch packages"):
            plan, files = fetch_packages(plan, base, request.cache, locked=request.locked is not None)
            if request.locked is not None:
                check_locked(plan, base, request.cache, files)
        with steps.step("prepare the payload"):
            payload = _payload(request, work)
        engine.check()
        with steps.step("compose the root filesystem"):
            selection = PackageSet(
                tuple(each.package for each in plan.packages),
                partial(open_planned, files, base, work / "packages"),
                plan.world,
            )
            made = compose(
                base.tree,
                selection,
                recipe,
                arch,
                payload=payload,
                can_run=arch == host_arch(),
                root_uuid=layout.root.fs_uuid,
                epoch=plan.epoch if request.epoch is None else request.epoch,
            )
            _judge(request, plan, base, made)
        with steps.step("make the boot loader"):
            boot = make_boot_files(made.tree, recipe.architecture(arch).grub_platforms, layout)
        written = engine.write(made.tree, layout, boot, steps, made.scripts.pending)
        with steps.step("map the disk"):
            disk = map_disk(written.disk, regions_of(layout))
        with steps.step("compress"):
            image_size = convert(written.disk, work / "image.qcow2", recipe.compression)
        _write_boot_files(made, work)
        results = Made(disk, boot.esp, work / "image.qcow2", work / "vmlinuz", work / "initramfs")
        _write_manifest(describe(recipe, plan, made, layout, results), work / "manifest.json")
        with steps.step("put into place"):
            return _place(request, work, made, image_size, steps)


def _check_size(plan: Plan, size: int) -> None:
    """Refuse, before anything is downloaded, packages that say themselves that they cannot fit by far.

    Raises:
        RecipeError: so it is. What is less clear is measured when the Tree is complete.
    """
    stated = sum(each.package.installed_size for each in plan.packages)
    if stated > 2 * size:
        raise too_small(size, stated)


@contextmanager
def _workspace(request: BuildRequest) -> Iterator[Path]:
    """A folder for scratch files that goes when the block ends. It is where the results are made, too.

    Raises:
        HostError: it cannot be made.
    """
    parent = request.work or request.out
    with ExitStack() as stack:
        try:
            for folder in (request.out, parent):
                stack.enter_context(scratch.parents(folder))
            work = stack.enter_context(scratch.folder(parent, _SCRATCH))
        except OSError as cause:
            hint = "choose another with " + ("WORK_DIR" if request.work else "--out")
            raise HostError(f"{cause.filename or parent}: {cause.strerror}", hint=hint) from cause
        with _host_faults(parent):
            yield work


@contextmanager
def _host_faults(folder: Path) -> Iterator[None]:
    """A disk that is full or broken is the host's fault, whatever was being written."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in _DISK_FAULTS:
            raise
        what = "no space left" if no_room(cause) else cause.strerror
        where = cause.filename or folder
        raise HostError(f"{where}: {what}", hint="make room, or choose another folder with --out") from cause


def _check_programs() -> None:
    """What is missed only at the end of a build is looked for before it begins.

    Raises:
        HostError: it is missing.
    """
    for program in ("grub-mkimage", "qemu-img"):
        if shutil.which(program) is None:
            raise process.missing(program)


def _folder(work: Path, name: str) -> Path:
    path = work / name
    path.mkdir()
    return path


def _payload(request: BuildRequest, work: Path) -> Path | None:
    recipe = request.recipe
    if recipe.agent_runner is None:
        return None
    return prepare_payload(
        recipe.agent_runner,
        work / "payload",
        build=recipe.agent_runner_build,
        architecture=recipe.architecture(request.arch).alpine,
        allow_scripts=recipe.npm_scripts,
        allow_git=recipe.npm_git,
        offline=request.cache.offline,
        cache=request.cache.folder / "npm",
    )


def _judge(request: BuildRequest, plan: Plan, base: Base, made: Composition) -> None:
    recipe = request.recipe
    judge(
        made.binaries,
        recipe.payload_binaries,
        recipe.architecture(request.arch).alpine,
        partial(providers, plan, base, request.cache),
        copied=recipe.agent_runner is not None and recipe.agent_runner_build == "0",
    )


def _layout(recipe: Recipe, arch: str, plan: Plan, size: int) -> Layout:
    """Identifiers follow from the recipe's name and the plan, so that a build repeated is the same disk."""
    seed = uuid.uuid5(_NAMESPACE, f"imgkit:{recipe.name}:{plan.digest}")
    return make_layout(partition_specs(recipe.architecture(arch)), size, seed)


def _write_boot_files(made: Composition, work: Path) -> None:
    (work / "vmlinuz").write_bytes(direct_boot_image(made.tree, made.kernel))
    (work / "initramfs").write_bytes(made.tree.read(made.kernel.initramfs))


def _write_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Names of files that are not UTF-8 are written as escapes, which JSON has for everything."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.write_bytes(text.encode(errors="backslashreplace"))


def _place(request: BuildRequest, work: Path, made: Composition, size: int, steps: Steps) -> BuildResult:
    """Rename everything into place, the image last: where it is, the rest is."""
    name, arch, out = request.recipe.name, request.arch, request.out
    kernel, initramfs = boot_names(request.recipe, arch)
    result = BuildResult(
        image=out / f"{name}-{arch}.qcow2",
        kernel=out / kernel,
        initramfs=out / initramfs,
        manifest=out / f"{name}-{arch}.manifest.json",
        build_id=made.build_id,
        size=size,
        steps=steps,
    )
    moves = {
        "vmlinuz": result.kernel,
        "initramfs": result.initramfs,
        "manifest.json": result.manifest,
        "image.qcow2": result.image,
    }
    with scratch.folder(out, _SCRATCH) as near:  # WORK_DIR may be on another filesystem
        for source in moves:
            shutil.move(work / source, near / source)
        placed = {near / source: target for source, target in moves.items()}
        wholefile.settle(placed)
        with scratch.alone(out), interrupts.held_back():
            wholefile.rename_together(placed)
    return result
