"""The partition table of a new disk: the protective MBR, the GPT, and its backup at the end.

The bytes are those that ``sfdisk`` writes for the same partitions with ``first-lba: 2048``::

    for offset, data in table_pieces(layout, boot.boot_code).items():
        disk.put(offset, data)

Formats: UEFI specification, 5.2.3 (protective MBR), 5.3.2 (GPT header), 5.3.3 (entries).
"""

from __future__ import annotations

import struct
import uuid
import zlib

from imgkit.disk.gpt import backup_for, head_for
from imgkit.disk.layout import ALIGNMENT, SECTOR, Layout, Partition

_ENTRY = struct.Struct("<16s16sQQQ72s")  # type, identifier, first sector, last sector, attributes, name
_ENTRY_COUNT = 128
# What follows from the size of the disk is left out: the checksum, the place of the backup, the last usable sector.
_HEADER = struct.Struct("<8sIII4xQ8xQ8x16sQIII")
_REVISION = 0x00010000
_PROTECTIVE = struct.Struct("<B3sB3sII")  # boot flag, first CHS, type, last CHS, first sector, sectors
_PROTECTIVE_TYPE = 0xEE
_FIRST_CHS = b"\x00\x02\x00"  # sector 1 of the disk: head 0, sector 2, cylinder 0
_BOOT_CODE_END = 440
_RECORDS = 446
_MBR_END = b"\x55\xaa"


def table_pieces(layout: Layout, boot_code: bytes = b"") -> dict[int, bytes]:
    """Return the partition table of a disk.

    Args:
        boot_code: what a BIOS runs, at most 440 bytes; the first bytes of sector 0.

    Returns:
        Offset on the disk → bytes: the first 34 sectors, the backup of the entries, and the backup of the header.
    """
    if len(boot_code) > _BOOT_CODE_END:
        raise ValueError(f"boot code of {len(boot_code)} bytes")
    entries = _entries(layout)
    blank = boot_code.ljust(_RECORDS, b"\0") + _protective_record() + bytes(3 * _PROTECTIVE.size) + _MBR_END
    head = head_for(blank + _header(layout, entries) + entries, layout.size_bytes)
    return {0: head, **backup_for(head, layout.size_bytes, b"")}


def _protective_record() -> bytes:
    """Return the record that keeps programs without knowledge of GPT away from the disk (UEFI table 5-4)."""
    return _PROTECTIVE.pack(0, _FIRST_CHS, _PROTECTIVE_TYPE, b"", 1, 0)


def _header(layout: Layout, entries: bytes) -> bytes:
    fields = (b"EFI PART", _REVISION, _HEADER.size, 0, 1, ALIGNMENT // SECTOR, _guid(layout.disk_guid), 2)
    return _HEADER.pack(*fields, _ENTRY_COUNT, _ENTRY.size, zlib.crc32(entries)).ljust(SECTOR, b"\0")


def _entries(layout: Layout) -> bytes:
    table = bytearray(_ENTRY_COUNT * _ENTRY.size)
    for partition in layout.partitions:
        _ENTRY.pack_into(table, (partition.number - 1) * _ENTRY.size, *_entry(partition))
    return bytes(table)


def _entry(partition: Partition) -> tuple[bytes, bytes, int, int, int, bytes]:
    last = partition.start_lba + partition.sectors - 1
    name = partition.name.encode("utf-16-le")
    return _guid(partition.type_guid), _guid(partition.uuid), partition.start_lba, last, 0, name


def _guid(text: str) -> bytes:
    """Return a GUID as bytes; its first three fields are little-endian (UEFI appendix A)."""
    return uuid.UUID(text).bytes_le
