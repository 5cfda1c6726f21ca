"""Random descriptions of disks, the disks that are made of them, and their bytes as a model in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from imgkit.disk.regions import CHUNK
from imgkit.engines.native.sparsedisk import BLOCK, Extent, FileData, SparseDisk
from imgkit.tree import Content, Inline, Slice

MOST = 5 * CHUNK


@dataclass(frozen=True)
class Described:
    """A disk of ``size`` bytes; ``puts`` are offset, length and seed, ``extents`` offset, length, seed and place."""

    size: int
    puts: tuple[tuple[int, int, int], ...]
    extents: tuple[tuple[int, int, int, str], ...]


_borders = st.sampled_from([0, BLOCK, 1 << 16, CHUNK, 2 * CHUNK, 3 * CHUNK])
_offsets = st.integers(0, MOST) | st.builds(lambda border, by: max(0, border + by), _borders, st.integers(-600, 600))
_lengths = st.integers(1, 3000) | st.integers(1, 2 * CHUNK) | st.sampled_from([BLOCK, 1 << 16, CHUNK])
_seeds = st.integers(0, 8)


def described_disks() -> st.SearchStrategy[Described]:
    """Return a strategy for disks of up to 5 MiB. Seed 0 stands for zeros, small seeds for bytes that compress."""
    return st.builds(
        Described,
        st.integers(1, MOST // 512).map(lambda sectors: sectors * 512),
        st.lists(st.tuples(_offsets, _lengths, _seeds), max_size=6).map(tuple),
        st.lists(st.tuples(_offsets, _lengths, _seeds, st.sampled_from(["inline", "slice", "stream"])), max_size=6).map(
            tuple
        ),
    )


def pattern(seed: int, length: int) -> bytes:
    """Return bytes that are zeros (seed 0), that compress well (1 to 4) or not at all."""
    if not seed:
        return bytes(length)
    random_bytes = random.Random(seed).randbytes(max(1, length) if seed > 4 else 97)
    return (random_bytes * (length // len(random_bytes) + 1))[:length]


class Stream:
    """A content that can only be opened."""

    def __init__(self, data: bytes) -> None:
        self._content = Inline(data)
        self.size = len(data)
        self.open = self._content.open
        self.read = self._content.read


@contextmanager
def make(described: Described, folder: Path) -> Iterator[tuple[SparseDisk, bytes]]:
    """Yield the disk that is described, without what does not fit or overlaps, and its bytes."""
    model = bytearray(described.size)
    files = folder / "files"
    with SparseDisk(described.size, folder / "spool") as disk, files.open("xb") as sink:
        for offset, length, seed, kind in described.extents:
            offset = offset // BLOCK * BLOCK
            length = max(0, min(length, described.size - offset))
            data = pattern(seed, length + 7)
            content: Content = Inline(data)
            if kind == "slice":
                content = Slice(files, sink.tell(), len(data))
                sink.write(data)
                sink.flush()
            elif kind == "stream":
                content = Stream(data)
            try:
                disk.place(Extent(offset, FileData(content, hashlib.sha256(data).digest()), 3, length))
            except ValueError:
                continue
            model[offset : offset + length] = data[3 : 3 + length]
        for offset, length, seed in described.puts:
            data = pattern(seed, max(0, min(length, described.size - offset)))
            try:
                disk.put(offset, data)
            except ValueError:
                continue
            model[offset : offset + len(data)] = data
        yield disk, bytes(model)


def contents(disk: SparseDisk) -> bytes:
    """Return all bytes of a disk."""
    result = bytearray(disk.size)
    for chunk in disk.chunks():
        view = memoryview(result)[chunk.offset : chunk.offset + chunk.size]
        if chunk.is_generated:
            disk.read_generated(chunk.offset, view)
        for piece in chunk.pieces:
            view[piece.at : piece.at + piece.length] = piece.data.content.read()[piece.start :][: piece.length]
    return bytes(result)
