"""The sparse disk: what is put and placed is where it should be, and what overlaps is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from imgkit.disk.regions import CHUNK
from imgkit.engines.native.sparsedisk import BLOCK, Extent, FileData, SparseDisk
from imgkit.tree import Inline
from tests.sparsedisks import Described, contents, described_disks, make

SIZE = 4 * CHUNK


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SparseDisk]:
    with SparseDisk(SIZE, tmp_path / "spool") as disk:
        yield disk


def data(size: int, seed: bytes = b"x") -> FileData:
    content = (hashlib.sha256(seed).digest() * (size // 32 + 1))[:size]
    return FileData(Inline(content), hashlib.sha256(content).digest())


@pytest.mark.slow
@given(described_disks())
def test_what_is_described_is_on_the_disk(tmp_path_factory: pytest.TempPathFactory, described: Described) -> None:
    with make(described, tmp_path_factory.mktemp("disk")) as (disk, model):
        chunks = list(disk.chunks())
        assert [chunk.offset for chunk in chunks] == sorted({chunk.offset for chunk in chunks})
        assert len(chunks) == disk.chunk_count
        assert contents(disk) == model


def test_chunks_without_anything_are_left_out(disk: SparseDisk) -> None:
    assert list(disk.chunks()) == []
    disk.put(0, bytes(2 * CHUNK))
    assert list(disk.chunks()) == []
    disk.put(3 * CHUNK - 1, b"ab")
    assert [(chunk.offset, chunk.is_generated) for chunk in disk.chunks()] == [
        (2 * CHUNK, True),
        (3 * CHUNK, True),
    ]


def test_zeros_take_no_space_but_overwrite(disk: SparseDisk, tmp_path: Path) -> None:
    disk.put(100, bytes(CHUNK))
    assert (tmp_path / "spool").stat().st_blocks == 0
    disk.put(0, b"x" * 3 * BLOCK)
    disk.put(BLOCK, bytes(BLOCK))
    assert contents(disk)[: 4 * BLOCK] == b"x" * BLOCK + bytes(BLOCK) + b"x" * BLOCK + bytes(BLOCK)


def test_an_extent_across_chunks_is_in_each_of_them(disk: SparseDisk) -> None:
    file = data(2 * CHUNK + 10)
    disk.place(Extent(CHUNK - BLOCK, file, 5, 2 * CHUNK))
    pieces = [(chunk.offset, piece.at, piece.start, piece.length) for chunk in disk.chunks() for piece in chunk.pieces]
    assert pieces == [
        (0, CHUNK - BLOCK, 5, BLOCK),
        (CHUNK, 0, 5 + BLOCK, CHUNK),
        (2 * CHUNK, 0, 5 + BLOCK + CHUNK, CHUNK - BLOCK),
    ]


def test_extents_may_be_placed_in_any_order(disk: SparseDisk) -> None:
    files = {offset: data(100, bytes([offset // BLOCK])) for offset in (8 * BLOCK, 0, 3 * BLOCK, BLOCK)}
    for offset, file in files.items():
        disk.place(Extent(offset, file, 0, 100))
    [chunk] = disk.chunks()
    assert [(piece.at, piece.data) for piece in chunk.pieces] == sorted(files.items())


@pytest.mark.parametrize("offset", [2 * BLOCK, BLOCK, 3 * BLOCK, 0])
def test_files_that_overlap_are_refused(offset: int, disk: SparseDisk) -> None:
    disk.place(Extent(2 * BLOCK, data(BLOCK + 1), 0, BLOCK + 1))
    with pytest.raises(ValueError, match=f"the extent at {offset} overlaps"):
        disk.place(Extent(offset, data(3 * BLOCK), 0, 2 * BLOCK + 1))
    disk.place(Extent(4 * BLOCK, data(1), 0, 1))
    disk.place(Extent(0, data(2 * BLOCK), 0, 2 * BLOCK))


def test_generated_bytes_and_files_do_not_share_a_block(disk: SparseDisk) -> None:
    disk.put(CHUNK - 1, b"x")
    with pytest.raises(ValueError, match="overlaps what is there"):
        disk.place(Extent(CHUNK - BLOCK, data(1), 0, 1))
    disk.place(Extent(CHUNK, data(1), 0, 1))
    with pytest.raises(ValueError, match="overlap a file"):
        disk.put(CHUNK + BLOCK - 1, b"\0")
    disk.put(CHUNK + BLOCK, b"x")


def test_what_was_refused_leaves_nothing(disk: SparseDisk) -> None:
    disk.place(Extent(CHUNK, data(1), 0, 1))
    before = contents(disk)
    with pytest.raises(ValueError, match="overlap"):
        disk.place(Extent(0, data(2 * CHUNK), 0, 2 * CHUNK))
    with pytest.raises(ValueError, match="overlap"):
        disk.put(0, b"x" * 2 * CHUNK)
    assert contents(disk) == before
    disk.place(Extent(0, data(CHUNK), 0, CHUNK))


@pytest.mark.parametrize(
    ("offset", "start", "length"),
    [(1, 0, 1), (0, 0, 0), (-BLOCK, 0, 1), (SIZE, 0, 1), (SIZE - BLOCK, 0, BLOCK + 1), (0, 9, 1 << 20), (0, -1, 5)],
)
def test_extents_that_are_not_possible(offset: int, start: int, length: int, disk: SparseDisk) -> None:
    with pytest.raises(ValueError, match="extent"):
        disk.place(Extent(offset, data(1 << 20), start, length))
    assert list(disk.chunks()) == []


def test_the_ends_of_a_disk(disk: SparseDisk, tmp_path: Path) -> None:
    disk.put(SIZE - 1, b"x")
    for offset in (SIZE, -1):
        with pytest.raises(ValueError, match="outside of the disk"):
            disk.put(offset, b"x")
    with SparseDisk(CHUNK + 512, tmp_path / "odd") as odd:
        odd.put(CHUNK, b"x" * 512)
        assert [(chunk.offset, chunk.size) for chunk in odd.chunks()] == [(CHUNK, 512)]
    for size in (0, -512, 511):
        with pytest.raises(ValueError, match="cannot have"):
            SparseDisk(size, tmp_path / "none")


def test_a_spool_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        SparseDisk(512, tmp_path / "spool")


def test_a_spool_that_was_cut_is_noticed(disk: SparseDisk, tmp_path: Path) -> None:
    disk.put(0, b"x")
    os.truncate(tmp_path / "spool", 10)
    with pytest.raises(EOFError, match="generated bytes"):
        contents(disk)
