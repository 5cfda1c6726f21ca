"""The sizes of the parts of a FAT filesystem: FAT16 below 512 MiB, FAT32 from there on.

The sizes are those that mkfs.fat chooses: its first guess of the cluster's size, all parts aligned to clusters. It has
no FAT16 with clusters below 2 KiB, which small partitions need to have enough of them; we have.

Format: fatgen103, "FAT Data Structure" (the count of clusters decides the type) and "FAT Volume Initialization".
"""

from __future__ import annotations

from dataclasses import dataclass

from imgkit.disk.layout import SECTOR
from imgkit.errors import RecipeError

FATS = 2
"""How many copies of the table there are."""
FSINFO_SECTOR, BACKUP_BOOT_SECTOR = 1, 6
"""Sectors of a FAT32."""
FAT32_SIZE = 512 << 20
"""The size in bytes from which on a partition has a FAT32."""

_MIN_CLUSTERS16 = 4085  # with fewer clusters it is a FAT12
_MAX_CLUSTERS16 = 65522  # with 65,525 it is a FAT32; mkfs.fat leaves the last numbers out
_ROOT_ENTRIES = 512
_ENTRIES_OF_SECTOR = SECTOR // 32
_CLUSTERS16 = (4, 2, 1, 8, 16, 32)  # sectors of a cluster; the first that gives a legal count
_CLUSTERS32 = ((260, 1), (8 << 10, 8), (16 << 10, 16), (32 << 10, 32))  # up to so many MiB; sectors of a cluster
_LARGEST_CLUSTER = 64
_TINY = 8192  # up to so many sectors nothing is aligned
_MIN_SIZE = 3 << 20


@dataclass(frozen=True)
class FatGeometry:
    """The sizes of a FAT filesystem, in sectors of 512 bytes.

    Attributes:
        bits: of an entry of the table, 16 or 32.
        reserved_sectors: before the first table.
        fat_sectors: of each table.
        root_entries: of the root directory, which has a place of its own; 0 if it is a chain of clusters (FAT32).
    """

    bits: int
    sectors: int
    cluster_sectors: int
    reserved_sectors: int
    fat_sectors: int
    root_entries: int

    @property
    def root_sector(self) -> int:
        """The first sector after the tables."""
        return self.reserved_sectors + FATS * self.fat_sectors

    @property
    def data_sector(self) -> int:
        """The first sector of cluster 2."""
        return self.root_sector + self.root_entries // _ENTRIES_OF_SECTOR

    @property
    def clusters(self) -> int:
        """How many clusters there are; the first is number 2."""
        return (self.sectors - self.data_sector) // self.cluster_sectors

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return self.cluster_sectors * SECTOR


def geometry_for(size: int) -> FatGeometry:
    """Return the sizes for a partition of ``size`` bytes.

    Raises:
        RecipeError: it is too small for a FAT16, or too large for a FAT32.
    """
    sectors = size // SECTOR
    if size < FAT32_SIZE:
        candidates = (_geometry(16, sectors, per_cluster) for per_cluster in _CLUSTERS16)
        legal = (plan for plan in candidates if _MIN_CLUSTERS16 <= plan.clusters <= _MAX_CLUSTERS16)
        plan = next(legal, None)
        if plan is None:
            raise RecipeError(
                f"EFI system partition of {size >> 10} KiB is too small for FAT", hint=f"at least {_MIN_SIZE >> 20} MiB"
            )
        return plan
    if sectors >= 1 << 32:
        raise RecipeError(f"EFI system partition of {size >> 30} GiB is too large for FAT", hint="at most 2 TiB")
    return _geometry(32, sectors, next((count for mib, count in _CLUSTERS32 if size >> 20 <= mib), _LARGEST_CLUSTER))


def _geometry(bits: int, sectors: int, per_cluster: int) -> FatGeometry:
    """Return the geometry with clusters of ``per_cluster`` sectors, whose count may be illegal."""

    def aligned(count: int) -> int:
        return count if sectors <= _TINY else -(-count // per_cluster) * per_cluster

    reserved = aligned(1 if bits == 16 else 32)
    root = aligned(_ROOT_ENTRIES // _ENTRIES_OF_SECTOR) if bits == 16 else 0
    entry = bits // 8
    # Each cluster needs its bytes and an entry in each table; the first two entries have no cluster.
    data = (sectors - reserved - root) * SECTOR
    clusters = (data + FATS * 2 * entry) // (per_cluster * SECTOR + FATS * entry)
    table = aligned(-(-(clusters + 2) * entry // SECTOR))
    return FatGeometry(bits, sectors, per_cluster, reserved, table, root * _ENTRIES_OF_SECTOR)
