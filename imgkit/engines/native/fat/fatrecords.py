"""The records of a FAT filesystem, each as a value that is packed into bytes.

Format: Microsoft, "FAT: General Overview of On-Disk Format" (fatgen103), sections "Boot Sector and BPB", "FSInfo Sector
Structure and Backup Boot Sector", "FAT Directory Structure" and "FAT Long Directory Entries". All numbers are
little-endian.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from imgkit.disk.layout import SECTOR
from imgkit.engines.native.fat.fatgeometry import BACKUP_BOOT_SECTOR, FATS, FSINFO_SECTOR, FatGeometry

ENTRY_SIZE = 32
"""Bytes of a directory entry."""
ROOT_CLUSTER = 2
"""The first cluster there is; on FAT32 the root directory begins there."""
DIRECTORY, VOLUME_ID, ARCHIVE = 0x10, 0x08, 0x20
"""Attributes of directory entries: a directory, the label of the volume, a file that no backup has yet."""

_MEDIA = 0xF8  # a disk that is not removable
_DRIVE = 0x80  # as a BIOS counts: the first hard disk
# A cylinder of 64 heads with 32 sectors is 1 MiB, so that a partition of whole MiB is a whole number of cylinders.
_HEADS, _TRACK = 64, 32
_BPB = struct.Struct("<3s8sHBHBHHBHHHII")  # from BS_jmpBoot to BPB_TotSec32
_BPB32 = struct.Struct("<IHHIHH12x")  # from BPB_FATSz32 to BPB_Reserved
_VOLUME = struct.Struct("<BxBI11s8s")  # from BS_DrvNum to BS_FilSysType
_EXTENDED = 0x29  # the three fields of the volume follow
_NO_BOOT = b"\xcd\x18\xeb\xfe"  # int 18h: tell the BIOS that nothing boots from here; if it returns, stay here
_NO_LABEL = "NO NAME"
_SECTOR_END = b"\x55\xaa"
_OEM_NAME = b"mkfs.fat"  # some readers judge the filesystem by its maker, so we name the one that we do as

_FSINFO = struct.Struct("<I480xIII12x2s2s")
_FSINFO_LEAD, _FSINFO_STRUCTURE = 0x41615252, 0x61417272

_ENTRY = struct.Struct("<11sBBBHHHHHHHI")
_LONG = struct.Struct("<B10sBBB12sH4s")
_LONG_NAME = 0x0F  # the attributes that older readers skip
_LAST_LONG = 0x40
_LONG_UNITS = 13  # UTF-16 units in one entry


@dataclass(frozen=True)
class BootSector:
    """The first sector of the partition.

    Attributes:
        hidden: sectors of the disk before the partition.
        volume_id: 32 bits.
        label: at most 11 characters; empty for none.
    """

    geometry: FatGeometry
    hidden: int
    volume_id: int
    label: str

    def pack(self) -> bytes:
        """Return the sector."""
        plan = self.geometry
        label = (self.label or _NO_LABEL).encode("ascii").ljust(11)
        kind = f"FAT{plan.bits}".encode().ljust(8)
        rest = b"" if plan.bits == 16 else _BPB32.pack(plan.fat_sectors, 0, 0, ROOT_CLUSTER, *_SPECIAL_SECTORS)
        rest += _VOLUME.pack(_DRIVE, _EXTENDED, self.volume_id, label, kind)
        small = plan.sectors if plan.sectors < 1 << 16 else 0
        bpb = _BPB.pack(
            bytes((0xEB, _BPB.size + len(rest) - 2, 0x90)),  # a jump over the records, and nop
            _OEM_NAME,
            SECTOR,
            plan.cluster_sectors,
            plan.reserved_sectors,
            FATS,
            plan.root_entries,
            small,
            _MEDIA,
            plan.fat_sectors if plan.bits == 16 else 0,
            _TRACK,
            _HEADS,
            self.hidden,
            0 if small else plan.sectors,
        )
        return (bpb + rest + _NO_BOOT).ljust(SECTOR - 2, b"\0") + _SECTOR_END


_SPECIAL_SECTORS = (FSINFO_SECTOR, BACKUP_BOOT_SECTOR)


@dataclass(frozen=True)
class FsInfo:
    """What FAT32 knows of its free clusters: how many there are, and the last one that was taken."""

    free: int
    last: int

    def pack(self) -> bytes:
        """Return the sector."""
        return _FSINFO.pack(_FSINFO_LEAD, _FSINFO_STRUCTURE, self.free, self.last, b"", _SECTOR_END)


@dataclass(frozen=True)
class Stamp:
    """A time in the form of a directory entry: two-second steps from 1980 to 2107, without a time zone (here UTC)."""

    date: int
    time: int


_FIRST = Stamp(1 << 5 | 1, 0)
_LAST = Stamp(127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29)
_FIRST_SECOND, _END_SECOND = 315532800, 4354819200  # 1980-01-01 and 2108-01-01


def stamp_of(epoch: int) -> Stamp:
    """Return a time in seconds since 1970; one that cannot be stated becomes the earliest or the latest that can."""
    if not _FIRST_SECOND <= epoch < _END_SECOND:
        return _FIRST if epoch < _FIRST_SECOND else _LAST
    moment = time.gmtime(epoch)
    date = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
    return Stamp(date, moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2)


@dataclass(frozen=True)
class DirectoryEntry:
    """A short entry.

    Attributes:
        name: 8 + 3 bytes, filled with spaces.
        attributes: :data:`DIRECTORY`, :data:`VOLUME_ID` or :data:`ARCHIVE`.
        cluster: the first one of the content; 0 for none, and for the root directory.
        size: in bytes; 0 for a directory.
    """

    name: bytes
    attributes: int
    stamp: Stamp
    cluster: int = 0
    size: int = 0

    def pack(self) -> bytes:
        """Return the entry."""
        date, clock = self.stamp.date, self.stamp.time
        high, low = divmod(self.cluster, 1 << 16)
        times = (clock, date, date, high, clock, date)  # created, accessed; upper half of the cluster; written
        return _ENTRY.pack(self.name, self.attributes, 0, 0, *times, low, self.size)


def long_entries(name: str, short: bytes) -> bytes:
    """Return the entries that come before a short entry and hold the long name, the last part first."""
    units = name.encode("utf-16-le")
    parts = -(-len(units) // (2 * _LONG_UNITS))
    if len(units) < parts * 2 * _LONG_UNITS:
        units += b"\0\0"
    units = units.ljust(parts * 2 * _LONG_UNITS, b"\xff")
    check = _checksum(short)
    entries = b""
    for number in range(parts, 0, -1):
        part = units[(number - 1) * 2 * _LONG_UNITS : number * 2 * _LONG_UNITS]
        order = number | _LAST_LONG if number == parts else number
        entries += _LONG.pack(order, part[:10], _LONG_NAME, 0, check, part[10:22], 0, part[22:])
    return entries


def _checksum(short: bytes) -> int:
    """Return the checksum of a short name that its long name carries (fatgen103, "ChkSum")."""
    total = 0
    for byte in short:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total
