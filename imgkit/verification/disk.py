"""Compare a raw disk with the map in its manifest, byte by byte. The disk is read once, from beginning to end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgkit.disk import ext4, gpt
from imgkit.disk.layout import SECTOR
from imgkit.disk.regions import BACKUP, BOOT_SECTOR, ROOT, TABLE, TABLE_END, Chunk, DiskMap, Region, chunk_at
from imgkit.engines.chunks import chunks
from imgkit.engines.limits import Limits

TAIL = "behind the disk that was built"
"""The name of the region that was added to an enlarged disk."""


@dataclass(frozen=True)
class Difference:
    """A range of bytes in which the disk is not as it was built: from ``start`` to before ``end``."""

    region: str
    start: int
    end: int


@dataclass(frozen=True)
class DiskReport:
    """The result of comparing a disk.

    Attributes:
        built: bytes of the disk when it was built.
        size: bytes of the disk now.
        differences: in their order on the disk.
        moved: whether the partition table was adapted to another size of the disk, and is otherwise as it was built.
        pending: in words, what mounting the root filesystem would change; empty if nothing.
    """

    built: int
    size: int
    differences: tuple[Difference, ...]
    moved: bool = False
    pending: str = ""

    def touches(self, region: str) -> bool:
        """Return whether anything differs in the region of this name."""
        return any(difference.region == region for difference in self.differences)


def compare_disk(path: Path, size: int, stated: DiskMap, limits: Limits) -> DiskReport:
    """Compare the raw disk at ``path``, of ``size`` bytes, with the map of the one that was built.

    Raises:
        LimitError: the disk holds more data than ``limits`` allow, or reading it took too long.
    """
    wrong = {chunk.start: chunk for chunk in _wrong(path, size, stated, limits)}
    moved = False
    if size > stated.size:
        moved = _excuse_growth(path, size, stated, wrong)
    listed = tuple(_merged(sorted(wrong.values(), key=lambda chunk: chunk.start)))
    return DiskReport(stated.size, size, listed, moved=moved, pending=_pending(path, stated))


def _regions(size: int, stated: DiskMap) -> list[Region]:
    """Return the regions of the map, and one more for what was added to the disk."""
    behind = [Region(TAIL, stated.size, size - stated.size)] if size > stated.size else []
    return [*stated.regions, *behind]


def _wrong(path: Path, size: int, stated: DiskMap, limits: Limits) -> Iterator[Chunk]:
    """Yield the chunks that differ. Those that the map has, and of which the disk has nothing but zeros, come last."""
    regions = _regions(size, stated)
    left = dict(stated.hashes)
    for chunk, data in chunks(path, regions, most=limits.size, deadline=limits.deadline):
        if left.pop(chunk.start, None) != hashlib.sha256(data).hexdigest():
            yield chunk
    for start in left:
        yield chunk_at(regions, start)
    if size < stated.size:
        yield Chunk(chunk_at(regions, size).region, size, stated.size)


def _excuse_growth(path: Path, size: int, stated: DiskMap, wrong: dict[int, Chunk]) -> bool:
    """Remove from ``wrong`` the changes that moving the backup table to the end of an enlarged disk makes.

    Returns:
        Whether the table was moved, and the rest of it is as it was built.
    """
    with path.open("rb") as source:
        head = source.read(TABLE_END)
        source.seek(size - SECTOR)
        backup = gpt.backup_for(head, size, source.read(SECTOR))
    before = gpt.before_growth(head, stated.size, size)
    if before is None or not _as_built(before, stated):
        return False
    for name in (BOOT_SECTOR, TABLE):
        region = stated.named(name)
        if region is not None:
            wrong.pop(region.start, None)
    old = stated.named(BACKUP)
    if old is not None and _is_cleared(path, old, before):
        wrong.pop(old.start, None)
    for chunk in [chunk for chunk in wrong.values() if chunk.region.name == TAIL]:
        if _read(path, chunk) == _overlaid(chunk, backup):
            del wrong[chunk.start]
    return True


def _as_built(head: bytes, stated: DiskMap) -> bool:
    """Return whether the boot sector and the partition table in ``head`` are those of the map."""
    regions = [region for region in stated.regions if region.name in (BOOT_SECTOR, TABLE)]
    return len(regions) == 2 and all(
        stated.hashes.get(region.start) == hashlib.sha256(head[region.start : region.end]).hexdigest()
        for region in regions
    )


def _read(path: Path, place: Chunk | Region) -> bytes:
    with path.open("rb") as source:
        source.seek(place.start)
        return source.read(place.end - place.start)


def _is_cleared(path: Path, region: Region, built: bytes) -> bool:
    """Return whether the old backup table was cleared: all of it, or (as parted does) its header only.

    Args:
        built: the head of the disk as it was built, which has the same entries.
    """
    if region.size > TABLE_END:
        return False
    data = _read(path, region)
    return not any(data[-SECTOR:]) and (not any(data) or data[:-SECTOR] == built[2 * SECTOR :])


def _overlaid(chunk: Chunk, parts: Mapping[int, bytes]) -> bytes:
    """Return a chunk of zeros with those ``parts`` of the disk (offset → bytes) that lie in it."""
    data = bytearray(chunk.end - chunk.start)
    for start, part in parts.items():
        for place, byte in enumerate(part, start - chunk.start):
            if 0 <= place < len(data):
                data[place] = byte
    return bytes(data)


def _merged(wrong: Sequence[Chunk]) -> Iterator[Difference]:
    """Yield the chunks as differences; adjacent ones in the same region become one."""
    last: Difference | None = None
    for chunk in wrong:
        if last is not None and (last.region, last.end) == (chunk.region.name, chunk.start):
            last = Difference(last.region, last.start, chunk.end)
            continue
        if last is not None:
            yield last
        last = Difference(chunk.region.name, chunk.start, chunk.end)
    if last is not None:
        yield last


def _pending(path: Path, stated: DiskMap) -> str:
    """Return what mounting the root filesystem would change, in words; see :func:`imgkit.disk.ext4.pending`."""
    root = stated.named(ROOT)
    if root is None:
        return ""
    with path.open("rb") as source:
        source.seek(root.start + ext4.SUPERBLOCK)
        return ext4.pending(source.read(ext4.SUPERBLOCK))
