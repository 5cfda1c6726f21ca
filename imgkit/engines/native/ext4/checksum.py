"""The checksums of metadata: CRC-32C, seeded with the UUID of the filesystem ("Checksums").

Each checksum covers the seed, what identifies the structure (the number of an inode, a group or a block), and the
structure itself with zeros in place of the checksum. Unlike common implementations of CRC-32C, ext4 does not invert
the result::

    seed = filesystem_seed(uuid)
    checksum(inode_seed(seed, 12), inode)
"""

from __future__ import annotations

import google_crc32c

_ONES = 0xFFFFFFFF


def checksum(seed: int, data: bytes) -> int:
    """Return the checksum of ``data``, continued from ``seed``, which is a checksum."""
    return int(google_crc32c.extend(seed ^ _ONES, data)) ^ _ONES


def filesystem_seed(uuid: bytes) -> int:
    """Return the seed of all checksums of a filesystem, except that of the superblock."""
    return checksum(_ONES, uuid)


def superblock_checksum(superblock: bytes) -> int:
    """Return the checksum of a superblock, which is its last field."""
    return checksum(_ONES, superblock[:-4])


def inode_seed(seed: int, number: int) -> int:
    """Return the seed for an inode of generation 0 and for what belongs to it: directory blocks, extent blocks."""
    return checksum(seed, number.to_bytes(4, "little") + bytes(4))
