"""Describe the QEMU machine of each architecture that imgkit boots, and guess architectures from names."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from imgkit.errors import UsageError

Arch: TypeAlias = Literal["amd64", "arm64"]
MachineKind: TypeAlias = Literal["standard", "microvm"]
"""The machine that QEMU emulates: the usual one of the architecture, or one without firmware and PCI (amd64 only)."""
MACHINE_KINDS: tuple[MachineKind, ...] = get_args(MachineKind)


@dataclass(frozen=True)
class Machine:
    """The machine that QEMU is started with for one architecture.

    Attributes:
        arch: imgkit's name of the architecture.
        binary: name of the QEMU program.
        machine: QEMU's name for the board.
        tcg_cpu: the CPU model that is quickest under emulation.
        native_cpu: the CPU model under hardware acceleration.
        console: the kernel's name for the serial port.
        firmware: the firmware that such a machine boots by default.
        kernel_arguments: kernel arguments of the recipe's module for the architecture, for boots that do not read them
            from the disk.
        host_names: what ``uname -m`` prints on a host of this architecture, in lower case.
    """

    arch: Arch
    binary: str
    machine: str
    tcg_cpu: str
    native_cpu: str
    console: str
    firmware: Literal["bios", "uefi"]
    kernel_arguments: tuple[str, ...]
    host_names: tuple[str, ...]

    @property
    def direct_command_line(self) -> str:
        """The kernel's command line for a direct boot. The agentd contract defines the one of arm64."""
        return self.command_line("/dev/vda2")

    def command_line(self, root: str) -> str:
        """Return the kernel's command line for a direct boot; ``root`` is the device of the root filesystem."""
        line = f"root={root} rootfstype=ext4 rw console={self.console},115200 init=/sbin/init quiet"
        return " ".join([line, *self.kernel_arguments])


MACHINES: dict[str, Machine] = {
    "amd64": Machine(
        arch="amd64",
        binary="qemu-system-x86_64",
        machine="q35",
        # "host" needs hardware acceleration. Without ERMS and FSRM the kernel fills and copies pages in words of eight
        # bytes: under emulation "rep stosb" is one slow store a byte where the page held code before.
        tcg_cpu="max,erms=off,fsrm=off",
        native_cpu="host",
        console="ttyS0",
        firmware="bios",
        kernel_arguments=("no_timer_check", "tsc=unstable"),  # recipes/arch/amd64.py says why
        host_names=("x86_64", "amd64"),
    ),
    "arm64": Machine(
        arch="arm64",
        binary="qemu-system-aarch64",
        machine="virt",
        tcg_cpu="cortex-a72",  # "max" emulates pointer authentication, which doubles the time to boot
        native_cpu="host",
        console="ttyAMA0",
        firmware="uefi",
        kernel_arguments=(),
        host_names=("aarch64", "arm64"),
    ),
}


def machine(arch: str) -> Machine:
    """Return the record of ``arch``.

    Raises:
        UsageError: imgkit does not know the architecture.
    """
    try:
        return MACHINES[arch]
    except KeyError:
        raise UsageError(f"{arch}: unknown architecture", hint=f"known are {', '.join(MACHINES)}") from None


def check_machine(kind: str, arch: str, firmware: str | None) -> None:
    """Check that there is a machine of this kind, for this architecture and with this firmware.

    Args:
        kind: one of :data:`MACHINE_KINDS`.
        arch: imgkit's name of the architecture.
        firmware: the firmware that was asked for; None if none was.

    Raises:
        UsageError: the kind is unknown, or microvm is asked for on another architecture or with a firmware.
    """
    if kind not in MACHINE_KINDS:
        raise UsageError(f"{kind}: unknown machine", hint=f"known are {', '.join(MACHINE_KINDS)}")
    if kind != "microvm":
        return
    if arch != "amd64":
        raise UsageError(f"QEMU has no machine microvm for {arch}", hint="it is for amd64 only; leave out --machine")
    if firmware not in (None, "direct"):
        raise UsageError(
            f"the machine microvm has no {firmware}: QEMU starts the kernel itself", hint="leave out --firmware"
        )


def stated_arch(image: Path) -> Arch | None:
    """Return the architecture that the image's name contains (``linux-arm64.qcow2``), or None."""
    words = image.stem.replace("_", "-").split("-")
    return next((record.arch for record in MACHINES.values() if record.arch in words), None)


def guess_arch(image: Path) -> str:
    """Return the architecture that the image's name contains, or else this host's."""
    return stated_arch(image) or host_arch()


def host_arch() -> str:
    """Return the host's architecture in imgkit's terms, or the kernel's name for it if imgkit has none."""
    name = platform.machine().lower()
    return next((record.arch for record in MACHINES.values() if name in record.host_names), name)
