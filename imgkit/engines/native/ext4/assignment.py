"""Assign blocks to everything that needs some.

Blocks are given out in this order: the journal, what the inventory needs, the contents of files, the nodes of extents.
Every group of files begins at the border of a chunk, and every large file at the border of a cluster, unless there is
too little room for that::

    assignment = Assignment(geometry, journal, inodes)
    for …:
        runs = assignment.take(number, blocks)
    assignment.place_files(groups)
    assignment.blocks(number)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from imgkit.disk.regions import CHUNK
from imgkit.engines.native.clustercompression import CLUSTER
from imgkit.engines.native.ext4.allocation import FreeBlocks, FullError, Run, joined
from imgkit.engines.native.ext4.extents import LONGEST, ExtentTree, extent_tree
from imgkit.engines.native.ext4.geometry import Geometry
from imgkit.engines.native.ext4.records import BLOCK, JOURNAL

_ALIGNMENTS = (CHUNK // BLOCK, CLUSTER // BLOCK, 1)  # of groups of files, in blocks; the first that fits is taken


class TooFewBlocksError(Exception):
    """The filesystem is too small.

    Attributes:
        missing: how many blocks.
    """

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


class Assigned(NamedTuple):
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


class Assignment:
    """Where everything lies. An inode whose blocks lie in a row takes 16 bytes of memory.

    Args:
        journal: blocks of the journal.
        inodes: the highest number of an inode.

    Attributes:
        pointers: the block of the resize inode.
    """

    def __init__(self, geometry: Geometry, journal: int, inodes: int) -> None:
        self._geometry = geometry
        self._metadata = list(geometry.metadata())
        self._free = FreeBlocks(self._metadata, geometry.blocks)
        self._taken: list[Run] = []
        self._needed = 0
        self._is_full = False
        self._starts, self._lengths = (array("Q", bytes(8 * (inodes + 1))) for _ in range(2))  # of inodes' only runs
        self._scattered: dict[int, Sequence[Run]] = {}  # the blocks of inodes that have several runs
        self._trees: dict[int, ExtentTree] = {}  # those with nodes
        self._xattr_blocks: dict[int, int] = {}
        self.pointers = _first(self._counted(1))
        self.take(JOURNAL, journal)

    def take(self, number: int, count: int) -> Sequence[Run]:
        """Give blocks to an inode. If there are too few, it gets none, and :meth:`place_files` says so."""
        runs = self._counted(count)
        self._keep(number, runs)
        return runs

    def take_xattr_block(self, number: int) -> int:
        """Give an inode a block for extended attributes; 0 if there is none left."""
        self._xattr_blocks[number] = _first(self._counted(1))
        return self._xattr_blocks[number]

    def place_files(self, groups: Sequence[Iterable[tuple[int, int]]]) -> None:
        """Give blocks to the contents of files, and then to the nodes of extents. Can be called once.

        Args:
            groups: the files that are not empty, in groups: number of the inode, and bytes. Each can be read again.

        Raises:
            TooFewBlocksError: there are not enough, here or before.
        """
        self._taken = self._free.taken
        for alignment in () if self._is_full else _ALIGNMENTS:
            self._free = FreeBlocks(joined([*self._metadata, *self._taken]), self._geometry.blocks)
            try:
                self._place(groups, alignment)
            except FullError:
                continue
            self._taken += self._free.taken
            return
        needed = self._needed + sum(-(-size // BLOCK) for group in groups for _, size in group)
        room = self._geometry.blocks - sum(run.length for run in self._metadata)
        raise TooFewBlocksError(max(1, needed - room))

    def runs(self, number: int) -> Sequence[Run]:
        """Return the blocks of an inode's content, in order."""
        length = self._lengths[number]
        return (Run(self._starts[number], length),) if length else self._scattered.get(number, ())

    def blocks(self, number: int) -> Assigned:
        """Return the blocks of an inode."""
        runs = self.runs(number)
        extents = self._trees.get(number) or extent_tree(runs, _no_blocks)
        return Assigned(runs, extents, self._xattr_blocks.get(number, 0))

    def used(self) -> list[Run]:
        """Return all blocks in use, in order, when files have been placed."""
        return joined([*self._metadata, *self._taken])

    def _counted(self, count: int) -> list[Run]:
        self._needed += count
        try:
            return [] if self._is_full else self._free.take(count)
        except FullError:
            self._is_full = True
            return []

    def _keep(self, number: int, runs: Sequence[Run]) -> None:
        if len(runs) == 1:
            self._starts[number], self._lengths[number] = runs[0]
            self._scattered.pop(number, None)
        else:
            self._lengths[number] = 0
            self._scattered[number] = runs

    def _place(self, groups: Iterable[Iterable[tuple[int, int]]], alignment: int) -> None:
        """Give out blocks, with the groups of files at multiples of ``alignment``.

        Raises:
            FullError: there are not enough.
        """
        free, large = self._free, CLUSTER // BLOCK
        for group in groups:
            free.align(alignment)
            for number, size in group:
                count = -(-size // BLOCK)
                if count > large:
                    free.align(min(alignment, large))
                self._keep(number, free.take(count, alignment))
        free.align(alignment)
        self._trees.clear()
        long = (number for number, length in enumerate(self._lengths) if length > LONGEST)
        for number in sorted({*self._scattered, *long}, key=lambda number: (number != JOURNAL, number)):
            tree = extent_tree(self.runs(number), free.take)
            if tree.nodes:
                self._trees[number] = tree


def _first(runs: Sequence[Run]) -> int:
    return runs[0].start if runs else 0


def _no_blocks(_count: int) -> Sequence[Run]:
    """Give out blocks for nodes of a tree that needs none."""
    return ()
