"""Assign blocks to everything that needs some.

Blocks are given out in this order: the journal, what the inventory needs, the contents of files, the nodes of extents.
Every group of files begins at the border of a chunk, and every large file at the border of a cluster, unless there is
too little room for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imgkit.disk.regions import CHUNK
from imgkit.engines.native.ext4.allocation import FreeBlocks, FullError, Run, joined
from imgkit.engines.native.ext4.extents import ExtentTree, extent_tree
from imgkit.engines.native.ext4.geometry import Geometry
from imgkit.engines.native.ext4.inventory import Member
from imgkit.engines.native.ext4.records import BLOCK

_CLUSTER = 64 << 10  # bytes
_ALIGNMENTS = (CHUNK // BLOCK, _CLUSTER // BLOCK, 1)  # of groups of files, in blocks; the first that fits is taken


class TooFewBlocksError(Exception):
    """The filesystem is too small.

    Attributes:
        missing: how many blocks.
    """

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


@dataclass(frozen=True)
class Assigned:
    """The blocks of an inode.

    Attributes:
        runs: the blocks of its content, in order.
        extents: the tree that finds them.
        xattr_block: the block of its extended attributes; 0 if there is none.
    """

    runs: Sequence[Run]
    extents: ExtentTree
    xattr_block: int = 0

    @property
    def blocks(self) -> int:
        """The blocks that count for the inode."""
        return sum(run.length for run in self.runs) + len(self.extents.nodes) + bool(self.xattr_block)


@dataclass(frozen=True)
class Assignment:
    """Where everything lies.

    Attributes:
        pointers: the block of the resize inode.
        journal: the blocks of the journal.
        inodes: number of an inode → its blocks, for those that have any.
        used: all blocks in use.
    """

    pointers: int
    journal: Assigned
    inodes: Mapping[int, Assigned]
    used: Sequence[Run]


def assign(
    geometry: Geometry, journal: int, members: Sequence[Member], files: Sequence[Sequence[tuple[int, int]]]
) -> Assignment:
    """Assign blocks.

    Args:
        journal: blocks of the journal.
        members: with the blocks of the inventory.
        files: the files that are not empty, in groups: number of the inode, and bytes.

    Raises:
        TooFewBlocksError: there are not enough.
    """
    for alignment in _ALIGNMENTS:
        try:
            return _assign(geometry, journal, members, files, alignment)
        except FullError:
            continue
    needed = 1 + journal + sum(len(member.blocks) + bool(member.xattrs.block) for member in members)
    needed += sum(-(-size // BLOCK) for group in files for _, size in group)
    room = geometry.blocks - sum(run.length for run in geometry.metadata())
    raise TooFewBlocksError(max(1, needed - room))


def _assign(
    geometry: Geometry,
    journal: int,
    members: Sequence[Member],
    files: Sequence[Sequence[tuple[int, int]]],
    alignment: int,
) -> Assignment:
    """Assign blocks, with the groups of files at multiples of ``alignment``.

    Raises:
        FullError: there are not enough.
    """
    metadata = list(geometry.metadata())
    free = FreeBlocks(metadata, geometry.blocks)
    pointers = free.take(1)[0].start
    runs: dict[int, list[Run]] = {0: free.take(journal)}
    attributes = {}
    for member in members:
        runs[member.number] = free.take(len(member.blocks))
        attributes[member.number] = free.take(1)[0].start if member.xattrs.block else 0
    for group in files:
        free.align(alignment)
        for number, size in group:
            if size > _CLUSTER:
                free.align(min(alignment, _CLUSTER // BLOCK))
            runs[number] = free.take(-(-size // BLOCK), alignment)
    free.align(alignment)
    assigned = {
        number: Assigned(taken, extent_tree(taken, free.take), attributes.get(number, 0))
        for number, taken in runs.items()
    }
    return Assignment(pointers, assigned.pop(0), assigned, joined([*metadata, *free.taken]))
