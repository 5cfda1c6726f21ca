"""Describe a machine to boot (:class:`BootSpec`), and resolve the description to the machine that QEMU is started with.

    spec = BootSpec("out/linux-arm64.qcow2", shares={"work": "."}, network="none")
    with VM.boot(spec) as vm: ...

:func:`resolve` looks up files and makes private copies. Its result, a :class:`~imgkit.vm.qemu.argv.VmSpec`, leaves
nothing to be decided.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from imgkit.disk import diskimage
from imgkit.errors import HostError, UsageError
from imgkit.host import lookup
from imgkit.vm import consolelog
from imgkit.vm.qemu import argv, firmware, hostclock, machines, portforward
from imgkit.vm.qemu.argv import Disk, FirmwareKind, Share, VmSpec
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.qemu.machines import Arch, MachineKind
from imgkit.vm.qemu.probe import Accelerator, AcceleratorChoice
from imgkit.vm.shares.quotas import Quotas

StrPath: TypeAlias = "str | os.PathLike[str]"
Network: TypeAlias = Literal["none", "user", "restricted"]
Ipc: TypeAlias = Literal["file", "serial", "none"]
NETWORKS: tuple[Network, ...] = get_args(Network)


@dataclass(frozen=True, kw_only=True)
class BootSpec:
    """Describes what is booted, and on which machine. Only the image is given by position.

    Raises:
        UsageError: ``network`` or ``ipc`` is unknown, ``allow`` names hosts for a network that has no rules, or
            ``publish`` is wrong or for a network that takes no connections.
    """

    image: StrPath | None = field(kw_only=False)
    """Disk image, qcow2 or raw, in a single file, which is never written to. None boots without a disk."""
    arch: Arch | None = None
    """None takes the architecture from the image's name, or else the host's."""
    machine: MachineKind = "standard"
    """"microvm" is QEMU's machine without firmware and PCI: for amd64, and for direct boots only
    (docs/explanation/microvm.md)."""
    firmware: FirmwareKind | None = None
    """"direct" starts ``kernel`` without a boot loader; None is "bios" for amd64, "uefi" for arm64, and "direct" for a
    microvm."""
    kernel: StrPath | None = None
    """Kernel of a direct boot, as QEMU can start it: not compressed as an EFI program."""
    initrd: StrPath | None = None
    """Initramfs of a direct boot."""
    command_line: str | None = None
    """The kernel's command line of a direct boot; None is the one of the agentd contract."""
    memory_mib: int | None = None
    """Memory of the machine in MiB; None tries 4096, 2048 and 1024."""
    cpus: int = 2
    """Number of virtual CPUs."""
    accelerator: AcceleratorChoice = "auto"
    """"auto" measures what works on this host (:mod:`imgkit.vm.qemu.probe`)."""
    cpu: str | None = None
    """QEMU's CPU model; None is the quickest one for the accelerator."""
    shares: Mapping[str, StrPath] = field(default_factory=dict)
    """Folders of the host by the tags of their shares. "ipc" is the request share; without it a private one is made."""
    read_only: Collection[str] = ()
    """Tags of the shares that nobody in the guest can change, not even root."""
    ipc: Ipc = "file"
    """How requests are carried: "file" in the request share, "serial" over the virtio-serial port. "none" is a machine
    that takes none, because no agentd is in it; :class:`~imgkit.vm.entrypoint.EntryMachine` runs those."""
    ports: Sequence[str] = ()
    """Names of further virtio-serial ports, whose other ends are in :attr:`imgkit.vm.qemu.launch.Running.ports`."""
    terminals: bool = False
    """Whether terminals can be opened on the machine while it runs (:meth:`imgkit.vm.running.VM.terminal`)."""
    config: bytes | None = None
    """ISO image with the configuration of this boot (:mod:`imgkit.vm.configdrive`). It is on the host's disk only while
    the machine runs."""
    network: Network = "user"
    """"none" is no network. "user" is QEMU's user network: the guest reaches everything that the host reaches, and the
    host's own services at 10.0.2.2. In a "restricted" network it reaches what ``allow`` names."""
    allow: Sequence[str] = ()
    """What a guest in a restricted network reaches: strings "HOST:PORT", "*.HOST:PORT" or "ADDRESS:PORT"."""
    publish: Sequence[str] = ()
    """Ports of the host that lead to the guest: "HOST:GUEST" on 127.0.0.1, "ADDRESS:HOST:GUEST" on another address of
    the host, with "/udp" behind it for UDP. 0 for HOST chooses a free port, which :attr:`imgkit.vm.VM.published` names.
    Only for the network "user"."""
    format: diskimage.Format | None = None
    """Format of the image. None determines it from the first bytes. A guest that writes to a raw image may change them,
    so a file whose name ends in ``.raw`` is never taken for qcow2."""
    console: StrPath | None = None
    """Regular file that the console is appended to, outside of the shares that the guest may write to; None keeps the
    console private."""
    quotas: Quotas = field(default_factory=Quotas)
    """How much of the host's disk, and how much time, the guest may use. A machine that uses more of the disk is ended,
    and so is a request that takes longer."""
    adapt: Callable[[VmSpec], VmSpec] | None = None
    """Called with the resolved machine each time before it is started; the machine that it returns is started instead.
    It is meant for what no field offers: further devices in ``VmSpec.extra``, or sockets in ``VmSpec.ports``."""

    def __post_init__(self) -> None:
        """Check the fields that need no file, so that a mistake is reported where it was made."""
        check_network(self.network, self.allow)
        portforward.check(self.publish, self.network)
        if self.ipc not in get_args(Ipc):
            known = ", ".join(get_args(Ipc))
            raise UsageError(f"{self.ipc}: unknown way to talk to agentd", hint=f"known are {known}")

    @property
    def architecture(self) -> str:
        """The guest's architecture: ``arch``, or else that of the image's name, or else the host's."""
        if self.arch is not None:
            return self.arch
        return machines.host_arch() if self.image is None else machines.guess_arch(Path(self.image))


