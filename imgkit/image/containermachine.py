"""A container image as a machine: its layers and a kernel of Alpine's, as a disk that QEMU starts directly.

    machine = container_machine(request)        # the second time for the same image, this is a look into the cache
    VM.boot(machine.disk, firmware="direct", kernel=machine.kernel, initrd=machine.initramfs, …)

docs/explanation/microvm.md describes the machine. Decision 11 says why the disk is an ext4 filesystem that is kept in
the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import SizedPartition, make_layout
from imgkit.engines.interface import ImageTarget, LaunchEngine
from imgkit.errors import HostError, InputError
from imgkit.fetch.cache import Cache
from imgkit.host import jsonfile, locks
from imgkit.host.progress import Steps
from imgkit.image.guestkernel import GuestKernel, fetch_kernel
from imgkit.image.machinetree import become_machine, has_agent
from imgkit.image.workspace import workspace
from imgkit.oci.applying import read_image, tree_of
from imgkit.oci.choosing import choose_image, layout_entries
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import MAX_DOCUMENT, ImageConfig, parse_config
from imgkit.oci.ocilayout import OciLayout
from imgkit.recipe import Recipe
from imgkit.rootfs.accounts import GROUP, PASSWD
from imgkit.rootfs.initramfs.machineinit import init_version
from imgkit.tree import Tree, TreeError

log = logging.getLogger("imgkit")

KERNEL_AGE = 7 * 86400.0
"""Seconds after which a newer kernel is looked for."""
_RETRY = 3600.0  # seconds after which that is tried again if it failed
MOST_MACHINES = 8
"""Machines that the cache keeps: those that were used last."""
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are URLs
_LEAST_DISK = 16 << 30  # bytes of the disk, which takes the room of its contents only
_MIB = 1 << 20
_VERSION = 1  # of the layout and the record; raise it when either changes
_MAX_ACCOUNTS = 4 << 20
_REMOVE = "remove its folder: the machine is then made anew"


class _MachineRecord(jsonfile.StrictModel):
    """``machine.json``, the file beside the disk of a machine.

    Attributes:
        version: of this format.
        agent: whether agentd is in the image.
        modules: the folder of the kernel's modules.
        kernel: the release of the kernel.
    """

    version: int
    agent: bool
    modules: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    kernel: Annotated[str, StringConstraints(min_length=1, max_length=200)]


@dataclass(frozen=True)
class MachineRequest:
    """Which image becomes a machine, and how.

    Attributes:
        layout: the image's layout.
        arch: imgkit's name of the architecture.
        recipe: decides where the kernel comes from.
        cache: where downloads and machines are kept.
        engine: starts the engine that writes the disk.
        reference: tag or digest of the image, for a layout with several; empty if there is one.
        allow_stale: warn of an old or misplaced index of the mirror instead of refusing it.
    """

    layout: OciLayout
    arch: str
    recipe: Recipe
    cache: Cache
    engine: LaunchEngine
    reference: str = ""
    allow_stale: bool = False


@dataclass(frozen=True)
class ContainerMachine:
    """A container image that can be booted.

    Attributes:
        disk: a raw disk image; a boot must not change it.
        kernel, initramfs: what QEMU starts.
        arguments: arguments of the kernel besides its console.
        config: the configuration of the image.
        accounts: a Tree with the image's etc/passwd and etc/group.
        agent: whether agentd is in the image.
    """

    disk: Path
    kernel: Path
    initramfs: Path
    arguments: str
    config: ImageConfig
    accounts: Tree
    agent: bool


@contextmanager
def container_machine(request: MachineRequest) -> Iterator[ContainerMachine]:
    """Make a machine of an image, or take the one that the cache has; it stays there during the block.

    Raises:
        InputError: the image is damaged or for another platform, or the kernel cannot be downloaded or trusted.
        HostError: the disk cannot be written on this host.
    """
    image = _choose(request)
    place = _place(request.cache)
    folder = place / _key(request, image)
    with locks.locked(place / f"{folder.name}.lock"):
        _update(request, image, folder)
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locks.acquire(holder, shared=True)
        os.utime(folder)
        _prune(place)
        yield _open(folder)
    finally:
        os.close(holder)


def _place(cache: Cache) -> Path:
    place = cache.folder / "machines"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        hint = "set IMGKIT_CACHE to a folder that can be written"
        raise HostError(f"{place}: {cause.strerror}", hint=hint) from cause
    return place


def _choose(request: MachineRequest) -> Descriptor:
    layout = request.layout
    return choose_image(
        layout, layout_entries(layout, request.reference), Platform("linux", request.arch), layout.folder
    )


def _key(request: MachineRequest, image: Descriptor) -> str:
    """Return a name made of everything that decides what the machine is, but the version of the kernel."""
    recipe = request.recipe
    source = (recipe.mirror, recipe.branch, recipe.version or "", recipe.kernel, str(recipe.release_key or ""))
    inputs = (str(_VERSION), image.digest, request.arch, init_version(), *source)
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:32]


def _update(request: MachineRequest, image: Descriptor, folder: Path) -> None:
    """Make a machine that is missing. One whose kernel is old is made anew, or kept if that fails."""
    record = folder / "machine.json"
    try:
        age = time.time() - record.stat().st_mtime
    except OSError:
        _make(request, image, folder)
        return
    if age < KERNEL_AGE or request.cache.offline:
        return
    try:
        _make(request, image, folder)
    except (InputError, HostError) as failure:
        log.warning("no newer kernel was found, so that of an earlier run is used: %s", failure)
        tried = time.time() - KERNEL_AGE + _RETRY
        os.utime(record, (tried, tried))


def _make(request: MachineRequest, image: Descriptor, folder: Path) -> None:
    """Write a machine into the cache. Nothing is there before all of it is."""
    steps = Steps()
    manifest, _ = read_image(request.layout, image)
    with workspace(folder.parent, None) as work:
        size = _disk_size(sum(layer.size for layer in manifest.layers))
        (work / "disk").mkdir()
        made = work / "machine"
        made.mkdir()
        with request.engine(work / "disk", size) as engine:
            layout = make_layout([SizedPartition("root", 0)], size, uuid.uuid5(_NAMESPACE, f"imgkit:{folder.name}"))
            engine.prepare(layout)
            with steps.step("fetch the kernel"):
                kernel = fetch_kernel(
                    request.recipe, request.arch, request.cache, work, allow_stale=request.allow_stale
                )
            with steps.step("apply the layers"):
                root = tree_of(request.layout, image, work / "layers")
            agent = has_agent(root.tree)
            _write_accounts(root.tree, made)
            modules = become_machine(root.tree, kernel.tree, kernel.kernel, epoch=kernel.epoch)
            disk = engine.write(root.tree, layout, BootFiles(), steps)
        disk.save(ImageTarget(made / "disk.raw", "raw"), steps)
        _write_kernel(kernel, made)
        (made / "config.json").write_bytes(request.layout.read(manifest.config.value))
        record = {"version": _VERSION, "agent": agent, "modules": modules, "kernel": kernel.kernel.release}
        (made / "machine.json").write_text(json.dumps(record))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    log.debug("%s", steps.table())


def _disk_size(compressed: int) -> int:
    """Return the size of a disk on which layers of ``compressed`` bytes have room, and programs to write as much."""
    return max(_LEAST_DISK, -(-compressed * 12 // _MIB) * _MIB)


def _write_kernel(kernel: GuestKernel, folder: Path) -> None:
    (folder / "vmlinuz").write_bytes(kernel.image)
    (folder / "initramfs").write_bytes(kernel.initramfs)


def _write_accounts(tree: Tree, folder: Path) -> None:
    """Keep the files that say who the users of the image are; they may be missing."""
    for path in (PASSWD, GROUP):
        with suppress(TreeError):
            (folder / path.rpartition("/")[2]).write_bytes(tree.read(path, _MAX_ACCOUNTS))


def _open(folder: Path) -> ContainerMachine:
    path = folder / "machine.json"
    record = jsonfile.read_json(path, 1 << 16)
    facts = jsonfile.checked(_MachineRecord, record, path, description="the record of a machine", hint=_REMOVE)
    config = parse_config(jsonfile.read_bytes(folder / "config.json", MAX_DOCUMENT), folder / "config.json")
    accounts = Tree()
    for name in (PASSWD, GROUP):
        file = folder / name.rpartition("/")[2]
        if file.exists():
            accounts.write(name, file.read_bytes())
    return ContainerMachine(
        disk=folder / "disk.raw",
        kernel=folder / "vmlinuz",
        initramfs=folder / "initramfs",
        arguments=f"imgkit_modules={facts.modules}",
        config=config,
        accounts=accounts,
        agent=facts.agent,
    )


def _prune(place: Path) -> None:
    """Remove the machines that were not used for longest, but those in use."""
    folders = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[MOST_MACHINES:]:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                locks.acquire(descriptor, timeout=0)
                shutil.rmtree(folder)
                (place / f"{folder.name}.lock").unlink(missing_ok=True)
            finally:
                os.close(descriptor)
