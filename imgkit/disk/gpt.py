"""The fields of a partition table that follow from the size of the disk.

Partitioning programs that enlarge a disk move the backup table to its new end and write the new size into sectors 0
and 1. These functions compute what those places may hold then, so that everything else can be compared byte by byte.

Formats: UEFI specification, 5.2.3 (protective MBR), 5.3.2 (GPT header).
"""

from __future__ import annotations

import struct
import zlib

from imgkit.disk.layout import SECTOR
from imgkit.disk.regions import BACKUP_SIZE, TABLE_END

_MBR_CHS, _MBR_SECTORS = 446 + 5, 446 + 12  # EndingCHS and SizeInLBA of the first record
_NO_CHS = b"\xff\xff\xff"
_HEADER_SIZE, _HEADER_CRC, _MY_LBA, _ALTERNATE, _LAST_USABLE, _ENTRIES = 12, 16, 24, 32, 48, 72
_ENTRY_COUNT = 80  # followed by the size of an entry and the checksum of all of them, 32 bits each
_TYPE_SIZE, _LAST_LBA = 16, 40  # of an entry: bytes of its type, which are zeros in an unused one; its last sector
_SIGNATURE = b"EFI PART"
_MIN_HEADER = 92
_ENTRY_SECTORS = BACKUP_SIZE // SECTOR - 1
_HEADS, _TRACK = 255, 63  # heads and sectors of a track, which every BIOS reports for a large disk


def least_size(head: bytes) -> int:
    """Return how many bytes a disk has at least that begins with ``head``: up to its backup table and all partitions.

    Args:
        head: the first 34 sectors of the disk.

    Returns:
        0 if ``head`` has no partition table, or one whose checksum is wrong.
    """
    header = _header(head)
    if not _is_header(header) or _sealed(header) != header:
        return 0
    count, size, checksum = struct.unpack_from("<III", header, _ENTRY_COUNT)
    entries = head[2 * SECTOR : min(2 * SECTOR + count * size, TABLE_END)]
    lasts = [_number(header, _ALTERNATE)]
    if _number(header, _ENTRIES) == 2 and size >= _LAST_LBA + 8 and zlib.crc32(entries) == checksum:
        used = (entries[at : at + size] for at in range(0, len(entries), size))
        lasts += [_number(entry, _LAST_LBA) for entry in used if any(entry[:_TYPE_SIZE])]
    return (max(lasts) + 1) * SECTOR


def head_for(head: bytes, size: int) -> bytes:
    """Return the first 34 sectors of a disk as they would be if it had ``size`` bytes.

    A head without a partition table is returned unchanged.
    """
    return _head(head, size, _last_usable(size), _NO_CHS) if _is_header(_header(head)) else head


def before_growth(head: bytes, old: int, new: int) -> bytes | None:
    """Return the first 34 sectors of a disk of ``old`` bytes before it was enlarged to ``new`` bytes.

    Partitioning programs differ in two fields: the end of the protective partition as cylinder, head and sector, and
    the last usable sector, which some align. All other fields have one possible value.

    Args:
        head: the first 34 sectors of the enlarged disk.

    Returns:
        None if more was changed in ``head`` than enlarging a disk changes.
    """
    if not _is_header(_header(head)):
        return None
    usable = _number(_header(head), _LAST_USABLE)
    if not _last_usable(old) <= usable <= _last_usable(new):
        return None
    before = head_for(head, old)
    allowed = [_head(before, new, usable, last_chs) for last_chs in (_NO_CHS, _chs(new // SECTOR - 1))]
    return before if head in allowed else None


def backup_for(head: bytes, size: int, last_sector: bytes) -> dict[int, bytes]:
    """Return the backup table at the end of a disk of ``size`` bytes that begins with ``head``.

    Args:
        head: the first 34 sectors of the disk.
        size: bytes of the disk.
        last_sector: the last sector of the disk. Its header says where the entries are: right before it, or elsewhere.

    Returns:
        Offset on the disk → bytes, for the entries and for the header; empty if ``head`` has no partition table.
    """
    header = _header(head)
    if not _is_header(header):
        return {}
    last = size // SECTOR - 1
    entries = _number(last_sector, _ENTRIES) if _is_header(last_sector) else 0
    if not _number(header, _LAST_USABLE) < entries <= last - _ENTRY_SECTORS:
        entries = last - _ENTRY_SECTORS
    for place, value in ((_MY_LBA, last), (_ALTERNATE, 1), (_ENTRIES, entries)):
        header = _put(header, place, value)
    return {entries * SECTOR: head[2 * SECTOR : TABLE_END], last * SECTOR: _sealed(header)}


def _head(head: bytes, size: int, usable: int, chs: bytes) -> bytes:
    """Return ``head`` with the fields that depend on the size replaced.

    Args:
        usable: the last usable sector.
        chs: the last sector as cylinder, head and sector.
    """
    header = _put(_put(_header(head), _ALTERNATE, size // SECTOR - 1), _LAST_USABLE, usable)
    boot = bytearray(head[:SECTOR])
    boot[_MBR_CHS : _MBR_CHS + 3] = chs
    struct.pack_into("<I", boot, _MBR_SECTORS, min(size // SECTOR - 1, 0xFFFFFFFF))
    return bytes(boot) + _sealed(header) + head[2 * SECTOR :]


def _header(head: bytes) -> bytes:
    return head[SECTOR : 2 * SECTOR]


def _is_header(sector: bytes) -> bool:
    """Return whether a sector is a GPT header: its signature and its length are checked, not its checksum."""
    length = int.from_bytes(sector[_HEADER_SIZE:_HEADER_CRC], "little")
    return len(sector) == SECTOR and sector[:8] == _SIGNATURE and _MIN_HEADER <= length <= SECTOR


def _last_usable(size: int) -> int:
    return size // SECTOR - 2 - _ENTRY_SECTORS


def _chs(sector: int) -> bytes:
    """Return a sector as cylinder, head and sector, in the three bytes of a partition record of an MBR."""
    cylinder, rest = divmod(sector, _HEADS * _TRACK)
    head, number = divmod(rest, _TRACK)
    if cylinder > 1023:
        return _NO_CHS
    return bytes((head, number + 1 | cylinder >> 8 << 6, cylinder & 0xFF))


def _number(header: bytes, place: int) -> int:
    return int.from_bytes(header[place : place + 8], "little")


def _put(header: bytes, place: int, value: int) -> bytes:
    return header[:place] + struct.pack("<Q", value) + header[place + 8 :]


def _sealed(header: bytes) -> bytes:
    """Return the header with its checksum."""
    length = struct.unpack_from("<I", header, _HEADER_SIZE)[0]
    blank = header[:_HEADER_CRC] + bytes(4) + header[_HEADER_CRC + 4 :]
    return blank[:_HEADER_CRC] + struct.pack("<I", zlib.crc32(blank[:length])) + blank[_HEADER_CRC + 4 :]
