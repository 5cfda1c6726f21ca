"""From what the caller wants booted to the description of a machine: files looked up, private copies made."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgkit.disk import diskimage
from imgkit.errors import HostError, UsageError
from imgkit.vm import consolelog
from imgkit.vm.qemu import argv, firmware, machines
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.shares.quotas import Quotas

NETWORKS = ("none", "user", "restricted")


@dataclass(frozen=True)
class Boot:
    """What is booted and how; see :meth:`VM.boot` for the fields."""

    image: Path | None
    arch: str
    firmware: str = "bios"
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str | None = None
    memory_mib: int | None = None
    cpus: int = 2
    accelerator: str = "auto"
    cpu: str | None = None
    shares: Mapping[str, Path] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()
    format: str | None = None
    ipc: str = "file"
    config: bytes | None = None
    network: str = "user"
    allow: tuple[str, ...] = ()
    style: str = "harness"
    bus: str = "virtio-blk"
    writable: bool = False
    root_port: bool = False
    console: Path | None = None
    extra: tuple[str, ...] = ()
    quotas: Quotas = field(default_factory=Quotas)


def spec(what: Boot, verdict: Accelerator, folder: Path) -> VmSpec:
    """The machine for ``what``; ``folder`` is private and gets the config drive, variable store, console, ipc share.

    Raises:
        HostError: a file, folder or the firmware is missing. UsageError: a share's name or the mix is wrong, or the
            console is where the guest may write.
        InputError: the image is of a format that is not booted.
    """
    config = folder / "config.iso" if what.config is not None else None
    if config is not None and what.config is not None:
        config.touch(0o600)
        config.write_bytes(what.config)
    flash = None
    if what.firmware == "uefi":
        machines.machine(what.arch)
        flash = firmware.private_copy(firmware.find(what.arch), folder)
    shares = _shares(what, folder)
    return VmSpec(
        arch=what.arch,
        disk=None if what.image is None else _disk(what, what.image),
        console=(folder / "console.log" if what.console is None else _console(what.console, shares)).resolve(),
        firmware=what.firmware,
        flash=flash,
        kernel=None if what.kernel is None else _kernel(what.kernel),
        initrd=None if what.initrd is None else _file(what.initrd),
        command_line=what.command_line,
        cpus=what.cpus,
        accelerator=verdict.argument,
        cpu=what.cpu or verdict.cpu,
        shares=shares,
        config=config,
        network=what.network == "user",
        style=what.style,
        sandbox=sys.platform == "linux",
        extra=what.extra,
    )


def network_kind(*, network: str | bool, allow: Sequence[str]) -> str:
    """Which of "none", "user" and "restricted" is meant; True and False are the first two's older names.

    Raises:
        UsageError: it is none of them, or there are rules for a network that has no rules.
    """
    kind = {True: "user", False: "none"}.get(network, network) if isinstance(network, bool) else network
    if kind not in NETWORKS:
        raise UsageError(f"{kind}: unknown network", hint=f"known are {', '.join(NETWORKS)}")
    if allow and kind != "restricted":
        raise UsageError("--allow is for a restricted network", hint="--network restricted")
    return kind


def _shares(what: Boot, folder: Path) -> tuple[Share, ...]:
    chosen = dict(what.shares)
    if what.ipc == "file" and "ipc" not in chosen:
        chosen = {"ipc": folder / "ipc", **chosen}
        chosen["ipc"].mkdir()
    if what.ipc == "serial" and "ipc" in chosen:
        raise UsageError("a machine in serial mode has no ipc share")
    for tag, path in chosen.items():
        argv.check_tag(tag)
        if not path.is_dir():
            raise HostError(f"{path}: no such folder to share as {tag}")
    if not what.read_only <= chosen.keys() - {"ipc"}:
        names = ", ".join(sorted(what.read_only - (chosen.keys() - {"ipc"})))
        raise UsageError(f"{names}: no share that can be read-only")
    return tuple(Share(tag, path.resolve(), tag in what.read_only) for tag, path in chosen.items())


def _console(path: Path, shares: Sequence[Share]) -> Path:
    """``path``, unless a guest decides what is there: it could lead the console into any file of the host."""
    try:
        passed = [folder.stat() for folder in consolelog.folders_on_the_way(path)]
    except OSError as cause:
        raise HostError(f"{path}: cannot be looked up: {cause.strerror}") from cause
    for share in shares:
        if not share.read_only and any(os.path.samestat(share.path.stat(), folder) for folder in passed):
            raise UsageError(
                f"{path}: a console cannot be in {share.path}, where the guest may write",
                hint="a file outside of the shares",
            )
    return path


def _disk(what: Boot, image: Path) -> Disk:
    path = _file(image)
    return Disk(path, what.format or diskimage.format_of(path), what.bus, what.writable)


def _file(path: Path) -> Path:
    """An absolute path: a name with a colon in it would be a protocol to QEMU."""
    if not path.is_file():
        raise HostError(f"{path}: no such file")
    return path.resolve()


def _kernel(path: Path) -> Path:
    """A kernel that QEMU can start: before 8.1 it hangs on a compressed EFI image (zboot) without a word."""
    with _file(path).open("rb") as source:
        if source.read(8)[4:] == b"zimg":
            raise HostError(
                f"{path}: a compressed EFI kernel, which QEMU cannot start directly",
                hint="use the unpacked Image that a build leaves beside the disk image",
            )
    return path.resolve()
