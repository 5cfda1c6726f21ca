"""Write a FAT filesystem with its files.

Everything lies in a row: the tables, the root directory, then each directory and file in one run of clusters, in the
order of their paths::

    for offset, data in fat_pieces(partition, boot.esp, epoch):
        disk.put(offset, data)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from imgkit.disk.layout import SECTOR, Partition
from imgkit.engines.native.fat.fatgeometry import BACKUP_BOOT_SECTOR, FATS, FSINFO_SECTOR, FatGeometry, geometry_for
from imgkit.engines.native.fat.fatrecords import (
    ARCHIVE,
    DIRECTORY,
    ENTRY_SIZE,
    ROOT_CLUSTER,
    VOLUME_ID,
    BootSector,
    DirectoryEntry,
    FsInfo,
    Stamp,
    stamp_of,
)
from imgkit.engines.native.fat.fattree import FatFile, FatFolder, fat_tree, folders_of
from imgkit.errors import RecipeError

_CODES = {16: "H", 32: "I"}
_MIB = 1 << 20


def fat_pieces(partition: Partition, files: Mapping[str, bytes], epoch: int) -> Iterator[tuple[int, bytes]]:
    """Return the bytes of a filesystem that are not zeros.

    Args:
        partition: where it lies on the disk; its label and its volume id.
        files: paths, with ``/`` between the names → contents. Directories are made for them.
        epoch: the time of everything, in seconds since 1970.

    Returns:
        Pairs of an offset on the disk and bytes, in ascending order. They do not overlap.

    Raises:
        RecipeError: the files do not fit, a name is not legal on a FAT, two differ in case only, or the partition has
            a size for which there is no FAT.
    """
    geometry = geometry_for(partition.size)
    root = fat_tree(files)
    runs = _allocate(root, geometry, partition)
    stamp = stamp_of(epoch)
    pieces = _metadata(geometry, partition, runs)
    return ((partition.start + offset, data) for offset, data in _all(pieces, root, geometry, partition.label, stamp))


def _all(
    metadata: list[tuple[int, bytes]], root: FatFolder, geometry: FatGeometry, label: str, stamp: Stamp
) -> Iterator[tuple[int, bytes]]:
    yield from metadata
    first = DirectoryEntry(label.encode("ascii").ljust(11), VOLUME_ID, stamp).pack() if label else b""
    data = first + _entries(root, stamp)
    if data:
        yield _offset(geometry, root.cluster), data
    yield from _contents(root, geometry, stamp)


def _allocate(root: FatFolder, geometry: FatGeometry, partition: Partition) -> list[int]:
    """Give everything its clusters, and return the lengths of the runs, which lie in a row from cluster 2 on.

    Raises:
        RecipeError: there are too few clusters, or too few entries for the root directory.
    """
    runs: list[int] = []
    following = ROOT_CLUSTER
    extra = ENTRY_SIZE if partition.label else 0
    if geometry.root_entries * ENTRY_SIZE < root.size + extra and geometry.bits == 16:
        raise RecipeError(
            f"the root directory of the EFI system partition has no room for {len(root.children)} names",
            hint="put them into a directory",
        )
    for node, size in _sizes(root, geometry.bits, extra):
        if size:
            node.cluster = following
            runs.append(-(-size // geometry.cluster_size))
            following += runs[-1]
    missing = following - ROOT_CLUSTER - geometry.clusters
    if missing > 0:
        short = -(-missing * geometry.cluster_size >> 10)
        needed = _fitting(root, partition.size, extra)
        raise RecipeError(
            f"EFI system partition of {partition.size >> 10} KiB is too small: {short} KiB are missing for its files",
            hint=f"make it at least {needed >> 20} MiB",
        )
    return runs


def _sizes(root: FatFolder, bits: int, extra: int) -> Iterator[tuple[FatFile | FatFolder, int]]:
    """Yield everything that has clusters, with its bytes, in the order in which it lies there."""
    if bits == 32:
        yield root, max(root.size + extra, ENTRY_SIZE)
    for folder in folders_of(root):
        if folder is not root:
            yield folder, folder.size + 2 * ENTRY_SIZE
        for child in folder.children.values():
            if isinstance(child, FatFile):
                yield child, len(child.data)


def _fitting(root: FatFolder, size: int, extra: int) -> int:
    """Return a size of the partition at which everything fits, a number of MiB."""
    size = max(size, sum(length for _, length in _sizes(root, 32, extra)))
    while True:
        size = (size // _MIB + 1) * _MIB
        geometry = geometry_for(size)
        clusters = (-(-length // geometry.cluster_size) for _, length in _sizes(root, geometry.bits, extra))
        if sum(clusters) <= geometry.clusters:
            return size


def _metadata(geometry: FatGeometry, partition: Partition, runs: list[int]) -> list[tuple[int, bytes]]:
    """Return the sectors before the root directory, as offsets in the partition and bytes."""
    boot = BootSector(
        geometry, partition.start_lba, int(partition.fs_uuid.replace("-", ""), 16), partition.label
    ).pack()
    pieces = [(0, boot)]
    if geometry.bits == 32:
        used = sum(runs)
        info = FsInfo(geometry.clusters - used, used + ROOT_CLUSTER - 1).pack()
        backup = BACKUP_BOOT_SECTOR * SECTOR
        pieces += [(FSINFO_SECTOR * SECTOR, info), (backup, boot), (backup + FSINFO_SECTOR * SECTOR, info)]
    table = _table(geometry.bits, runs)
    starts = (geometry.reserved_sectors + number * geometry.fat_sectors for number in range(FATS))
    return pieces + [(start * SECTOR, table) for start in starts]


def _table(bits: int, runs: list[int]) -> bytes:
    """Return the start of the table, up to the last cluster that is used."""
    end = 0xFFFF if bits == 16 else 0x0FFFFFFF
    entries = [end - 7, end]  # the kind of medium, F8; and the flags of a filesystem that was unmounted
    for length in runs:
        entries += range(len(entries) + 1, len(entries) + length)
        entries.append(end)
    return struct.pack(f"<{len(entries)}{_CODES[bits]}", *entries)


def _contents(root: FatFolder, geometry: FatGeometry, stamp: Stamp) -> Iterator[tuple[int, bytes]]:
    """Yield the clusters of everything below the root directory."""
    parents = {id(root): 0}
    for folder in folders_of(root):
        own = 0 if folder is root else folder.cluster
        if folder is not root:
            dots = _dots(own, parents[id(folder)], stamp)
            yield _offset(geometry, own), dots + _entries(folder, stamp)
        for child in folder.children.values():
            if isinstance(child, FatFolder):
                parents[id(child)] = own
            elif child.data:
                yield _offset(geometry, child.cluster), child.data


def _dots(own: int, parent: int, stamp: Stamp) -> bytes:
    return b"".join(
        DirectoryEntry(name.ljust(11), DIRECTORY, stamp, cluster).pack()
        for name, cluster in ((b".", own), (b"..", parent))
    )


def _entries(folder: FatFolder, stamp: Stamp) -> bytes:
    data = bytearray()
    for name, child in folder.children.items():
        data += folder.long_name(name)
        attributes, size = (ARCHIVE, len(child.data)) if isinstance(child, FatFile) else (DIRECTORY, 0)
        data += DirectoryEntry(folder.shorts[name], attributes, stamp, child.cluster, size).pack()
    return bytes(data)


def _offset(geometry: FatGeometry, cluster: int) -> int:
    """Return where a cluster begins in the partition; 0 is the root directory of a FAT16."""
    if not cluster:
        return geometry.root_sector * SECTOR
    return (geometry.data_sector + (cluster - ROOT_CLUSTER) * geometry.cluster_sectors) * SECTOR
