"""Build one image. :func:`build` runs the steps in order and times each of them; other modules do the work::

result = build(BuildRequest(recipe, "amd64", Path("out"), cache, Options()))
print(result.image, result.build_id)
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.disk.grub import make_boot_files
from imgkit.disk.layout import Layout, make_layout, sized_partitions
from imgkit.disk.size import too_small
from imgkit.engines.interface import ImageTarget, LaunchEngine, TreeFacts
from imgkit.fetch.cache import Cache
from imgkit.host import interrupts, process, scratch, wholefile
from imgkit.host.progress import Steps
from imgkit.image import gathering
from imgkit.image.buildid import ImageIdentity, disk_facts, identify
from imgkit.image.manifest import Outputs, boot_names, describe, write_manifest
from imgkit.image.workspace import SCRATCH_PREFIX, workspace
from imgkit.planning.plan import Plan
from imgkit.recipe import Recipe, Shape, parse_size
from imgkit.rootfs.compose import Composition, compose
from imgkit.rootfs.kernel import direct_boot_image
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import File, Tree
from imgkit.vm.qemu.machines import host_arch

if TYPE_CHECKING:
    from imgkit.registry.access import RegistryAccess

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are URLs


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
        access: how the registry of the recipe's base is reached; None for the usual way.
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
    access: RegistryAccess | None = None

    @property
    def shape(self) -> Shape:
        """The root filesystem is for a machine."""
        return "disk"


@dataclass(frozen=True)
class BuildResult:
    """The files that a build put into place.

    Attributes:
        build_id: equal for equal images (:mod:`imgkit.image.buildid`).
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
    with workspace(request.out, request.work) as work, request.engine(_folder(work, "disk"), size) as engine:
        with steps.step("plan"):
            base, plan = gathering.plan(request, work / "minirootfs")
        layout = _layout(recipe, arch, plan, size)
        engine.prepare(layout)
        engine.check()
        _check_size(plan, size)
        with steps.step("fetch packages"):
            plan, packages = gathering.packages(request, base, plan, work / "packages")
        with steps.step("prepare the payload"):
            folders = gathering.payload(request, work / "payload"), gathering.agent_payload(request, work / "agent")
        engine.check()
        with steps.step("compose the root filesystem"):
            epoch = plan.epoch if request.epoch is None else request.epoch
            composition = _compose(request, base.tree, packages, folders, layout, epoch)
            gathering.judge(request, plan, base, composition.binaries)
        with steps.step("make the boot loader"):
            boot = make_boot_files(composition.tree, recipe.architecture(arch).grub_platforms, layout)
        with steps.step("hash the files"):
            facts = disk_facts(recipe, arch, plan, epoch, layout, boot, composition.scripts.pending)
            identity = identify(composition.tree, recipe.name, arch, facts, epoch=epoch)
        known = _facts(composition.tree, identity, epoch)
        written = engine.write(composition.tree, layout, boot, steps, composition.scripts.pending, known)
        disk = written.save(ImageTarget(work / "image.qcow2", compression=recipe.compression), steps)
        _write_boot_files(composition, work)
        outputs = Outputs(disk, boot.esp, work / "image.qcow2", work / "vmlinuz", work / "initramfs")
        manifest = describe(recipe, plan, composition, identity, layout, outputs, base.image)
        write_manifest(manifest, work / "manifest.json")
        with steps.step("put into place"):
            return _place(request, work, identity.build_id, steps)


def _check_programs() -> None:
    """Check early for a program that is needed late.

    Raises:
        HostError: it is missing.
    """
    if shutil.which("qemu-img") is None:
        raise process.missing("qemu-img")


def _folder(work: Path, name: str) -> Path:
    path = work / name
    path.mkdir()
    return path


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


def _compose(
    request: BuildRequest,
    minirootfs: Tree,
    packages: PackageSet,
    folders: tuple[Path | None, Path | None],
    layout: Layout,
    epoch: int,
) -> Composition:
    payload, agent = folders
    return compose(
        minirootfs,
        packages,
        request.recipe,
        request.arch,
        payload=payload,
        agent=agent,
        can_run=request.arch == host_arch(),
        root_uuid=layout.root.fs_uuid,
        epoch=epoch,
    )


def _facts(tree: Tree, identity: ImageIdentity, epoch: int) -> TreeFacts:
    """Return what is known of the files: their hashes, and the packages that they belong to."""
    records = identity.records
    hashes = {
        path: bytes.fromhex(records[f"/{path}"]["sha256"]) for path, node in tree.items() if isinstance(node, File)
    }
    return TreeFacts(hashes, {path[1:]: package for path, package in identity.owners.items()}, epoch)


def _write_boot_files(composition: Composition, work: Path) -> None:
    (work / "vmlinuz").write_bytes(direct_boot_image(composition.tree, composition.kernel))
    (work / "initramfs").write_bytes(composition.tree.read(composition.kernel.initramfs))


def _place(request: BuildRequest, work: Path, build_id: str, steps: Steps) -> BuildResult:
    """Rename all files into place, the image last: where the image is, the others are."""
    name, arch, out = request.recipe.name, request.arch, request.out
    kernel, initramfs = boot_names(request.recipe, arch)
    result = BuildResult(
        image=out / f"{name}-{arch}.qcow2",
        kernel=out / kernel,
        initramfs=out / initramfs,
        manifest=out / f"{name}-{arch}.manifest.json",
        build_id=build_id,
        size=(work / "image.qcow2").stat().st_size,
        steps=steps,
    )
    moves = {
        "vmlinuz": result.kernel,
        "initramfs": result.initramfs,
        "manifest.json": result.manifest,
        "image.qcow2": result.image,
    }
    with scratch.folder(out, SCRATCH_PREFIX) as near:  # WORK_DIR may be on another filesystem
        for source in moves:
            shutil.move(work / source, near / source)
        placed = {near / source: target for source, target in moves.items()}
        wholefile.settle(placed)
        with scratch.alone(out), interrupts.held_back():
            wholefile.rename_together(placed)
    return result
