"""The records of a qcow2 file: its header, and the entries of its tables.

Source: QEMU's docs/interop/qcow2.txt, whose sections the names below refer to. All numbers are big-endian. Those who
read a file that is not trusted check the values themselves (:mod:`imgkit.disk.diskimage`,
:mod:`imgkit.disk.qcow2tables`).
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import astuple, dataclass

MAGIC = b"QFI\xfb"
VERSION_3 = 3

# "Header", incompatible features
DIRTY, CORRUPT, DATA_FILE, COMPRESSION_TYPE, EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
KNOWN_FEATURES = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2

# "Cluster mapping", the entries of the L1 table and of L2 tables
COPIED = 1 << 63
"""The cluster that an entry refers to has a reference count of 1."""
COMPRESSED = 1 << 62
ZEROS = 1
"""A standard cluster of version 3 that reads as zeros, whatever the file has there."""
OFFSET = 0x00FF_FFFF_FFFF_FE00
"""Bits 9 to 55 of an entry: an offset in the file, of which 0 stands for none."""

ENTRY_SIZE = 8
"""Bytes of an entry of the L1 table, an L2 table or the reference count table."""
REFCOUNT_ORDER = 4
"""Reference counts have ``1 << REFCOUNT_ORDER`` bits in every file of version 2, and usually in those of version 3."""
HEADER_SIZE = 104
"""Bytes of the header of version 3 up to ``header_length``."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_SECTOR = 512  # "Compressed Clusters Descriptor"
_FEATURE_NAMES = 0x6803_F857  # "Header extensions"
_EXTENSION = struct.Struct(">II")
_FEATURE_NAME = struct.Struct(">BB46s")  # "Feature name table"


@dataclass(frozen=True)
class Qcow2Header:
    """Section "Header", in the order of the file. Offsets are those in the file, in bytes.

    Attributes:
        cluster_bits: the binary logarithm of the size of clusters.
        size: of the disk, in bytes.
        l1_size: entries of the L1 table.
        refcount_table_clusters: clusters of the reference count table.
        incompatible: features without which the file cannot be read; of version 3 as all that follow.
        header_length: bytes of the header; with further fields it is more than :data:`HEADER_SIZE`.
    """

    magic: bytes = MAGIC
    version: int = VERSION_3
    backing_offset: int = 0
    backing_size: int = 0
    cluster_bits: int = 16
    size: int = 0
    encryption: int = 0
    l1_size: int = 0
    l1_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = REFCOUNT_ORDER
    header_length: int = HEADER_SIZE

    @classmethod
    def parse(cls, start: bytes) -> Qcow2Header:
        """Read the header from the first bytes of a file; what is missing counts as zeros. Nothing is checked."""
        return cls(*_HEADER.unpack(start[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0")))

    def pack(self) -> bytes:
        """Return the bytes of the header up to ``header_length``, :data:`HEADER_SIZE` of them."""
        return _HEADER.pack(*astuple(self))


def feature_names(names: dict[int, str]) -> bytes:
    """Return the header extension that names incompatible features for programs that do not know them.

    Args:
        names: the number of each feature's bit, and its name.
    """
    table = b"".join(_FEATURE_NAME.pack(0, bit, name.encode()) for bit, name in names.items())
    return _EXTENSION.pack(_FEATURE_NAMES, len(table)) + table  # a multiple of 8 bytes, as it must be


def sector_bits(cluster_bits: int) -> int:
    """Return the number of the bit of a compressed cluster's entry above which its sectors are counted."""
    return 62 - (cluster_bits - 8)


def compressed_entry(offset: int, size: int, cluster_bits: int) -> int:
    """Return the entry of an L2 table for a compressed cluster.

    Args:
        offset, size: of the compressed bytes in the file; they need not be aligned.
    """
    sectors = (offset + size - 1) // _SECTOR - offset // _SECTOR  # beyond the one in which it begins
    return COMPRESSED | sectors << sector_bits(cluster_bits) | offset


def compressed_offset(entry: int, cluster_bits: int) -> int:
    """Return the offset in the file of a compressed cluster."""
    return entry & ((1 << sector_bits(cluster_bits)) - 1)


def packed(entries: array[int]) -> bytes:
    """Return the bytes of entries, or of reference counts. :func:`unpacked` reads entries."""
    if sys.byteorder == "little":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def unpacked(data: bytes) -> array[int]:
    """Return the entries that a table has; an incomplete last one is left out."""
    entries = array("Q", data[: len(data) // ENTRY_SIZE * ENTRY_SIZE])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries
