"""Find out whether a qcow2 file has lost its end, as an interrupted download or a full disk leaves it.

The tables of such a file refer to places beyond its end. QEMU reads zeros there, so the guest would start, and fail
somewhere later::

    if is_truncated(path):
        raise InputError(f"{path}: damaged or truncated")

Only the tables are read: some hundred kilobytes of an image of 2 GiB. Source: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct(">20xI12xIQQ")  # cluster_bits, l1_size, l1_table_offset, refcount_table_offset
_FEATURES = struct.Struct(">72xQ")  # incompatible_features, of version 3
_VERSION = struct.Struct(">4xI")
_EXTENDED_L2 = 1 << 4
_CLUSTER_BITS = range(9, 22)
_OFFSET = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55 of an entry: an offset in the file, of which 0 stands for none
_COMPRESSED, _ZEROS = 1 << 62, 1
_MOST_ENTRIES = 1 << 19  # of the L1 table, that are read: 256 TiB of a disk with the usual clusters
_MOST_TABLES = 64  # L2 tables that are read, the last ones of the file: 32 GiB of a disk with the usual clusters


def is_truncated(path: Path) -> bool:
    """Return whether a qcow2 file refers to places beyond its end.

    False does not mean that the file is whole: in a large file, not all tables are read. But no file is called
    truncated that QEMU can read completely.

    Args:
        path: a qcow2 file of version 2 or 3 whose data are in the file itself.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as source:
        size = source.seek(0, os.SEEK_END)
        return any(place >= size for place in _places(source))


def _places(source: BinaryIO) -> Iterator[int]:
    """Yield places of the file that its header and tables refer to."""
    start = _read(source, 0, 80).ljust(80, b"\0")
    bits, l1_size, l1_offset, refcounts = _HEADER.unpack_from(start)
    if bits not in _CLUSTER_BITS:
        return  # QEMU refuses it
    yield refcounts
    if l1_size:
        yield l1_offset + 8 * l1_size - 1
    tables = {entry & _OFFSET for entry in _entries(source, l1_offset, min(l1_size, _MOST_ENTRIES))} - {0}
    yield from tables
    (version,), (features,) = _VERSION.unpack_from(start), _FEATURES.unpack_from(start)
    if version > 2 and features & _EXTENDED_L2:
        return
    for table in sorted(tables)[-_MOST_TABLES:]:
        yield from _clusters(_entries(source, table, 1 << (bits - 3)), bits)


def _clusters(entries: array[int], bits: int) -> Iterator[int]:
    """Yield where the clusters begin to which an L2 table refers."""
    compressed = (1 << (62 - (bits - 8))) - 1
    for entry in set(entries):
        if entry & _COMPRESSED:
            yield entry & compressed
        elif not entry & _ZEROS:  # reads as zeros, whatever the file has there
            yield entry & _OFFSET


def _entries(source: BinaryIO, offset: int, count: int) -> array[int]:
    """Return the entries of a table, as many as there are in the file."""
    data = _read(source, offset, 8 * count)
    entries = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def _read(source: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 63:  # which no file has
        return b""
    source.seek(offset)
    return source.read(size)
