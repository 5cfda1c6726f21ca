"""The tree of extents, which says where the blocks of a file lie ("Extent Tree")."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from imgkit.engines.native.ext4.allocation import Run
from imgkit.engines.native.ext4.checksum import checksum
from imgkit.engines.native.ext4.records import BLOCK, EXTENT, EXTENT_HEADER, EXTENT_INDEX

_MAGIC = 0xF30A
LONGEST = 1 << 15
"""Blocks of one extent."""
_IN_INODE = 4
_IN_BLOCK = (BLOCK - EXTENT_HEADER.size) // EXTENT.size


class ExtentTree(NamedTuple):
    """The root of a tree, for ``i_block`` of its inode, and the nodes below it.

    Attributes:
        nodes: number of the block → bytes, without the checksum at the end.
    """

    root: bytes
    nodes: Sequence[tuple[int, bytes]] = ()

    def sealed(self, seed: int) -> Iterator[tuple[int, bytes]]:
        """Yield the nodes with their checksums. ``seed`` is that of the inode."""
        for number, node in self.nodes:
            yield number, node + checksum(seed, node).to_bytes(4, "little")


_ROOT_OF_ONE = struct.Struct(f"{EXTENT_HEADER.format}{EXTENT.format[1:]}36x")


def extent_tree(runs: Sequence[Run], take: Callable[[int], Sequence[Run]]) -> ExtentTree:
    """Return the tree for the blocks of a file.

    Args:
        runs: the blocks in the order of the file.
        take: gives out that many blocks for nodes.
    """
    if len(runs) == 1 and runs[0].length <= LONGEST:  # almost every file
        ((start, length),) = runs
        root = _ROOT_OF_ONE.pack(_MAGIC, 1, _IN_INODE, 0, 0, 0, length, start >> 32, start & 0xFFFFFFFF)
        return ExtentTree(root)
    level, depth = list(_extents(runs)), 0
    nodes: list[tuple[int, bytes]] = []
    while len(level) > _IN_INODE:
        groups = [level[at : at + _IN_BLOCK] for at in range(0, len(level), _IN_BLOCK)]
        places = (run.start + at for run in take(len(groups)) for at in range(run.length))
        above = []
        for place, group in zip(places, groups, strict=True):
            nodes.append((place, _node(group, _IN_BLOCK, depth).ljust(BLOCK - 4, b"\0")))
            above.append((group[0][0], EXTENT_INDEX.pack(group[0][0], place & 0xFFFFFFFF, place >> 32, 0)))
        level, depth = above, depth + 1
    return ExtentTree(_node(level, _IN_INODE, depth).ljust(60, b"\0"), nodes)


def _extents(runs: Iterable[Run]) -> Iterator[tuple[int, bytes]]:
    """Yield the first logical block of each extent, and the extent."""
    logical = 0
    for run in runs:
        for at in range(0, run.length, LONGEST):
            start, count = run.start + at, min(LONGEST, run.length - at)
            yield logical, EXTENT.pack(logical, count, start >> 32, start & 0xFFFFFFFF)
            logical += count


def _node(entries: Sequence[tuple[int, bytes]], most: int, depth: int) -> bytes:
    header = EXTENT_HEADER.pack(_MAGIC, len(entries), most, depth, 0)
    return header + b"".join(entry for _, entry in entries)
