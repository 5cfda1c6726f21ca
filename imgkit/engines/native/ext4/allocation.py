"""Give out the free blocks of a filesystem, from the first to the last, and draw the bitmap of those in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgkit.engines.native.ext4.records import BLOCK, BLOCKS_PER_GROUP


class Run(NamedTuple):
    """Blocks in a row: the first one, and how many."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The block after the last one."""
        return self.start + self.length


class FullError(Exception):
    """There are not enough free blocks."""


class FreeBlocks:
    """The free blocks of a filesystem, which are given out in order; none is ever given back.

    Args:
        used: the blocks that are in use, in order.
        end: the number of blocks of the filesystem.

    Attributes:
        taken: what was given out, in order, blocks that follow each other as one run.
    """

    def __init__(self, used: Iterable[Run], end: int) -> None:
        self.taken: list[Run] = []
        self._gaps = gaps_between(used, end)
        self._at, self._end = next(self._gaps, (end, end))

    def take(self, count: int, multiple: int = 1) -> list[Run]:
        """Return the next ``count`` blocks.

        Args:
            multiple: leave free what lies before the first multiple or behind the last multiple of a gap.

        Raises:
            FullError: there are fewer.
        """
        runs = []
        while count:
            end = self._end // multiple * multiple
            if self._at >= end:
                self._next(multiple)
                continue
            length = min(count, end - self._at)
            runs.append(Run(self._at, length))
            append(self.taken, runs[-1])
            count -= length
            self._at += length
        return runs

    def align(self, multiple: int) -> None:
        """Go on at a multiple of ``multiple``; the blocks before it stay free."""
        self._at = -(-self._at // multiple) * multiple

    def _next(self, multiple: int) -> None:
        gap = next(self._gaps, None)
        if gap is None:
            raise FullError
        self._at, self._end = gap
        self.align(multiple)


def gaps_between(used: Iterable[Run], end: int) -> Iterator[tuple[int, int]]:
    """Yield the first block and the end of each stretch of blocks up to ``end`` that is not in ``used``."""
    at = 0
    for run in used:
        if run.start > at:
            yield at, run.start
        at = run.end
    if at < end:
        yield at, end


def joined(runs: Iterable[Run]) -> list[Run]:
    """Return the runs in order, those that follow each other as one."""
    result: list[Run] = []
    for run in sorted(runs):
        append(result, run)
    return result


def append(runs: list[Run], run: Run) -> None:
    """Append a run, or make the last one longer if ``run`` follows it."""
    if runs and runs[-1].end == run.start:
        runs[-1] = Run(runs[-1].start, runs[-1].length + run.length)
    else:
        runs.append(run)


def bitmaps(runs: Iterable[Run], blocks: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, block bitmap and free blocks of each group; bits behind the end of the filesystem are set.

    Args:
        runs: all blocks in use, as :func:`joined` returns them.
        blocks: of the filesystem.
    """
    todo = iter([*runs, Run(blocks, -blocks % BLOCKS_PER_GROUP)])
    run = next(todo)
    for number in range(-(-blocks // BLOCKS_PER_GROUP)):
        start = number * BLOCKS_PER_GROUP
        bits = 0
        while run.start < start + BLOCKS_PER_GROUP:
            first, end = max(run.start, start), min(run.end, start + BLOCKS_PER_GROUP)
            bits |= ((1 << (end - first)) - 1) << (first - start)
            if run.end > end:
                break
            run = next(todo, Run(1 << 62, 0))
        data = bits.to_bytes(BLOCK, "little")
        yield number, data, BLOCKS_PER_GROUP - bits.bit_count()
