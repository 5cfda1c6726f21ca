"""From a description of a virtual machine to QEMU's list of arguments. Pure: nothing is opened, nothing looked up.

Two styles. ``harness`` is the quick and careful one: no VGA, no network boot ROM (together they cost seconds under
emulation), a sandboxed QEMU. ``host-app`` is word for word how the host application of the agentd contract starts its
machines, for tests that must be as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from imgkit.errors import UsageError
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.qemu.machines import machine

MAX_SHARES = 96
FUNCTIONS = 8  # of one PCI slot
_FIRST_SHARE_SLOT = 0x10  # leaves 0x01–0x0f to the other devices
TRANSLATION_MIB = 64
"""QEMU's buffer for translated code; the harness's choice under emulation.

With its default of 1 GiB nothing is ever thrown away. QEMU before 8 keeps one translation for every address at which a
page of code was ever mapped (each process has its own addresses), and every store into such a page, once it is used for
something else, looks at all of them: boots were seen to stand still for a minute. A full buffer is emptied as a whole.
"""
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")  # virtio-9p takes at most 31 bytes
IPC_PORT = "ipc.0"
ROOT_PORT = "imgkit.root"


@dataclass(frozen=True)
class Share:
    """A host folder that the guest can mount by its tag (9p over virtio).

    ``view`` is a descriptor through which QEMU finds it, with other owners or not (:mod:`imgkit.vm.qemu.handover`).
    """

    tag: str
    path: Path
    read_only: bool = False
    view: int | None = None


@dataclass(frozen=True)
class Disk:
    """A disk image. Whatever the guest writes goes to a temporary file that vanishes with QEMU (``snapshot``).

    ``writable`` lets it write to the image itself.
    """

    path: Path
    format: str = "qcow2"
    bus: str = "virtio-blk"
    writable: bool = False


@dataclass(frozen=True)
class VmSpec:
    """All that a command line of QEMU depends on.

    Attributes:
        arch: "amd64" or "arm64".
        disk: the image under test; it is never written to.
        firmware: "bios", "uefi" or "direct".
        flash: the UEFI firmware with a private variable store; needed for "uefi".
        kernel, initrd, command_line: for "direct".
        memory_mib, cpus: size of the machine.
        accelerator: value of ``-accel``; cpu: value of ``-cpu``.
        console: file that the serial console is appended to; style "host-app" empties it first.
        log: file descriptor of that file, opened for appending, which QEMU gets in its place.
        shares: 9p shares in the order of their PCI functions.
        ports: virtio-serial ports, (name, file descriptor of a connected socket).
        qmp: file descriptor of a connected socket for QEMU's control protocol, None for no such thing.
        sets: file descriptors of the files that paths of the form /dev/fdset/NUMBER are about, by that number: one for
            reading, and one for reading and writing if QEMU may.
        config: ISO image with per-boot configuration, attached read-only.
        network: user-mode network; False leaves the card out.
        link: file descriptor of a connected socket that carries the card's Ethernet frames, in place of that network.
        style: "harness" or "host-app".
        sandbox: QEMU confines itself with seccomp (Linux builds that have it).
    """

    arch: str
    disk: Disk | None
    console: Path
    log: int | None = None
    firmware: str = "bios"
    flash: Firmware | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str | None = None
    memory_mib: int = 4096
    cpus: int = 2
    accelerator: str = "tcg,thread=multi"
    cpu: str = "max"
    shares: tuple[Share, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    qmp: int | None = None
    sets: tuple[tuple[int, ...], ...] = ()
    config: Path | None = None
    network: bool = True
    link: int | None = None
    style: str = "harness"
    sandbox: bool = False
    extra: tuple[str, ...] = field(default=())


def escape(value: Path | str) -> str:
    """A value inside one of QEMU's comma-separated options: commas are doubled."""
    return str(value).replace(",", ",,")


