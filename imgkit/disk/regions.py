"""The regions of a disk, and the map in a manifest: the SHA-256 of every chunk of the disk.

The regions follow each other without gaps. They are divided into chunks at multiples of 1 MiB; a chunk without a hash
in the map has only zeros::

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
"""The greatest size of a chunk in bytes."""

TABLE_END = 34 * SECTOR
"""The end of the primary partition table: after sector 0 a header and 32 sectors of entries (UEFI 5.3)."""

BACKUP_SIZE = 33 * SECTOR
"""Bytes of the backup partition table at the end of a disk."""

_MAX_REGIONS = 1000
_MAX_CHUNKS = 1 << 22  # of 4 TiB
_SHA256 = re.compile(r"[0-9a-f]{64}")

BOOT_SECTOR, TABLE, BACKUP, GAP = "boot sector", "partition table", "backup partition table", "gap"
BIOS_BOOT, ESP, ROOT = "BIOS boot partition", "EFI system partition", "root filesystem"
_NAMES: Mapping[PartitionKind, str] = {"bios-boot": BIOS_BOOT, "esp": ESP, "root": ROOT}


class MapError(ValueError):
    """The map of a manifest is not valid; the message says why."""


@dataclass(frozen=True)
class Region:
    """A named part of the disk; ``start`` and ``size`` are in bytes."""

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.start + self.size


@dataclass(frozen=True)
class Chunk:
    """The bytes of a disk from ``start`` up to and without ``end``, all of them in ``region``."""

    region: Region
    start: int
    end: int


@dataclass(frozen=True)
class DiskMap:
    """The contents of a disk: ``hashes`` has the SHA-256 of each chunk that is not all zeros, by its offset."""

    regions: tuple[Region, ...]
    hashes: Mapping[int, str]

    @property
    def size(self) -> int:
        """Bytes of the whole disk."""
        return self.regions[-1].end

    def named(self, name: str) -> Region | None:
        """Return the first region of this name, or None."""
        return next((region for region in self.regions if region.name == name), None)

    def chunks(self, region: Region) -> list[Chunk]:
        """Return the chunks of ``region`` that are not all zeros, in order."""
        starts = sorted(start for start in self.hashes if region.start <= start < region.end)
        return [chunk_at(self.regions, start) for start in starts]

    def to_json(self) -> dict[str, Any]:
        """Return the map as it is in the manifest; :func:`parse_map` reads it."""
        regions = [{"name": region.name, "start": region.start, "size": region.size} for region in self.regions]
        return {
            "chunk": CHUNK,
            "regions": regions,
            "sha256": {str(start): value for start, value in sorted(self.hashes.items())},
        }


def regions_of(layout: Layout) -> tuple[Region, ...]:
    """Return the regions of a disk, from its first byte to its last."""
    if layout.is_bare:
        return (Region(ROOT, 0, layout.size_bytes),)
    regions = [
        Region(BOOT_SECTOR, 0, SECTOR),
        Region(TABLE, SECTOR, TABLE_END - SECTOR),
        *(Region(_NAMES[part.kind], part.start, part.size) for part in layout.partitions),
        Region(BACKUP, layout.size_bytes - BACKUP_SIZE, BACKUP_SIZE),
    ]
    return tuple(_with_gaps(regions))


def _with_gaps(regions: Sequence[Region]) -> Iterator[Region]:
    """Yield the regions in order, and what is between them as further regions."""
    end = 0
    for region in sorted(regions, key=lambda region: region.start):
        if region.start > end:
            yield Region(GAP, end, region.start - end)
        yield region
        end = region.end


def chunk_at(regions: Sequence[Region], offset: int) -> Chunk:
    """Return the chunk that has the byte at ``offset`` of the disk.

    Raises:
        IndexError: the disk is shorter.
    """
    region = regions[bisect_right(regions, offset, key=lambda region: region.start) - 1]
    if not region.start <= offset < region.end:
        raise IndexError(offset)
    start = offset // CHUNK * CHUNK
    return Chunk(region, max(region.start, start), min(region.end, start + CHUNK))


def parse_map(body: object) -> DiskMap:
    """Read the map of a manifest, which is not trusted.

    Raises:
        MapError: ``body`` is not a valid map, or the map lacks a part of the disk.
    """
    if not isinstance(body, dict) or body.get("chunk") != CHUNK:
        raise MapError(f"is not made of chunks of {CHUNK} bytes")
    listed, hashes = body.get("regions"), body.get("sha256")
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_REGIONS:
        raise MapError("has no list of regions")
    regions = tuple(map(_region, listed))
    end = 0
    for region in regions:
        if region.start != end:
            raise MapError(f"has a hole or an overlap at byte {end}")
        end = region.end
    if not isinstance(hashes, dict) or len(hashes) > _MAX_CHUNKS:
        raise MapError("has no table of hashes")
    return DiskMap(regions, dict(_hash(regions, key, value) for key, value in hashes.items()))


def _region(body: object) -> Region:
    if not isinstance(body, dict):
        raise MapError("has a region that is not an object")
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
