"""Change resolved machines in ways that only tests need, through ``BootSpec.adapt``.

with VM.boot(disk, adapt=host_app) as vm: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from imgkit.errors import UsageError
from imgkit.vm.qemu.argv import VmSpec, escape, firmware_arguments, machine_arguments, share_path

Adapt = Callable[[VmSpec], VmSpec]


def as_it_is(spec: VmSpec) -> VmSpec:
    """Return the machine unchanged: imgkit's own way to start QEMU."""
    return spec


def writable(spec: VmSpec) -> VmSpec:
    """Let the guest write to the image itself, which is a private copy that is booted more than once."""
    assert spec.disk is not None
    return replace(spec, disk=replace(spec.disk, writable=True))


def extra(*words: str) -> Adapt:
    """Return a function that gives QEMU further arguments."""
    return lambda spec: replace(spec, extra=words)


def scsi(spec: VmSpec) -> VmSpec:
    """Put the disk on a SCSI bus (virtio-scsi)."""
    return replace(spec, custom_arguments=_scsi_arguments)


def _scsi_arguments(spec: VmSpec) -> list[str]:
    words = machine_arguments(spec)
    at = words.index("virtio-blk-pci,drive=disk0,bootindex=0")
    words[at] = "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=0"
    words[at - 1 : at - 1] = ["-device", "virtio-scsi-pci,id=scsi0"]
    return words


def host_app(spec: VmSpec) -> VmSpec:
    """Start QEMU as the host application does, with exactly the arguments of the agentd contract.

    QEMU then empties the console file, so it is emptied here before imgkit begins to read it.
    """
    if spec.console.exists():
        spec.console.write_bytes(b"")
    return replace(spec, custom_arguments=host_app_arguments)


STYLES: dict[str, Adapt] = {"harness": as_it_is, "host-app": host_app}
"""The two ways to start QEMU that images must be booted by."""


def host_app_arguments(spec: VmSpec) -> list[str]:
    """Return the arguments of the contract; only the paths and the firmware vary.

    Raises:
        UsageError: the host application starts no such machine.
    """
    if spec.disk is not None and spec.disk.writable:
        raise UsageError("the host application never writes to the image")
    if spec.config is not None:
        raise UsageError("the host application has no config drive")
    if spec.link is not None or not spec.network:
        raise UsageError("the host application always has the user network")
    board = ["-machine", "virt"] if spec.arch == "arm64" else []  # on amd64 QEMU's default board (pc) and CPU
    words = [*board, "-accel", spec.accelerator]
    words += ["-cpu", spec.cpu] if board or not spec.accelerator.startswith("tcg") else []
    words += ["-m", str(spec.memory_mib), "-smp", str(spec.cpus), "-nographic", "-snapshot", "-no-reboot"]
    words += firmware_arguments(spec)
    words += ["-serial", f"file:{escape(spec.console)}"]
    if spec.disk is not None:
        words += ["-drive", f"file={escape(spec.disk.path)},format={spec.disk.format},if=virtio"]
    words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]
    for share in spec.shares:
        options = f"local,path={share_path(share)},mount_tag={share.tag},security_model=none"
        words += ["-virtfs", options + (",readonly=on" if share.read_only else "")]
    return words
