"""Find out whether a qcow2 file has lost its end, as an interrupted download or a full disk leaves it.

The tables of such a file refer to places beyond its end. QEMU reads zeros there, so the guest would start, and fail
somewhere later::

    if is_truncated(path):
        raise InputError(f"{path}: damaged or truncated")

Only the tables are read: some hundred kilobytes of an image of 2 GiB. Source: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imgkit.disk import qcow2format
from imgkit.disk.qcow2format import COMPRESSED, OFFSET, VERSION_3, ZEROS, Qcow2Header

_CLUSTER_BITS = range(9, 22)
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
    header = Qcow2Header.parse(_read(source, 0, qcow2format.HEADER_SIZE))
    bits = header.cluster_bits
    if bits not in _CLUSTER_BITS:
        return  # QEMU refuses it
    yield header.refcount_table_offset
    if header.l1_size:
        yield header.l1_offset + qcow2format.ENTRY_SIZE * header.l1_size - 1
    first = _entries(source, header.l1_offset, min(header.l1_size, _MOST_ENTRIES))
    tables = {entry & OFFSET for entry in first} - {0}
    yield from tables
    if header.version >= VERSION_3 and header.incompatible & qcow2format.EXTENDED_L2:
        return
    for table in sorted(tables)[-_MOST_TABLES:]:
        yield from _clusters(_entries(source, table, (1 << bits) // qcow2format.ENTRY_SIZE), bits)


def _clusters(entries: array[int], bits: int) -> Iterator[int]:
    """Yield where the clusters begin to which an L2 table refers."""
    for entry in set(entries):
        if entry & COMPRESSED:
            yield qcow2format.compressed_offset(entry, bits)
        elif not entry & ZEROS:
            yield entry & OFFSET


def _entries(source: BinaryIO, offset: int, count: int) -> array[int]:
    """Return the entries of a table, as many as there are in the file."""
    return qcow2format.unpacked(_read(source, offset, qcow2format.ENTRY_SIZE * count))


def _read(source: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 63:  # which no file has
        return b""
    source.seek(offset)
    return source.read(size)
