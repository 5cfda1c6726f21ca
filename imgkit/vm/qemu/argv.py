"""Turn the description of a virtual machine into QEMU's arguments. No file is opened or looked up here.

    words = arguments(VmSpec("amd64", Disk(image), console))

The machine boots quickly because it has no VGA card and no network boot ROM, which together cost seconds under
emulation. QEMU confines itself with seccomp. :mod:`imgkit.vm.bootspec` makes the description from what a user asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from imgkit.errors import UsageError
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.qemu.machines import MachineKind, check_machine, machine
from imgkit.vm.qemu.portforward import PortForward
from imgkit.vm.qemu.virtiobus import MAX_MMIO_SHARES, MAX_SHARES, device, share_device

FirmwareKind: TypeAlias = Literal["bios", "uefi", "direct"]
"""What starts the guest's kernel: SeaBIOS and GRUB, UEFI and GRUB, or QEMU itself ("direct")."""
TRANSLATION_MIB = 64
"""Size of QEMU's buffer for translated code, under emulation.

With QEMU's default of 1 GiB, no translation is ever discarded. QEMU before 8 keeps one translation for every address at
which a page of code was ever mapped (each process has its own addresses). Once such a page is used for something else,
every store into it searches all of them: boots were observed to stall for a minute. A full buffer is emptied as a
whole.
"""
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")  # virtio-9p takes at most 31 bytes
IPC_PORT = "ipc.0"
"""Name of the virtio-serial port that carries requests in serial mode (docs/reference/agentd.md)."""
SERIAL_BUS = "serial0"
"""Id of the device that the virtio-serial ports belong to."""


@dataclass(frozen=True)
class Share:
    """A host folder that the guest can mount by its tag (9p over virtio).

    Attributes:
        tag: the name that the guest mounts it by.
        path: the folder on the host.
        read_only: QEMU refuses every change.
        view: file descriptor through which QEMU finds the folder, perhaps with other owners
            (:mod:`imgkit.vm.qemu.handover`); None uses ``path``.
    """

    tag: str
    path: Path
    read_only: bool = False
    view: int | None = None


@dataclass(frozen=True)
class Disk:
    """A disk image.

    Attributes:
        path: the image.
        format: "qcow2" or "raw".
        writable: the guest writes to the image itself; otherwise its changes go to a temporary file that is gone when
            QEMU ends (``snapshot``).
    """

    path: Path
    format: str = "qcow2"
    writable: bool = False


@dataclass(frozen=True)
class VmSpec:
    """Everything that QEMU's command line depends on.

    Attributes:
        arch: "amd64" or "arm64".
        disk: the image under test; None for no disk.
        console: file that the serial console is appended to.
        log: file descriptor of that file, opened for appending, which QEMU gets in its place.
        machine: "standard", or "microvm", which has virtio-mmio in place of PCI and boots only directly.
        firmware: what starts the kernel.
        flash: the UEFI firmware with a private variable store; needed for "uefi".
        kernel, initrd, command_line: for "direct"; ``command_line`` None is the architecture's default.
        tsc_khz: frequency of the host's time stamp counter, which an emulated microvm is told
            (:mod:`imgkit.vm.qemu.hostclock`); None if it is not known.
        memory_mib, cpus: size of the machine.
        accelerator: value of ``-accel``; cpu: value of ``-cpu``.
        shares: 9p shares in the order of their PCI functions.
        ports: virtio-serial ports: (name, file descriptor of a connected socket).
        terminals: ports for terminals can be plugged in while the machine runs (:mod:`imgkit.vm.qemu.hotplug`).
        qmp: file descriptor of a connected socket for QEMU's control protocol; None for none.
        sets: the files behind paths of the form /dev/fdset/NUMBER, by that number: a file descriptor for reading, and
            a second one for reading and writing if QEMU may write.
        config: ISO image with per-boot configuration, attached read-only.
        network: user-mode network; False leaves the card out.
        forwards: ports of the host that lead into that network.
        link: file descriptor of a connected socket that carries the card's Ethernet frames, in place of that network.
        sandbox: QEMU confines itself with seccomp (Linux builds that have it).
        extra: further arguments, which come last.
        custom_arguments: called in place of :func:`machine_arguments`, for tests of other ways to start QEMU.
    """

    arch: str
    disk: Disk | None
    console: Path
    log: int | None = None
    machine: MachineKind = "standard"
    firmware: FirmwareKind = "bios"
    flash: Firmware | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str | None = None
    tsc_khz: int | None = None
    memory_mib: int = 4096
    cpus: int = 2
    accelerator: str = "tcg,thread=multi"
    cpu: str = "max"
    shares: tuple[Share, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    terminals: bool = False
    qmp: int | None = None
    sets: tuple[tuple[int, ...], ...] = ()
    config: Path | None = None
    network: bool = True
    forwards: tuple[PortForward, ...] = ()
    link: int | None = None
    sandbox: bool = False
    extra: tuple[str, ...] = ()
    custom_arguments: Callable[[VmSpec], Sequence[str]] | None = None


def escape(value: Path | str) -> str:
    """Return ``value`` for use inside one of QEMU's comma-separated options: commas are doubled."""
    return str(value).replace(",", ",,")


def check_tag(tag: str) -> str:
    """Return ``tag`` if it can be the name of a share.

    Raises:
        UsageError: it is empty, longer than virtio-9p allows (31 bytes), begins with punctuation, or has characters
            other than letters, digits and ``._-``.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(f"{tag!r}: not a name for a share", hint="letters, digits, dot, _ and -; at most 31 of them")
    return tag


def arguments(spec: VmSpec) -> tuple[str, ...]:
    """Return QEMU's command line for ``spec``, beginning with the program's name.

    Raises:
        UsageError: parts of the description are missing or contradict each other.
    """
    _check(spec)
    described = (spec.custom_arguments or machine_arguments)(spec)
    return (machine(spec.arch).binary, *described, *_inherited(spec), *spec.extra)


def _check(spec: VmSpec) -> None:
    machine(spec.arch)
    check_machine(spec.machine, spec.arch, spec.firmware)
    _check_firmware(spec)
    if spec.cpus < 1 or spec.memory_mib < 1:
        raise UsageError("a machine needs at least one CPU and 1 MiB of memory")
    most = MAX_MMIO_SHARES if spec.machine == "microvm" else MAX_SHARES
    if len(spec.shares) > most:
        where = "into a microvm" if spec.machine == "microvm" else "on the bus"
        raise UsageError(f"{len(spec.shares)} shares are too many", hint=f"at most {most} fit {where}")
    tags = [check_tag(share.tag) for share in spec.shares]
    for tag in tags:
        if tags.count(tag) > 1:
            raise UsageError(f"{tag}: two shares of the same name")


def _check_firmware(spec: VmSpec) -> None:
    if spec.firmware not in get_args(FirmwareKind):
        raise UsageError(f"{spec.firmware}: unknown firmware", hint=f"known are {', '.join(get_args(FirmwareKind))}")
    if spec.firmware == "bios" and spec.arch != "amd64":
        raise UsageError(f"{spec.arch} has no BIOS", hint="--firmware uefi or --firmware direct")
    if spec.firmware == "direct" and spec.kernel is None:
        raise UsageError("direct boot needs a kernel")
    if spec.firmware == "uefi" and spec.flash is None:
        raise UsageError("UEFI boot needs firmware")


def machine_arguments(spec: VmSpec) -> list[str]:
    """Return the arguments for the machine itself: all but the program's name, inherited files and ``extra``."""
    words = ["-machine", _board(spec), "-accel", _accelerator(spec), "-cpu", spec.cpu]
    words += ["-smp", str(spec.cpus), "-m", str(spec.memory_mib)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    if spec.sandbox:
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += firmware_arguments(spec)
    words += ["-chardev", f"file,id=console,path={escape(spec.console)},append=on", "-serial", "chardev:console"]
    words += _disk(spec)
    words += _network(spec)
    words += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", device(spec.machine, "rng", "rng=rng0")]
    return words + _shares(spec)


def _board(spec: VmSpec) -> str:
    """Return the value of ``-machine``."""
    if spec.machine == "microvm":
        # With ACPI the guest finds its devices without words on its command line, and can be switched off. The second
        # interrupt controller is what makes room for 24 devices.
        return "microvm,acpi=on,ioapic2=on,pcie=off,usb=off"
    # graphics=off makes SeaBIOS write to the serial line, which is the only way to learn what it could not boot.
    return machine(spec.arch).machine + (",graphics=off" if spec.arch == "amd64" else "")


def _network(spec: VmSpec) -> list[str]:
    if spec.link is None and not spec.network:
        return []
    forwards = "".join(f",{forward.argument}" for forward in spec.forwards)
    backend = f"user,id=net0{forwards}" if spec.link is None else f"socket,id=net0,fd={spec.link}"
    rom = "" if spec.machine == "microvm" else ",romfile="
    return ["-netdev", backend, "-device", device(spec.machine, "network", f"netdev=net0{rom}")]


def _accelerator(spec: VmSpec) -> str:
    return f"{spec.accelerator},tb-size={TRANSLATION_MIB}" if _is_emulated(spec) else spec.accelerator


def _is_emulated(spec: VmSpec) -> bool:
    return spec.accelerator.partition(",")[0] == "tcg"


def share_path(share: Share) -> str:
    """Return the folder of ``share`` as QEMU finds it, for use inside one of QEMU's options."""
    return escape(share.path) if share.view is None else f"/proc/self/fd/{share.view}"


def firmware_arguments(spec: VmSpec) -> list[str]:
    """Return the arguments that choose what starts the kernel."""
    if spec.firmware == "direct":
        words = ["-kernel", str(spec.kernel)]
        words += ["-initrd", str(spec.initrd)] if spec.initrd is not None else []
        return [*words, "-append", _command_line(spec)]
    if spec.firmware == "uefi" and spec.flash is not None:
        words = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escape(spec.flash.code)}"]
        if spec.flash.variables is not None:
            words += ["-drive", f"if=pflash,unit=1,format=raw,snapshot=off,file={escape(spec.flash.variables)}"]
        return words
    return []


def _command_line(spec: VmSpec) -> str:
    """Return the kernel's command line of a direct boot.

    A microvm whose kernel is not told the frequency shows that message of its kernel which says that it found none.
    """
    line = machine(spec.arch).direct_command_line if spec.command_line is None else spec.command_line
    if spec.machine != "microvm" or not _is_emulated(spec):
        return line
    return f"{line} loglevel=5" if spec.tsc_khz is None else _with_clock(line, spec.tsc_khz)


def _with_clock(line: str, tsc_khz: int) -> str:
    """Return the command line of a kernel whose only clock is the time stamp counter (:mod:`imgkit.vm.qemu.hostclock`).

    Nothing on such a machine could check the counter, hence "reliable". "unstable" is for machines with other clocks.
    It also saves them a change of the kernel's code at which emulation may crash (recipes/arch/amd64.py), and which
    the function sched_clock_init_late would make here (``kernel/sched/clock.c`` of Linux): all that is lost without it
    is a quicker way to read the scheduler's clock.
    """
    words = [word for word in line.split(" ") if word != "tsc=unstable"]
    return " ".join([*words, f"tsc_early_khz={tsc_khz}", "tsc=reliable", "initcall_blacklist=sched_clock_init_late"])


def _disk(spec: VmSpec) -> list[str]:
    words: list[str] = []
    if spec.disk is not None:
        path = escape(spec.disk.path)
        snapshot = "off" if spec.disk.writable else "on"
        words += ["-drive", f"if=none,id=disk0,format={spec.disk.format},snapshot={snapshot},discard=unmap,file={path}"]
        boots = spec.firmware != "direct"  # with -kernel, QEMU's own loader has boot index 0
        words += ["-device", device(spec.machine, "disk", "drive=disk0" + (",bootindex=0" if boots else ""))]
        words += ["-boot", "menu=off,strict=on"] if boots else []
    if spec.config is not None:
        words += ["-drive", f"if=none,id=config0,format=raw,readonly=on,file={escape(spec.config)}"]
        words += ["-device", device(spec.machine, "config", "drive=config0")]
    return words


def _shares(spec: VmSpec) -> list[str]:
    """Return one 9p device per share."""
    words: list[str] = []
    for index, share in enumerate(spec.shares):
        options = f"local,id=share{index},path={share_path(share)},security_model=none"
        words += ["-fsdev", options + (",readonly=on" if share.read_only else "")]
        mount = f"fsdev=share{index},mount_tag={share.tag}"
        words += ["-device", share_device(spec.machine, index, len(spec.shares), mount)]
    return words


def _inherited(spec: VmSpec) -> list[str]:
    """Return the arguments for inherited descriptors: files, and connected sockets, which therefore need no names."""
    words: list[str] = []
    for index, descriptors in enumerate(spec.sets):
        for descriptor in descriptors:
            words += ["-add-fd", f"fd={descriptor},set={index}"]
    if spec.ports or spec.terminals:
        words += ["-device", device(spec.machine, "serial", f"id={SERIAL_BUS}{_own_thread(spec)}")]
    for index, (name, descriptor) in enumerate(spec.ports):
        words += ["-chardev", f"socket,id=port{index},fd={descriptor}"]
        words += ["-device", f"virtserialport,bus={SERIAL_BUS}.0,chardev=port{index},name={name}"]
    if spec.qmp is not None:
        words += ["-chardev", f"socket,id=qmp,fd={spec.qmp}", "-mon", "chardev=qmp,mode=control"]
    return words


def _own_thread(spec: VmSpec) -> str:
    """Return the option by which QEMU handles output where the guest's processor waits for it.

    A terminal makes the processor wait for each line that it writes. Another thread of QEMU takes four times as long
    under emulation. A microvm has this option for all of its devices together.
    """
    return ",ioeventfd=off" if spec.terminals and spec.machine == "standard" else ""
