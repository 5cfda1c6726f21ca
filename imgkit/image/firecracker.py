"""The configuration with which Firecracker starts a root filesystem: the file for its option ``--config-file``.

Paths in it are relative to the folder that Firecracker is started in, which is that of the files.

Format: Firecracker's docs/getting-started.md and src/firecracker/swagger/firecracker.yaml, as of version 1.0 and newer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from imgkit.image.outputfiles import OutputFiles

CPUS = 2
MEMORY_MIB = 1024
"""The machine that the file describes; agents' programs and npm fit into that."""

# Firecracker has no keyboard to look for, and a guest ends it by rebooting through that keyboard's controller
# (reboot=k), which is what a power-off of the guest must use, too. Without PCI the kernel need not look for it.
_X86 = ("console=ttyS0", "reboot=k", "panic=1", "pci=off", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd")
_ARM = ("console=ttyS0", "reboot=k", "panic=1")


def firecracker_config(names: OutputFiles, arch: str, arguments: Sequence[str]) -> str:
    """Return the text of the configuration.

    Args:
        arch: imgkit's name of the architecture.
        arguments: the kernel's arguments in the image, whose consoles are those of another machine.
    """
    kept = [word for word in arguments if not word.startswith("console=")]
    own = _X86 if arch == "amd64" else _ARM
    body = {
        "boot-source": {
            "kernel_image_path": names.kernel,
            "initrd_path": names.initramfs,
            "boot_args": " ".join([*kept, *own]),
        },
        "drives": [
            {"drive_id": "rootfs", "path_on_host": names.image, "is_root_device": True, "is_read_only": False},
        ],
        "machine-config": {"vcpu_count": CPUS, "mem_size_mib": MEMORY_MIB},
    }
    return json.dumps(body, indent=2) + "\n"
