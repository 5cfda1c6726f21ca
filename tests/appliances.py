"""Read filesystems of several disks back through the kernel of one appliance of libguestfs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from imgkit.engines.guestfs.appliancestart import wait
from imgkit.engines.guestfs.channel import Drive, Options, opened
from imgkit.engines.guestfs.lookscripts import OFFSET, mount_script, tar_script
from imgkit.engines.reading import Archive, Filesystem
from imgkit.tree import File, Tree
from tests.trees import tree_from_tar

_NUMBERS: dict[Filesystem, int] = {"esp": 1, "root": 2}
_LIMIT = 2 << 30  # bytes of an archive


@dataclass(frozen=True)
class Wanted:
    """A filesystem that is to be read: which one of which qcow2."""

    image: Path
    filesystem: Filesystem = "root"


def read_back(wanted: Sequence[Wanted], folder: Path) -> list[Tree]:
    """Return the Trees of filesystems, in the order of ``wanted``.

    They are mounted read-only, and packed by the tar of the appliance. Contents are slices of archives in ``folder``.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    archives = [folder / f"{number}.tar" for number in range(len(wanted))]
    drives = [Drive(each.image, "qcow2", readonly=True) for each in wanted]
    for number in range(len(wanted)):
        target = scratch / f"{number}.raw"
        with target.open("wb") as file:
            file.truncate(_LIMIT + 2 * OFFSET)
        drives.append(Drive(target))
    options = Options(cache=Path(platformdirs.user_cache_dir("imgkit")) / "test-appliance")
    deadline = time.monotonic() + options.launch_timeout
    with opened(scratch, drives, options) as channel:
        wait(channel, deadline, options)
        for number, (each, path) in enumerate(zip(wanted, archives, strict=True)):
            channel.shell(_of(mount_script(each.filesystem, _NUMBERS[each.filesystem], replay=False), number, 0))
            said = channel.shell(_of(tar_script(_LIMIT), number, len(wanted) + number))
            first_line, _, complaints = said.partition("\n")
            size, completeness = first_line.split()
            assert (completeness, complaints.strip()) == ("whole", "")
            drive = scratch / f"{number}.raw"
            with path.open("wb") as sink:
                for piece in Archive(drive, OFFSET, int(size), complete=True, complaints="").pieces():
                    sink.write(piece)
            drive.unlink()
    return [tree_from_tar(path) for path in archives]


def _of(script: str, image: int, scratch: int) -> str:
    """Return a script for the image at drive 0, and the scratch drive 1, with the numbers of other drives."""
    assert "$(drive 0)" in script or "$(drive 1)" in script
    return script.replace("$(drive 0)", f"$(drive {image})").replace("$(drive 1)", f"$(drive {scratch})")


def esp_facts(tree: Tree) -> dict[str, Any]:
    """Return the path and content of each file of an EFI system partition."""
    return {path: node.content.read() for path, node in tree.items() if isinstance(node, File)}