def check_network(network: str, allow: Sequence[str]) -> None:
    """Check that a network of this kind exists and can have these rules.

    Raises:
        UsageError: the kind is unknown, or there are rules for a network that has no rules.
    """
    if network not in NETWORKS:
        raise UsageError(f"{network}: unknown network", hint=f"known are {', '.join(NETWORKS)}")
    if allow and network != "restricted":
        raise UsageError("--allow is for a restricted network", hint="--network restricted")


def resolve(spec: BootSpec, accelerator: Accelerator, folder: Path) -> VmSpec:
    """Return the machine that ``spec`` describes.

    Args:
        spec: what is booted.
        accelerator: what QEMU runs guests of this architecture with.
        folder: private folder of the machine, for its config drive, variable store, console and request share.

    Raises:
        HostError: a file, a folder or the firmware is missing, or a port of ``publish`` cannot be used.
        UsageError: there is no such machine, a share's name is not valid, ``read_only`` names an unknown share, or the
            guest may write to the folder of the console.
        InputError: the image has a format that cannot be booted.
    """
    record = machines.machine(spec.architecture)
    machines.check_machine(spec.machine, record.arch, spec.firmware)
    kind = spec.firmware or ("direct" if spec.machine == "microvm" else record.firmware)
    shares = _shares(spec, folder)
    resolved = VmSpec(
        arch=record.arch,
        disk=_disk(spec),
        console=(folder / "console.log" if spec.console is None else _console(Path(spec.console), shares)).resolve(),
        machine=spec.machine,
        firmware=kind,
        flash=_flash(record.arch, folder) if kind == "uefi" else None,
        kernel=None if spec.kernel is None else _kernel(Path(spec.kernel)),
        initrd=None if spec.initrd is None else _file(Path(spec.initrd)),
        command_line=spec.command_line,
        tsc_khz=hostclock.tsc_khz() if spec.machine == "microvm" else None,
        cpus=spec.cpus,
        accelerator=accelerator.argument,
        cpu=spec.cpu or accelerator.cpu,
        shares=shares,
        terminals=spec.terminals,
        config=_config(spec, folder),
        network=spec.network == "user",
        forwards=portforward.usable(portforward.check(spec.publish, spec.network)),
        sandbox=sys.platform == "linux",
    )
    return resolved if spec.adapt is None else spec.adapt(resolved)


def _config(spec: BootSpec, folder: Path) -> Path | None:
    if spec.config is None:
        return None
    path = folder / "config.iso"
    path.touch(0o600)
    path.write_bytes(spec.config)
    return path


def _flash(arch: str, folder: Path) -> Firmware:
    return firmware.private_copy(firmware.find(arch), folder)


def _shares(spec: BootSpec, folder: Path) -> tuple[Share, ...]:
    shares = {tag: Path(path) for tag, path in spec.shares.items()}
    if spec.ipc == "file" and "ipc" not in shares:
        shares = {"ipc": folder / "ipc", **shares}
        shares["ipc"].mkdir()
    if spec.ipc != "file" and "ipc" in shares:
        mode = "in serial mode" if spec.ipc == "serial" else "without agentd"
        raise UsageError(f"a machine {mode} has no ipc share")
    for tag, path in shares.items():
        argv.check_tag(tag)
        if not lookup.is_folder(path, HostError):
            raise HostError(f"{path}: no such folder to share as {tag}")
        if not os.access(path, os.R_OK | os.X_OK):
            raise HostError(f"{path}: cannot be shared as {tag}: this user may not read it")
    if unknown := set(spec.read_only) - (shares.keys() - {"ipc"}):
        raise UsageError(f"{', '.join(sorted(unknown))}: no share that can be read-only")
    return tuple(Share(tag, path.resolve(), tag in spec.read_only) for tag, path in shares.items())


def _console(path: Path, shares: Sequence[Share]) -> Path:
    """Return ``path``, unless a guest may write there: its links could lead the console into any file of the host."""
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


def _disk(spec: BootSpec) -> Disk | None:
    if spec.image is None:
        return None
    path = _file(Path(spec.image))
    return Disk(path, spec.format or diskimage.format_of(path))


def _file(path: Path) -> Path:
    """Return the absolute path, because QEMU takes the text before a colon in a relative path for a protocol."""
    if not lookup.is_file(path, HostError):
        raise HostError(f"{path}: no such file")
    return path.resolve()


def _kernel(path: Path) -> Path:
    """Return a kernel that QEMU can start: before 8.1 it hangs silently on a compressed EFI image (zboot)."""
    with _file(path).open("rb") as source:
        if source.read(8)[4:] == b"zimg":
            raise HostError(
                f"{path}: a compressed EFI kernel, which QEMU cannot start directly",
                hint="use the unpacked Image that a build leaves beside the disk image",
            )
    return path.resolve()
