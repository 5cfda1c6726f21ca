"""Disks that the native engine writes for tests, with a root filesystem of any Tree."""

from __future__ import annotations

import uuid
from pathlib import Path

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout, make_layout
from imgkit.engines.interface import ImageTarget, TreeFacts
from imgkit.engines.native.nativeengine import launch
from imgkit.host.progress import Steps
from imgkit.tree import Tree
from tests.layouts import SPECS

BOOT = BootFiles(b"\xeb\x63" + b"c" * 438, b"core" * 512, {"EFI/BOOT/BOOTX64.EFI": b"efi", "startup.nsh": b"x"})
SEED = uuid.UUID(int=5)


def layout_of(size: int) -> Layout:
    """Return the layout of a disk of ``size`` bytes for amd64."""
    return make_layout(SPECS["amd64"], size, SEED)


def write_disk(tree: Tree, target: Path, size: int, facts: TreeFacts | None = None) -> None:
    """Write a qcow2 with a disk of ``size`` bytes to the new file ``target``."""
    layout = layout_of(size)
    scratch = target.with_name(target.name + ".scratch")
    scratch.mkdir()
    steps = Steps()
    with launch(scratch, size) as engine:
        written = engine.write(tree, layout, BOOT, steps, facts=facts or TreeFacts(epoch=1_700_000_000))
        written.save(ImageTarget(target), steps)
