"""What lies where on a disk, and the map of a manifest: the SHA-256 of every piece of it.

The regions of a disk lie one behind the other and leave nothing out. Each is cut into chunks at multiples of 1 MiB; a
chunk without a hash in the map holds nothing but zeros::

    regions = regions_of(layout)
    chunk_at(regions, 700)      # → Chunk(region 'partition table', 512, 17408)
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgkit.disk.layout import SECTOR, Layout
from imgkit.recipe import PartitionKind

CHUNK = 1 << 20
"""Bytes that one hash of the map stands for at most."""

TABLE_END = 34 * SECTOR
"""Where the primary partition table ends: UEFI specification 5.3, a header and 32 sectors of entries after sector 0."""

BACKUP_SIZE = 33 * SECTOR
"""Bytes of the backup partition table at the end of a disk."""

_MOST_REGIONS = 1000
_MOST_CHUNKS = 1 << 22  # 4 TiB without a zero
_SHA256 = re.compile(r"[0-9a-f]{64}")

BOOT_SECTOR, TABLE, BACKUP, GAP = "boot sector", "partition table", "backup partition table", "gap"
BIOS_BOOT, ESP, ROOT = "BIOS boot partition", "EFI system partition", "root filesystem"
_NAMES: Mapping[PartitionKind, str] = {"bios-boot": BIOS_BOOT, "esp": ESP, "root": ROOT}


class MapError(ValueError):
    """The map of a manifest is not one; the message says why."""


@dataclass(frozen=True)
class Region:
    """A part of the disk with a name; ``start`` and ``size`` are in bytes."""

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.size


@dataclass(frozen=True)
class Chunk:
    """Bytes ``start`` to ``end`` (not included) of a disk, all of them in ``region``."""

    region: Region
    start: int
    end: int


@dataclass(frozen=True)
class DiskMap:
    """What a disk holds: ``hashes`` has the SHA-256 of each chunk that is not all zeros, by its first byte."""

    regions: tuple[Region, ...]
    hashes: Mapping[int, str]

    @property
    def size(self) -> int:
        """Bytes of the whole disk."""
        return self.regions[-1].end

    def named(self, name: str) -> Region | None:
        """The first region of this name, or None."""
        return next((region for region in self.regions if region.name == name), None)

    def chunks(self, region: Region) -> list[Chunk]:
        """The chunks of ``region`` that are not all zeros, in order."""
        starts = sorted(start for start in self.hashes if region.start <= start < region.end)
        return [chunk_at(self.regions, start) for start in starts]

    def to_json(self) -> dict[str, Any]:
        """For the manifest; :func:`parse_map` reads it."""
        return {
            "chunk": CHUNK,
            "regions": [{"name": each.name, "start": each.start, "size": each.size} for each in self.regions],
            "sha256": {str(start): value for start, value in sorted(self.hashes.items())},
        }


def regions_of(layout: Layout) -> tuple[Region, ...]:
    """The regions of a disk, from its first byte to its last."""
    stated = [
        Region(BOOT_SECTOR, 0, SECTOR),
        Region(TABLE, SECTOR, TABLE_END - SECTOR),
        *(Region(_NAMES[part.kind], part.start, part.size) for part in layout.partitions),
        Region(BACKUP, layout.size_bytes - BACKUP_SIZE, BACKUP_SIZE),
    ]
    return tuple(_with_gaps(stated))


def _with_gaps(stated: Sequence[Region]) -> Iterator[Region]:
    at = 0
    for region in sorted(stated, key=lambda each: each.start):
        if region.start > at:
            yield Region(GAP, at, region.start - at)
        yield region
        at = region.end


def chunk_at(regions: Sequence[Region], offset: int) -> Chunk:
    """The chunk that the byte at ``offset`` of the disk is in.

    Raises:
        IndexError: the disk is not that long.
    """
    region = regions[bisect_right(regions, offset, key=lambda each: each.start) - 1]
    if not region.start <= offset < region.end:
        raise IndexError(offset)
    start = offset // CHUNK * CHUNK
    return Chunk(region, max(region.start, start), min(region.end, start + CHUNK))


def parse_map(body: object) -> DiskMap:
    """The map in a manifest, which may hold anything.

    Raises:
        MapError: it is not a map, or leaves a part of the disk out.
    """
    if not isinstance(body, dict) or body.get("chunk") != CHUNK:
        raise MapError(f"is not made of chunks of {CHUNK} bytes")
    listed, hashes = body.get("regions"), body.get("sha256")
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_REGIONS:
        raise MapError("has no list of regions")
    regions = tuple(map(_region, listed))
    at = 0
    for region in regions:
        if region.start != at:
            raise MapError(f"has a hole or an overlap at byte {at}")
        at = region.end
    if not isinstance(hashes, dict) or len(hashes) > _MOST_CHUNKS:
        raise MapError("has no table of hashes")
    return DiskMap(regions, dict(_hash(regions, key, value) for key, value in hashes.items()))


def _region(body: object) -> Region:
    if not isinstance(body, dict):
        raise MapError("has a region that is none")
    name, start, size = (body.get(key) for key in ("name", "start", "size"))
    numbers = all(type(number) is int and 0 <= number < 1 << 62 for number in (start, size))
    if not (isinstance(name, str) and 0 < len(name) < 100 and numbers and size):
        raise MapError("has a region without name, start or size")
    assert isinstance(start, int), start
    assert isinstance(size, int), size
    return Region(name, start, size)


def _hash(regions: Sequence[Region], key: str, value: object) -> tuple[int, str]:
    if not (key.isascii() and key.isdigit() and len(key) < 20 and isinstance(value, str) and _SHA256.fullmatch(value)):
        raise MapError("has an entry that is not the SHA-256 of a chunk")
    start = int(key)
    if start >= regions[-1].end or chunk_at(regions, start).start != start:
        raise MapError(f"has a hash for byte {start}, where no chunk begins")
    return start, value
