"""Partition tables that are packed field by field, for tests of the functions that compute and compare them."""

from __future__ import annotations

import struct
import zlib

from imgkit.disk.layout import SECTOR

NO_CHS = b"\xff\xff\xff"
ENTRIES = bytes(number % 251 for number in range(32 * SECTOR))


def gpt_header(
    size: int, *, usable: int | None = None, backup: bool = False, entries: int | None = None, length: int = 92
) -> bytes:
    """Return a header as UEFI 5.3.2 has it: the primary one of a disk of ``size`` bytes, or its backup."""
    last = size // SECTOR - 1
    own, other = (last, 1) if backup else (1, last)
    place = entries if entries is not None else last - 32 if backup else 2
    fields = (2048, last - 33 if usable is None else usable, b"0123456789abcdef", place, 128, 128, 0x12345678)

    def packed(crc: int) -> bytes:
        start = struct.pack("<8sIIIIQQ", b"EFI PART", 0x10000, length, crc, 0, own, other)
        return (start + struct.pack("<QQ16sQIII", *fields)).ljust(SECTOR, b"h" if length > 92 else b"\0")

    return packed(zlib.crc32(packed(0)[:length]))


def head_of(size: int, *, usable: int | None = None, chs: bytes = NO_CHS, length: int = 92) -> bytes:
    """Return the first 34 sectors of a disk of ``size`` bytes."""
    sectors = min(size // SECTOR - 1, 0xFFFFFFFF)
    record = struct.pack("<4sB3sII", b"\0\0\2\0", 0xEE, chs, 1, sectors)
    boot = (b"boot code".ljust(446, b".") + record).ljust(510, b"\0") + b"\x55\xaa"
    return boot + gpt_header(size, usable=usable, length=length) + ENTRIES
