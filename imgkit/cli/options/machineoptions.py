"""The options of ``boot`` and ``run`` that describe a machine, and the machine that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.cli import machinechecks
from imgkit.cli.options import environmentoptions, repeatedoptions
from imgkit.disk import diskimage
from imgkit.disk.diskimage import Format
from imgkit.engines.imagefile import image_info
from imgkit.errors import InputError, UsageError
from imgkit.host import lookup
from imgkit.verification.beside import boot_files
from imgkit.vm.bootspec import NETWORKS, BootSpec, check_network
from imgkit.vm.net import allowlist
from imgkit.vm.qemu import portforward
from imgkit.vm.qemu.argv import FirmwareKind
from imgkit.vm.qemu.machines import MACHINE_KINDS, MACHINES, Arch, check_machine, guess_arch, machine
from imgkit.vm.running import VM
from imgkit.vm.shares import quotas


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a machine."""
    _image_arguments(parser)
    _hardware_arguments(parser)
    repeatedoptions.add(
        parser,
        "--share",
        metavar="TAG=DIR[:ro]",
        help="folder, at /mnt/TAG (work: to work in; ipc: for requests, in place of a private one), :ro to read only; "
        "may be repeated",
    )
    _network_arguments(parser)
    environmentoptions.arguments(parser)
    parser.add_argument(
        "--no-wait", action="store_true", help="do not wait for the guest's host name, loopback device and network"
    )
    repeatedoptions.add(
        parser,
        "--quota",
        metavar="NAME=N",
        help="what the guest may take: ipc, share, disk (bytes, or with K, M, G, T), ipc-files, share-files, "
        "time (seconds of a request); N may be none; may be repeated",
    )
    parser.add_argument("--console", type=Path, metavar="FILE", help="append the serial console to this file")


def _image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is booted, and how."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="qcow2 or raw image; it is not changed")
    parser.add_argument("--arch", choices=sorted(MACHINES), help="architecture (default: from the image's name)")
    parser.add_argument("--firmware", choices=["bios", "uefi", "direct"], help="default: bios on amd64, uefi on arm64")
    parser.add_argument(
        "--machine",
        choices=MACHINE_KINDS,
        default="standard",
        help="microvm: without firmware and PCI, boots directly and sooner; amd64 only (default: standard)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="S",
        help="seconds to boot in, not for the command (default: 180)",
    )


def _hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """Add processors and memory."""
    parser.add_argument("--accel", choices=["auto", "kvm", "hvf", "tcg"], default="auto", help="default: what works")
    parser.add_argument("--cpu", metavar="MODEL", help="QEMU's CPU model")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="virtual processors (default: 2)")
    parser.add_argument("--memory", type=int, metavar="MIB", help="default: 4096, less where the host has less")


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the guest reaches, and what reaches it."""
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="user",
        help="user (default): whatever the host reaches, its own services included; restricted: what --allow names",
    )
    repeatedoptions.add(
        parser,
        "--allow",
        metavar="HOST:PORT",
        help="host, *.domain or address that a restricted network reaches; may be repeated",
    )
    repeatedoptions.add(
        parser,
        "--publish",
        metavar="[ADDR:]HOST:GUEST",
        help="let a port of this host lead to a port of the guest, on 127.0.0.1 unless an address is named; 0 takes a "
        "free port and says which, /udp behind it is for UDP; may be repeated",
    )


@dataclass(frozen=True)
class BootTarget:
    """What a machine is booted from.

    Attributes:
        image: the disk.
        arch: imgkit's name of the architecture.
        firmware: what starts the kernel.
        kernel, initrd, command_line: for a direct boot; ``command_line`` None is the usual one of disk images.
        format: format of the disk; None determines it from the first bytes.
    """

    image: Path
    arch: Arch
    firmware: FirmwareKind = "direct"
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str | None = None
    format: Format | None = None


def boot(
    options: argparse.Namespace,
    shares: dict[str, Path] | None = None,
    *,
    before: Callable[[Sequence[Path]], object] = list,
    terminals: bool = False,
) -> AbstractContextManager[VM]:
    """Boot the machine that ``options`` describe. It is ready when the ``with`` block begins.

    Args:
        shares: folders that other options share, by their tags.
        before: called with the files that will be booted, before any program opens them: the image, and for a direct
            boot the kernel and the initramfs.
        terminals: whether terminals can be opened on it.

    Raises:
        UsageError: an option is wrong, or two options contradict one another.
        InputError: the image or a file beside it is missing or damaged.
        HostError: this host cannot run the machine.
        BootError: the guest did not come up.
    """
    check(options)
    # An image that refers to other files of the host is refused: QEMU would show them to the guest.
    image_info(options.image)
    target = _target(options)
    config = environmentoptions.config_drive(options)
    spec = specification(options, target, shares or {}, config)
    spec = replace(spec, terminals=terminals)
    before([path for path in (target.image, target.kernel, target.initrd) if path is not None])
    return VM.boot(spec, timeout=options.timeout, settle=not options.no_wait)


def _target(options: argparse.Namespace) -> BootTarget:
    """Return the disk image that ``options`` name, with the files beside it that its firmware needs."""
    record = machine(options.arch or guess_arch(options.image))
    check_machine(options.machine, record.arch, options.firmware)
    machinechecks.check_arch(options.image, options.arch)
    bare = diskimage.is_filesystem(options.image)
    usual: FirmwareKind = "direct" if bare or options.machine == "microvm" else record.firmware
    firmware: FirmwareKind = options.firmware or usual
    if bare and firmware != "direct":
        message = f"{options.image}: a root filesystem without a boot loader, which no {firmware} can start"
        raise UsageError(message, hint="leave out --firmware: its kernel is started directly")
    if firmware == "bios" and record.arch != "amd64":
        raise UsageError(f"{record.arch} has no BIOS", hint="--firmware uefi or --firmware direct")
    kernel, initrd = _beside(options.image, record.arch) if firmware == "direct" else (None, None)
    line = record.command_line("/dev/vda") if bare else None
    return BootTarget(options.image, record.arch, firmware, kernel, initrd, line)


def specification(
    options: argparse.Namespace, target: BootTarget, shares: dict[str, Path], config: bytes | None
) -> BootSpec:
    """Return the machine that ``options`` describe, booted from ``target``.

    Args:
        shares: folders that other options share, by their tags.
        config: the config drive.

    Raises:
        UsageError: an option is wrong, or two options contradict one another.
    """
    folders, read_only = _folders(options.share, shares)
    return BootSpec(
        target.image,
        arch=target.arch,
        machine=options.machine,
        firmware=target.firmware,
        kernel=target.kernel,
        initrd=target.initrd,
        command_line=target.command_line,
        format=target.format,
        memory_mib=options.memory,
        cpus=options.cpus,
        cpu=options.cpu,
        accelerator=options.accel,
        shares=folders,
        read_only=read_only,
        network=options.network,
        allow=options.allow,
        publish=options.publish,
        config=config,
        console=options.console,
        quotas=quotas.parse(options.quota),
    )


def _folders(words: list[str], shares: dict[str, Path]) -> tuple[dict[str, Path], set[str]]:
    """Return the shared folders by their tags, and the tags of those that are read-only.

    ``:ro`` or ``:rw`` at the end of a word is never part of the folder's name. For a folder whose name ends like that,
    one of them has to follow.

    Args:
        words: the values of ``--share``.
        shares: folders that other options share.

    Raises:
        UsageError: a tag occurs twice, or a folder does not exist or may not be read.
    """
    folders, read_only = dict(shares), set()
    for word in words:
        ((tag, given),) = repeatedoptions.pairs([word], "--share", "TAG=DIR[:ro]").items()
        folder, colon, mode = given.rpartition(":")
        if not colon or mode not in ("ro", "rw"):
            folder, mode = given, "rw"
        if tag in folders:
            raise UsageError(f"--share {word}: there is a share {tag} already")
        if not folder:
            raise UsageError(f"--share {word}: no folder given")
        folders[tag] = Path(folder)
        if mode == "ro":
            read_only.add(tag)
    for tag, path in folders.items():
        _check_folder("--work" if tag in shares else f"--share {tag}", path)
    return folders, read_only


def _check_folder(option: str, path: Path) -> None:
    """Check that a folder can be shared.

    Raises:
        UsageError: it does not exist, or this user may not read it.
    """
    if not lookup.is_folder(path, UsageError):
        raise UsageError(f"{path}: no such folder")
    if fault := lookup.folder_fault(path):
        raise UsageError(f"{option}: {fault}")


def check(options: argparse.Namespace) -> None:
    """Check of the options what can be checked before anything is started.

    Raises:
        UsageError: an option is wrong, or two options contradict one another.
    """
    allowlist.parse(options.allow)
    check_network(options.network, options.allow)
    portforward.check(options.publish, options.network)
    quotas.parse(options.quota)
    if not 0 < options.timeout < float("inf"):
        raise UsageError(f"--timeout {options.timeout:g}: not a number of seconds to wait")
    if options.console is not None and not lookup.is_folder(options.console.parent, UsageError):
        raise UsageError(f"--console {options.console}: {options.console.parent} is not a folder")


def _beside(image: Path, arch: str) -> tuple[Path, Path]:
    """Return the kernel and the initramfs for a direct boot.

    Raises:
        InputError: one is missing, or the manifest beside the image is damaged.
    """
    files = boot_files(image, arch)
    kernel, initramfs = (
        files.get(role, image.parent / f"{prefix}-*-{arch}")
        for role, prefix in (("kernel", "vmlinuz"), ("initramfs", "initramfs"))
    )
    for path in (kernel, initramfs):
        if not lookup.exists(path, InputError):
            raise InputError(f"{path}: not there", hint="a build puts it beside the image")
    return kernel, initramfs
