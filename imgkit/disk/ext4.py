"""The little that must be known of an ext4 filesystem without mounting it.

Format: Documentation/filesystems/ext4 of the Linux kernel, "Super Block".
"""

from __future__ import annotations

import struct

SUPERBLOCK = 1024
"""Where the superblock is, in bytes from the start of the filesystem, and how long it is."""

_MAGIC_AT, _INCOMPAT_AT, _ORPHAN_AT, _RO_COMPAT_AT = 0x38, 0x60, 0xE8, 0x64
_MAGIC = 0xEF53
_RECOVER = 0x4  # EXT4_FEATURE_INCOMPAT_RECOVER
_ORPHAN_PRESENT = 0x10000  # EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT


def pending(superblock: bytes) -> str:
    """What the kernel does to the filesystem when it mounts it, before anybody looks; empty if nothing.

    Args:
        superblock: its 1024 bytes.
    """
    if len(superblock) != SUPERBLOCK or struct.unpack_from("<H", superblock, _MAGIC_AT)[0] != _MAGIC:
        return ""
    incompat, read_only = (struct.unpack_from("<I", superblock, place)[0] for place in (_INCOMPAT_AT, _RO_COMPAT_AT))
    if incompat & _RECOVER:
        return "its journal needs recovery: what that holds is written when the image boots"
    if struct.unpack_from("<I", superblock, _ORPHAN_AT)[0] or read_only & _ORPHAN_PRESENT:
        return "it lists deleted or cut off files, which are cleaned up when the image boots"
    return ""