def check_tag(tag: str) -> str:
    """Return ``tag`` if it can be the name of a share.

    Raises:
        UsageError: it is empty, too long for virtio-9p (31 bytes) or has other characters than letters, digits, ._-
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(f"{tag!r}: not a name for a share", hint="letters, digits, dot, _ and -; at most 31 of them")
    return tag


def arguments(spec: VmSpec) -> tuple[str, ...]:
    """QEMU's arguments for ``spec``, the program's name first.

    Raises:
        UsageError: the description does not fit together.
    """
    _check(spec)
    words = _host_app(spec) if spec.style == "host-app" else _harness(spec)
    return (machine(spec.arch).binary, *words, *_control(spec), *spec.extra)


def _check(spec: VmSpec) -> None:
    machine(spec.arch)
    if spec.firmware not in ("bios", "uefi", "direct"):
        raise UsageError(f"{spec.firmware}: unknown firmware", hint="known are bios, uefi, direct")
    if spec.firmware == "bios" and spec.arch != "amd64":
        raise UsageError(f"{spec.arch} has no BIOS", hint="--firmware uefi or --firmware direct")
    if spec.firmware == "direct" and spec.kernel is None:
        raise UsageError("direct boot needs a kernel")
    if spec.firmware == "uefi" and spec.flash is None:
        raise UsageError("UEFI boot needs firmware")
    if spec.cpus < 1 or spec.memory_mib < 1:
        raise UsageError("a machine needs at least one CPU and 1 MiB of memory")
    if spec.style == "host-app":
        _check_host_app(spec)
    if len(spec.shares) > MAX_SHARES:
        raise UsageError(f"{len(spec.shares)} shares are too many", hint=f"at most {MAX_SHARES} fit on the bus")
    tags = [check_tag(share.tag) for share in spec.shares]
    for tag in tags:
        if tags.count(tag) > 1:
            raise UsageError(f"{tag}: two shares of the same name")


def _check_host_app(spec: VmSpec) -> None:
    if spec.disk is not None and spec.disk.writable:
        raise UsageError("the host application never writes to the image")
    if spec.config is not None:
        raise UsageError("the host application has no config drive")
    if spec.link is not None or not spec.network:
        raise UsageError("the host application always has the user network")


def _harness(spec: VmSpec) -> list[str]:
    record = machine(spec.arch)
    # graphics=off makes SeaBIOS talk over the serial line, the only way to learn what it could not boot.
    board = f"{record.machine},graphics=off" if spec.arch == "amd64" else record.machine
    words = ["-machine", board, "-accel", _accelerator(spec), "-cpu", spec.cpu]
    words += ["-smp", str(spec.cpus), "-m", str(spec.memory_mib)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    if spec.sandbox:
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += _firmware(spec)
    words += ["-chardev", f"file,id=console,path={escape(spec.console)},append=on", "-serial", "chardev:console"]
    words += _disk(spec)
    words += _network(spec)
    words += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"]
    return words + _shares(spec)


def _network(spec: VmSpec) -> list[str]:
    if spec.link is None and not spec.network:
        return []
    backend = "user,id=net0" if spec.link is None else f"socket,id=net0,fd={spec.link}"
    return ["-netdev", backend, "-device", "virtio-net-pci,netdev=net0,romfile="]


def _accelerator(spec: VmSpec) -> str:
    emulated = spec.accelerator.partition(",")[0] == "tcg"
    return f"{spec.accelerator},tb-size={TRANSLATION_MIB}" if emulated else spec.accelerator


def _host_app(spec: VmSpec) -> list[str]:
    """The contract's own arguments; only what carries a path or the choice of firmware varies."""
    record = machine(spec.arch)
    words = ["-machine", record.host_app_machine] if record.host_app_machine else []
    words += ["-accel", spec.accelerator]
    words += ["-cpu", spec.cpu] if record.host_app_machine or not spec.accelerator.startswith("tcg") else []
    words += ["-m", str(spec.memory_mib), "-smp", str(spec.cpus), "-nographic", "-snapshot", "-no-reboot"]
    words += _firmware(spec)
    words += ["-serial", f"file:{escape(spec.console)}"]
    if spec.disk is not None:
        words += ["-drive", f"file={escape(spec.disk.path)},format={spec.disk.format},if=virtio"]
    words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]
    for share in spec.shares:
        options = f"local,path={_share_path(share)},mount_tag={share.tag},security_model=none"
        words += ["-virtfs", options + (",readonly=on" if share.read_only else "")]
    return words


def _share_path(share: Share) -> str:
    return escape(share.path) if share.view is None else f"/proc/self/fd/{share.view}"


def _firmware(spec: VmSpec) -> list[str]:
    if spec.firmware == "direct":
        words = ["-kernel", str(spec.kernel)]
        words += ["-initrd", str(spec.initrd)] if spec.initrd is not None else []
        line = machine(spec.arch).host_app_command_line if spec.command_line is None else spec.command_line
        return [*words, "-append", line]
    if spec.firmware == "uefi" and spec.flash is not None:
        words = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escape(spec.flash.code)}"]
        if spec.flash.variables is not None:
            words += ["-drive", f"if=pflash,unit=1,format=raw,snapshot=off,file={escape(spec.flash.variables)}"]
        return words
    return []


def _disk(spec: VmSpec) -> list[str]:
    words: list[str] = []
    boots = spec.firmware != "direct"  # with -kernel the boot index 0 is taken by QEMU's own loader
    if spec.disk is not None:
        path = escape(spec.disk.path)
        snapshot = "off" if spec.disk.writable else "on"
        words += ["-drive", f"if=none,id=disk0,format={spec.disk.format},snapshot={snapshot},discard=unmap,file={path}"]
        device = "drive=disk0" + (",bootindex=0" if boots else "")
        if spec.disk.bus == "virtio-scsi":
            words += ["-device", "virtio-scsi-pci,id=scsi0", "-device", f"scsi-hd,bus=scsi0.0,{device}"]
        else:
            words += ["-device", f"virtio-blk-pci,{device}"]
        words += ["-boot", "menu=off,strict=on"] if boots else []
    if spec.config is not None:
        words += ["-drive", f"if=none,id=config0,format=raw,readonly=on,file={escape(spec.config)}"]
        words += ["-device", "virtio-blk-pci,drive=config0"]
    return words


def _shares(spec: VmSpec) -> list[str]:
    """One 9p device a share, packed eight to a PCI slot as functions of one device, so that 50 need seven slots."""
    words: list[str] = []
    for index, share in enumerate(spec.shares):
        slot, function = _FIRST_SHARE_SLOT + index // FUNCTIONS, index % FUNCTIONS
        several = function == 0 and index + 1 < len(spec.shares)
        options = f"local,id=share{index},path={_share_path(share)},security_model=none"
        words += ["-fsdev", options + (",readonly=on" if share.read_only else "")]
        device = f"virtio-9p-pci,fsdev=share{index},mount_tag={share.tag},addr={slot:#x}.{function}"
        words += ["-device", device + (",multifunction=on" if several else "")]
    return words


def _control(spec: VmSpec) -> list[str]:
    """What QEMU inherits: files, and channels to the harness, connected already, so that no name is left anywhere."""
    words: list[str] = []
    for index, descriptors in enumerate(spec.sets):
        for descriptor in descriptors:
            words += ["-add-fd", f"fd={descriptor},set={index}"]
    if spec.ports:
        words += ["-device", "virtio-serial-pci,id=serial0"]
    for index, (name, descriptor) in enumerate(spec.ports):
        words += ["-chardev", f"socket,id=port{index},fd={descriptor}"]
        words += ["-device", f"virtserialport,bus=serial0.0,chardev=port{index},name={name}"]
    if spec.qmp is not None:
        words += ["-chardev", f"socket,id=qmp,fd={spec.qmp}", "-mon", "chardev=qmp,mode=control"]
    return words
