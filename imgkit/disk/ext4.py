"""Read from the superblock of an ext4 filesystem its size, and what mounting it would change.

Format: Documentation/filesystems/ext4 of the Linux kernel, "Super Block".
"""

from __future__ import annotations

import struct

SUPERBLOCK = 1024
"""The offset of the superblock from the start of the filesystem, and its length, both in bytes."""

_BLOCKS_AT, _BLOCK_SIZE_AT, _BLOCKS_HIGH_AT = 0x4, 0x18, 0x150
_MAGIC_AT, _INCOMPAT_AT, _ORPHAN_AT, _RO_COMPAT_AT = 0x38, 0x60, 0xE8, 0x64
_MAGIC = 0xEF53
_64BIT = 0x80  # EXT4_FEATURE_INCOMPAT_64BIT
_MOST_BLOCK_SIZE = 6  # the binary logarithm of its KiB
_RECOVER = 0x4  # EXT4_FEATURE_INCOMPAT_RECOVER
_ORPHAN_PRESENT = 0x10000  # EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT


def stated_size(superblock: bytes) -> int:
    """Return the size of the filesystem in bytes; 0 if this is not the superblock of one.

    Args:
        superblock: the 1024 bytes of the superblock.
    """
    if not _is_superblock(superblock):
        return 0
    blocks, block_size, incompat = (
        struct.unpack_from("<I", superblock, offset)[0] for offset in (_BLOCKS_AT, _BLOCK_SIZE_AT, _INCOMPAT_AT)
    )
    if block_size > _MOST_BLOCK_SIZE:
        return 0
    if incompat & _64BIT:
        blocks += struct.unpack_from("<I", superblock, _BLOCKS_HIGH_AT)[0] << 32
    return int(blocks << 10 + block_size)


def pending(superblock: bytes) -> str:
    """Return what the kernel will change in the filesystem as soon as it is mounted, in words; empty if nothing.

    Args:
        superblock: the 1024 bytes of the superblock.
    """
    if not _is_superblock(superblock):
        return ""
    incompat, read_only = (struct.unpack_from("<I", superblock, offset)[0] for offset in (_INCOMPAT_AT, _RO_COMPAT_AT))
    if incompat & _RECOVER:
        return "its journal needs recovery: what that holds is written when the image boots"
    if struct.unpack_from("<I", superblock, _ORPHAN_AT)[0] or read_only & _ORPHAN_PRESENT:
        return "it lists deleted or cut off files, which are cleaned up when the image boots"
    return ""


def _is_superblock(superblock: bytes) -> bool:
    return len(superblock) == SUPERBLOCK and struct.unpack_from("<H", superblock, _MAGIC_AT)[0] == _MAGIC
