"""What differs between the architectures that imgkit boots: one record each."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import UsageError


@dataclass(frozen=True)
class Machine:
    """How QEMU is asked for a machine of one architecture.

    ``machine`` and ``host_app_machine`` are QEMU's names for the board: the harness's own choice, and what the host
    application of the agentd contract uses. ``tcg_cpu`` is the quickest CPU model under emulation, ``native_cpu`` the
    one for hardware acceleration. ``kernel_arguments`` are those of the recipe's module of the architecture, for boots
    that do not read them from the disk. ``console`` is the kernel's name for the serial port, ``firmware`` the kind
    that such a machine usually has.
    """

    arch: str
    binary: str
    machine: str
    host_app_machine: str | None
    tcg_cpu: str
    native_cpu: str
    console: str
    firmware: str
    kernel_arguments: tuple[str, ...]
    host_names: tuple[str, ...]

    @property
    def host_app_command_line(self) -> str:
        """The kernel command line with which the host application boots directly: arm64's is in the contract."""
        line = f"root=/dev/vda2 rootfstype=ext4 rw console={self.console},115200 init=/sbin/init quiet"
        return " ".join([line, *self.kernel_arguments])


MACHINES: dict[str, Machine] = {
    "amd64": Machine(
        arch="amd64",
        binary="qemu-system-x86_64",
        machine="q35",
        host_app_machine=None,  # QEMU's default board (pc)
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
        host_app_machine="virt",
        tcg_cpu="cortex-a72",  # "max" emulates pointer authentication, which doubles the time to boot
        native_cpu="host",
        console="ttyAMA0",
        firmware="uefi",
        kernel_arguments=(),
        host_names=("aarch64", "arm64"),
    ),
}


def machine(arch: str) -> Machine:
    """The record of ``arch``.

    Raises:
        UsageError: there is none.
    """
    try:
        return MACHINES[arch]
    except KeyError:
        raise UsageError(f"{arch}: unknown architecture", hint=f"known are {', '.join(MACHINES)}") from None


def guess_arch(image: Path) -> str:
    """The architecture in the image's name (``linux-arm64.qcow2``), or this host's."""
    words = image.stem.replace("_", "-").split("-")
    return next((arch for arch in MACHINES if arch in words), host_arch())


def host_arch() -> str:
    """The host's architecture in imgkit's terms, or the kernel's name for it where imgkit has none."""
    name = platform.machine().lower()
    return next((record.arch for record in MACHINES.values() if name in record.host_names), name)
