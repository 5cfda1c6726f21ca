"""Make a small disk and its map without an appliance, archives and stated files, for tests of ``imgkit verify``."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgkit.disk import gpt
from imgkit.disk.layout import SECTOR, make_layout
from imgkit.disk.regions import TABLE_END, DiskMap, regions_of
from imgkit.engines.chunks import map_disk
from imgkit.tree import Tree
from imgkit.verification.statement import StatedFile
from tests.files import noise
from tests.layouts import SPECS

MIB = 1 << 20
SIZE = 64 * MIB
LAYOUT = make_layout(SPECS["amd64"], SIZE, uuid.UUID(int=5))
REGIONS = regions_of(LAYOUT)


def head() -> bytes:
    """Return a boot sector and a partition table."""
    boot = bytearray(noise(440).ljust(SECTOR, b"\0"))
    boot[446 + 4], boot[510:] = 0xEE, b"\x55\xaa"
    struct.pack_into("<I", boot, 446 + 8, 1)
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 2048, 0, b"g" * 16, 2, 128, 128, 7)
    entries = b"".join(
        struct.pack("<16s16sQQ72x", b"t" * 16, bytes([part.number]) * 16, part.start_lba, part.start_lba + part.sectors)
        for part in LAYOUT.partitions
    )
    table = header.ljust(SECTOR, b"\0") + entries
    return gpt.head_for((bytes(boot) + table).ljust(TABLE_END, b"\0"), SIZE)


def make_disk(path: Path) -> DiskMap:
    """Write the disk to ``path``: 4 MiB of data in all partitions, and holes elsewhere."""
    places = {0: head(), **gpt.backup_for(head(), SIZE, b"")}
    for part in LAYOUT.partitions:
        places[part.start] = noise(300_000)
        places[part.start + part.size // 2] = noise(100_000)
        places[part.start + part.size - 70_000] = noise(70_000)
    with path.open("wb") as sink:
        sink.truncate(SIZE)
        for place, data in places.items():
            sink.seek(place)
            sink.write(data)
    return map_disk(path, REGIONS)


def seeded() -> random.Random:
    """Return random numbers with a new seed, which is printed; ``IMGKIT_SEED`` sets it."""
    seed = int(os.environ.get("IMGKIT_SEED") or time.time_ns())
    sys.stdout.write(f"IMGKIT_SEED={seed}\n")
    return random.Random(seed)


def flip(path: Path, place: int, bits: int = 0x10) -> None:
    """Change a byte of a file; a second call changes it back."""
    with path.open("r+b") as file:
        file.seek(place)
        (old,) = file.read(1)
        file.seek(place)
        file.write(bytes([old ^ bits]))


def stated_file(path: Path) -> dict[str, Any]:
    """Return a file's entry in a manifest."""
    data = path.read_bytes()
    return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def write_stated(path: Path, data: bytes) -> StatedFile:
    """Write a file, and return it as a manifest states it."""
    path.write_bytes(data)
    return StatedFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def tar_of(tree: Tree) -> bytes:
    """Return the archive of a Tree."""
    sink = io.BytesIO()
    tree.write_tar(sink)
    return sink.getvalue()


@dataclass(frozen=True)
class Build:
    """The results of a build that ``verify`` examines: the image, its raw disk, and the files beside it."""

    image: Path
    raw: Path
    manifest: Path
    kernel: Path
    initramfs: Path
    disk: DiskMap


def make_build(folder: Path, image: Path, raw: Path, disk: DiskMap) -> Build:
    """Write kernel, initramfs and manifest to ``folder``, where ``image`` is as well."""
    kernel, initramfs = folder / "vmlinuz-virt-amd64", folder / "initramfs-virt-amd64"
    kernel.write_bytes(noise(5000))
    initramfs.write_bytes(noise(6000))
    manifest = image.with_suffix(".manifest.json")
    body = {
        "manifest": 1,
        "arch": "amd64",
        "image": stated_file(image),
        "boot": {"kernel": stated_file(kernel), "initramfs": stated_file(initramfs)},
        "map": disk.to_json(),
        "files": {"/": {"type": "directory", "mode": "0755", "uid": 0, "gid": 0}},
    }
    manifest.write_text(json.dumps(body))
    return Build(image, raw, manifest, kernel, initramfs, disk)
