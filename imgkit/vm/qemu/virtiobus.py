"""Where the virtio devices of a machine are: functions and slots of PCI, or the slots of a microvm (virtio-mmio).

device("microvm", "disk", "drive=disk0")    # → "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.23"
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from imgkit.vm.qemu.machines import MachineKind

Place: TypeAlias = Literal["disk", "config", "network", "rng", "serial"]
"""The devices that a machine has at most once."""
_KINDS: dict[Place, str] = {"disk": "blk", "config": "blk", "network": "net", "rng": "rng", "serial": "serial"}

MAX_SHARES = 96
FUNCTIONS = 8
"""Functions of one PCI slot."""
_FIRST_SHARE_SLOT = 0x10  # leaves 0x01–0x0f to the other devices

_MMIO_SLOTS: dict[Place, int] = {"disk": 23, "config": 22, "network": 21, "rng": 20, "serial": 19}
"""Slots of a microvm. The guest finds its devices from the last slot to the first, and so the disk before the drive.

There are 24 slots (``hw/i386/microvm.c`` of QEMU; before 6.0 there were 8). Slot 0 is not used: QEMU's interrupt
controller takes the interrupt of its first pin for that of the PC's timer and passes it to the third pin
(``ioapic_set_irq`` in ``hw/intc/ioapic.c``), so a device there never answers.
"""
MAX_MMIO_SHARES = min(_MMIO_SLOTS.values()) - 1
"""Shares that a microvm has room for besides its other devices."""


def device(machine: MachineKind, place: Place, options: str) -> str:
    """Return the value of ``-device`` for a device that a machine has at most once.

    Args:
        machine: the kind of the machine.
        place: which device.
        options: its options.
    """
    if machine == "microvm":
        return f"virtio-{_KINDS[place]}-device,{options},bus=virtio-mmio-bus.{_MMIO_SLOTS[place]}"
    return f"virtio-{_KINDS[place]}-pci,{options}"


def share_device(machine: MachineKind, index: int, count: int, options: str) -> str:
    """Return the value of ``-device`` for a share.

    Eight devices are functions of one PCI slot, so 50 shares need seven slots.

    Args:
        machine: the kind of the machine.
        index: number of the share, from 0.
        count: how many shares the machine has.
        options: the options of the share.
    """
    if machine == "microvm":
        return f"virtio-9p-device,{options},bus=virtio-mmio-bus.{MAX_MMIO_SHARES - index}"
    slot, function = _FIRST_SHARE_SLOT + index // FUNCTIONS, index % FUNCTIONS
    several = function == 0 and index + 1 < count
    return f"virtio-9p-pci,{options},addr={slot:#x}.{function}" + (",multifunction=on" if several else "")
