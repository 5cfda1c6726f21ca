"""The two files without a name that a filesystem has: its journal, and the one that keeps blocks for its growth.

The second is the resize inode: it owns the blocks that are reserved for further descriptors, behind the superblock and
behind each copy. It is as old as ext2, so its blocks are found by pointers: a block of pointers to the reserved blocks,
each of which points to those at the same place behind the copies (ext2fs_create_resize_inode of e2fsprogs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

from imgkit.engines.native.ext4.geometry import Geometry
from imgkit.engines.native.ext4.records import BLOCK, BLOCKS_PER_GROUP, JOURNAL_SUPERBLOCK

_JOURNAL_MAGIC, _SUPERBLOCK_V2 = 0xC03B3998, 4
_POINTERS = BLOCK // 4
_DIRECT = 12  # pointers of an inode to blocks of data
_DOUBLE = 13  # its pointer to a block of pointers to blocks of pointers
RESIZE_SIZE = (_DIRECT + _POINTERS + _POINTERS * _POINTERS) * BLOCK
"""Bytes of the resize inode, almost all of them holes."""


def journal_start(blocks: int, uuid: UUID) -> bytes:
    """Return the start of an empty journal; everything else of it can be anything."""
    return JOURNAL_SUPERBLOCK.pack(
        h_magic=_JOURNAL_MAGIC,
        h_blocktype=_SUPERBLOCK_V2,
        s_blocksize=BLOCK,
        s_maxlen=blocks,
        s_first=1,
        s_sequence=1,
        s_uuid=uuid.bytes,
        s_nr_users=1,
    )


def resize_inode_block(place: int) -> bytes:
    """Return ``i_block`` of the resize inode. ``place`` is the block of pointers to the reserved blocks."""
    return bytes(4 * _DOUBLE) + place.to_bytes(4, "little")


def resize_blocks(geometry: Geometry) -> int:
    """Return the blocks that the resize inode owns, with those of pointers."""
    return 1 + geometry.reserved * (1 + len(geometry.backups))


def resize_pointers(geometry: Geometry, place: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the blocks of pointers.

    Args:
        place: the block of pointers to the reserved blocks.
    """
    first = 1 + geometry.descriptor_blocks
    pointers = [0] * _POINTERS
    for block in range(first, first + geometry.reserved):
        pointers[(block - 1) % _POINTERS] = block
        copies = [group * BLOCKS_PER_GROUP + block for group in geometry.backups]
        yield block, struct.pack(f"<{len(copies)}I", *copies)
    yield place, struct.pack(f"<{_POINTERS}I", *pointers)
