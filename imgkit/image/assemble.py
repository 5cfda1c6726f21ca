"""Build one image. :func:`build` runs the steps in order and times each of them; other modules do the work::

result = build(BuildRequest(recipe, "amd64", Path("out"), cache, Options()))
print(result.image, result.build_id)
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.disk.grub import BootFiles, arguments_in, make_boot_files
from imgkit.disk.layout import Layout, bare_layout, make_layout, sized_partitions
from imgkit.disk.regions import DiskMap
from imgkit.disk.size import too_small
from imgkit.engines.convert import MAX_VHD, convert_foreign, is_own
from imgkit.engines.interface import Engine, EngineName, ImageTarget, LaunchEngine, TreeFacts, WrittenDisk
from imgkit.errors import RecipeError
from imgkit.fetch.cache import Cache
from imgkit.fetch.pool import side_by_side
from imgkit.host import interrupts, process, scratch, wholefile
from imgkit.host.progress import Steps
from imgkit.image import gathering
from imgkit.image.buildid import ImageIdentity, disk_facts, identify
from imgkit.image.firecracker import firecracker_config
from imgkit.image.keptbootloader import image_or_take
from imgkit.image.manifest import Outputs, describe, describe_file, encoded, write_encoded
from imgkit.image.outputfiles import OutputFiles, others_of, output_files
from imgkit.image.workspace import SCRATCH_PREFIX, workspace
from imgkit.planning.plan import Plan
from imgkit.recipe import DiskOutput, ImageFormat, Recipe, Shape, parse_size
from imgkit.rootfs.compose import Composition, compose
from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.kernel import direct_boot_image, uncompressed_image
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import File, Tree
from imgkit.vm.qemu.machines import host_arch

if TYPE_CHECKING:
    from imgkit.registry.access import RegistryAccess

log = logging.getLogger("imgkit")

_MIB = 1 << 20
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
        output: a disk, or its root filesystem alone.
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
    output: DiskOutput = "disk"

    @property
    def shape(self) -> Shape:
        """The root filesystem is for a machine."""
        return "disk"

    @property
    def format(self) -> ImageFormat:
        """The format of the image file. A root filesystem is always raw."""
        return self.recipe.format if self.output == "disk" else "raw"

    @property
    def names(self) -> OutputFiles:
        """The names of the results."""
        return output_files(self.recipe, self.arch, self.output)


@dataclass(frozen=True)
class BuildResult:
    """The files that a build put into place.

    Attributes:
        build_id: equal for equal images (:mod:`imgkit.image.buildid`).
        firecracker: Firecracker's configuration, beside a root filesystem; None beside a disk.
        size: of the image file, in bytes.
        allocated: bytes that the image file takes on the host's disk, which are fewer where it has holes.
        steps: how long each step took.
    """

    image: Path
    kernel: Path
    initramfs: Path
    manifest: Path
    build_id: str
    size: int
    allocated: int
    steps: Steps
    firecracker: Path | None = None


def build(request: BuildRequest) -> BuildResult:
    """Make one image. Nothing appears in ``out`` before all of it is there.

    Raises:
        ImgkitError: the build failed; the subclass says whose fault it is. No output file and no process is left.
    """
    recipe, arch, steps = request.recipe, request.arch, Steps()
    size = parse_size(recipe.size)
    _check_format(request.format, size)
    with workspace(request.out, request.work) as work, request.engine(_folder(work, "disk"), size) as engine:
        _check_programs(request, engine.name)
        with steps.step("plan"):
            base, plan = gathering.plan(request, work / "minirootfs")
        layout = _layout(request, plan, size)
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
            composition = _compose(request, base.tree, packages, folders, layout, epoch, engine)
            gathering.judge(request, plan, base, composition.binaries)
        boot = _boot_loader(request, composition, layout, packages.kept, steps)
        with steps.step("hash the files"):
            facts = disk_facts(recipe, arch, plan, epoch, layout, boot, composition.scripts.pending)
            identity = identify(composition.tree, recipe.name, arch, facts, epoch=epoch)
        known = _facts(composition.tree, identity, epoch)
        written = engine.write(composition.tree, layout, boot, steps, composition.scripts.pending, known)
        outputs = Outputs(
            names=request.names,
            format=request.format,
            engine=engine.name,
            disk=_save(written, request, work, steps),
            esp=boot.esp,
            image=work / "image",
            kernel=work / "vmlinuz",
            initramfs=work / "initramfs",
        )

        def describe_rest() -> dict[str, str]:
            _write_boot_files(request, composition, work)
            return encoded(describe(recipe, plan, composition, identity, layout, outputs, base.image))

        with steps.step("put into place"):
            write_encoded(_meanwhile(describe_rest, outputs, layout), work / "manifest.json")
            return _place(request, work, identity.build_id, steps)


def _check_format(file_format: ImageFormat, size: int) -> None:
    """Refuse a size of the disk that the format of the file cannot have.

    Raises:
        RecipeError: the disk would get another size, or is too large.
    """
    if not is_own(file_format) and size % _MIB:
        raise RecipeError(f"format {file_format}: a disk of {size} bytes", hint="choose a size in whole MiB")
    if file_format == "vhd" and size > MAX_VHD:
        raise RecipeError(f"format vhd: a disk has {MAX_VHD >> 30} GiB at most", hint="choose vhdx, or a smaller size")


def _check_programs(request: BuildRequest, engine: EngineName) -> None:
    """Check early for a program that is needed late.

    Raises:
        HostError: it is missing.
    """
    converts = not is_own(request.format) or (request.format == "qcow2" and engine == "guestfs")
    if converts and shutil.which("qemu-img") is None:
        raise process.missing("qemu-img")


def _boot_loader(
    request: BuildRequest, composition: Composition, layout: Layout, kept: KeptSteps, steps: Steps
) -> BootFiles:
    """Make the boot loader of a disk. A root filesystem has none."""
    if request.output == "rootfs":
        return BootFiles()
    with steps.step("make the boot loader"):
        platforms = request.recipe.architecture(request.arch).grub_platforms
        return make_boot_files(composition.tree, platforms, layout, image_or_take(kept))


def _save(written: WrittenDisk, request: BuildRequest, work: Path, steps: Steps) -> DiskMap:
    """Write the image file, and return the map of the disk."""
    file_format = request.format
    if is_own(file_format):
        return written.save(ImageTarget(work / "image", file_format, request.recipe.compression), steps)
    raw = work / "disk.raw"
    disk_map = written.save(ImageTarget(raw, "raw"), steps)
    with steps.step(f"convert to {file_format}"):
        convert_foreign(raw, work / "image", file_format)
    raw.unlink()
    return disk_map


def _folder(work: Path, name: str) -> Path:
    path = work / name
    path.mkdir()
    return path


def _layout(request: BuildRequest, plan: Plan, size: int) -> Layout:
    """Return the layout of the disk.

    Its identifiers are derived from the recipe and the plan, so a repeated build makes the same disk.
    """
    recipe = request.recipe
    seed = uuid.uuid5(_NAMESPACE, f"imgkit:{recipe.name}:{plan.digest}")
    if request.output == "rootfs":
        return bare_layout(size, seed)
    return make_layout(sized_partitions(recipe.architecture(request.arch)), size, seed)


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
    engine: Engine,
) -> Composition:
    payload, agent = folders
    is_own_arch = request.arch == host_arch()
    return compose(
        minirootfs,
        packages,
        request.recipe,
        request.arch,
        payload=payload,
        agent=agent,
        can_run=is_own_arch and engine.runs_scripts,
        root_uuid=layout.root.fs_uuid,
        epoch=epoch,
        elsewhere="--engine guestfs runs them" if is_own_arch else None,
    )


def _facts(tree: Tree, identity: ImageIdentity, epoch: int) -> TreeFacts:
    """Return what is known of the files: their hashes, and the packages that they belong to."""
    records = identity.records
    hashes = {
        path: bytes.fromhex(records[f"/{path}"]["sha256"]) for path, node in tree.items() if isinstance(node, File)
    }
    return TreeFacts(hashes, {path[1:]: package for path, package in identity.owners.items()}, epoch)


def _write_boot_files(request: BuildRequest, composition: Composition, work: Path) -> None:
    """Write what a machine without firmware starts: kernel, initramfs, and beside a root filesystem a configuration."""
    tree, names = composition.tree, request.names
    image_of = direct_boot_image if request.output == "disk" else uncompressed_image
    (work / "vmlinuz").write_bytes(image_of(tree, composition.kernel))
    (work / "initramfs").write_bytes(tree.read(composition.kernel.initramfs))
    if names.firecracker is not None:
        arguments = arguments_in(tree.text("boot/grub/grub.cfg"))
        (work / "firecracker.json").write_text(firecracker_config(names, request.arch, arguments))


def _meanwhile(describe_rest: Callable[[], dict[str, str]], outputs: Outputs, layout: Layout) -> dict[str, str]:
    """Return the texts of the whole manifest. The image is hashed, and goes to the host's disk, at the same time."""

    def settle() -> dict[str, str]:
        wholefile.settle({outputs.image: outputs.image})
        return {}

    jobs = [settle, lambda: encoded(describe_file(outputs, layout)), describe_rest]
    return {key: text for part in side_by_side(jobs, workers=len(jobs)) for key, text in part.items()}


def _place(request: BuildRequest, work: Path, build_id: str, steps: Steps) -> BuildResult:
    """Rename all files into place, the image last: where the image is, the others are."""
    out, names = request.out, request.names
    status = (work / "image").stat()
    result = BuildResult(
        image=out / names.image,
        kernel=out / names.kernel,
        initramfs=out / names.initramfs,
        manifest=out / names.manifest,
        build_id=build_id,
        size=status.st_size,
        allocated=status.st_blocks * 512,
        steps=steps,
        firecracker=None if names.firecracker is None else out / names.firecracker,
    )
    moves = {
        "vmlinuz": result.kernel,
        "initramfs": result.initramfs,
        "manifest.json": result.manifest,
        **({} if result.firecracker is None else {"firecracker.json": result.firecracker}),
        "image": result.image,
    }
    with scratch.folder(out, SCRATCH_PREFIX) as near:  # WORK_DIR may be on another filesystem
        for source in moves:
            shutil.move(work / source, near / source)
        placed = {near / source: target for source, target in moves.items()}
        wholefile.settle(placed)
        with scratch.alone(out), interrupts.held_back():
            wholefile.rename_together(placed)
    for other in others_of(result.image):
        log.warning("%s: is of an earlier build; %s is about %s now", other, names.manifest, names.image)
    return result
