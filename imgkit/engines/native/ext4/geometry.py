"""The places of the metadata that follow from the size of a filesystem, as mke2fs chooses them.

Sources: "Layout" in the kernel's documentation; ext2fs_initialize and ext2fs_allocate_tables of e2fsprogs. The block
and inode bitmaps and the inode tables of 16 groups lie together behind the first group's copy of the superblock
(flex_bg). The superblock and the descriptors have copies in group 1 and in those whose number is a power of 3, 5 or 7
(sparse_super); behind each copy, blocks are reserved for the descriptors of a larger filesystem (resize_inode).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from imgkit.disk.size import BYTES_PER_INODE
from imgkit.engines.native.ext4.allocation import Run
from imgkit.engines.native.ext4.records import (
    BLOCK,
    BLOCKS_PER_GROUP,
    DESCRIPTOR_SIZE,
    GROUPS_PER_FLEX,
    INODE_SIZE,
)

GROWTH = 1 << 40
"""Bytes to which a smaller filesystem can be grown while it is mounted; a larger one can be doubled often enough."""
_LEAST_GROUP = 50  # blocks for data, without which mke2fs leaves out the last group
_INODES_PER_BLOCK = BLOCK // INODE_SIZE
_DESCRIPTORS_PER_BLOCK = BLOCK // DESCRIPTOR_SIZE
_MOST_RESERVED = BLOCK // 4  # pointers in a block of the resize inode
_MOST_BLOCKS = (1 << 32) - 1  # that the pointers of the resize inode reach


@dataclass(frozen=True)
class Group:
    """The places of a group's metadata, as numbers of blocks."""

    number: int
    start: int
    blocks: int
    block_bitmap: int
    inode_bitmap: int
    inode_table: int


@dataclass(frozen=True)
class Geometry:
    """The shape of a filesystem.

    Attributes:
        blocks: of the whole filesystem.
        inodes_per_group: a multiple of 16, so that the tables have whole blocks.
        reserved: blocks that are reserved for further descriptors, behind each copy of the descriptors.
    """

    blocks: int
    inodes_per_group: int
    reserved: int

    @property
    def group_count(self) -> int:
        """The number of groups."""
        return -(-self.blocks // BLOCKS_PER_GROUP)

    @property
    def inodes(self) -> int:
        """The inodes of all groups."""
        return self.group_count * self.inodes_per_group

    @property
    def descriptor_blocks(self) -> int:
        """The blocks of one copy of the descriptors."""
        return _descriptor_blocks(self.group_count)

    @property
    def table_blocks(self) -> int:
        """The blocks of one group's inode table."""
        return self.inodes_per_group // _INODES_PER_BLOCK

    @property
    def copy_blocks(self) -> int:
        """The blocks of a copy of the superblock, with the descriptors and those that are reserved."""
        return 1 + self.descriptor_blocks + self.reserved

    @cached_property
    def backups(self) -> tuple[int, ...]:
        """The groups besides the first that have a copy of the superblock, in order."""
        return tuple(number for number in range(1, self.group_count) if has_copy(number))

    def copy_in(self, group: int) -> int:
        """Return the blocks of the copy of the superblock in a group; 0 if there is none."""
        return self.copy_blocks if has_copy(group) else 0

    def group(self, number: int) -> Group:
        """Return the places of a group's metadata."""
        first = number // GROUPS_PER_FLEX * GROUPS_PER_FLEX
        together = min(GROUPS_PER_FLEX, self.group_count - first)
        at, place = number - first, first * BLOCKS_PER_GROUP + self.copy_in(first)
        start = number * BLOCKS_PER_GROUP
        return Group(
            number,
            start,
            min(BLOCKS_PER_GROUP, self.blocks - start),
            place + at,
            place + together + at,
            place + 2 * together + at * self.table_blocks,
        )

    def metadata(self) -> Iterator[Run]:
        """Yield the blocks that are in use before there is any file, in order."""
        for number in range(self.group_count):
            start = number * BLOCKS_PER_GROUP
            end = start + self.copy_in(number)
            if number % GROUPS_PER_FLEX == 0:
                together = min(GROUPS_PER_FLEX, self.group_count - number)
                end += together * (2 + self.table_blocks)
            if end > start:
                yield Run(start, end - start)


def has_copy(group: int) -> bool:
    """Return whether a group has a copy of the superblock and the descriptors (sparse_super)."""
    return group <= 1 or any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def geometry_of(size: int) -> Geometry | None:
    """Return the shape of a filesystem of ``size`` bytes; None if that is too small for any.

    A last group that would be too small to be of use is left out.
    """
    blocks = size // BLOCK
    while blocks:
        geometry = _geometry(blocks)
        last = blocks % BLOCKS_PER_GROUP
        metadata = geometry.copy_in(geometry.group_count - 1) + 2 + geometry.table_blocks
        if not last or last >= metadata + _LEAST_GROUP:
            return geometry
        blocks -= last
    return None


def _geometry(blocks: int) -> Geometry:
    groups = -(-blocks // BLOCKS_PER_GROUP)
    inodes = -(-(blocks * BLOCK // BYTES_PER_INODE) // groups)
    tables = max(1, -(-inodes // _INODES_PER_BLOCK))
    grown = max(GROWTH // BLOCK, min(blocks * 1024, _MOST_BLOCKS) if blocks * BLOCK >= GROWTH else 0)
    growth = _descriptor_blocks(-(-grown // BLOCKS_PER_GROUP)) - _descriptor_blocks(groups)
    return Geometry(blocks, tables * _INODES_PER_BLOCK, min(max(growth, 0), _MOST_RESERVED))


def _descriptor_blocks(groups: int) -> int:
    return -(-groups // _DESCRIPTORS_PER_BLOCK)
