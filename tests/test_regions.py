"""The regions of a disk, the map of its chunks, how a disk is read, and what a superblock says."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from imgkit.disk import ext4
from imgkit.disk.layout import SECTOR, SizedPartition, make_layout
from imgkit.disk.regions import (
    Chunk,
    DiskMap,
    MapError,
    Region,
    chunk_at,
    parse_map,
    regions_of,
)
from imgkit.engines import chunks as reading
from imgkit.engines.chunks import chunks, map_disk
from imgkit.engines.engineerrors import LimitError
from tests.layouts import SPECS

MIB = 1 << 20
SEED = uuid.UUID(int=9)

# ---- regions ---------------------------------------------------------------------------------------------------------


def test_the_regions_of_a_disk_follow_each_other() -> None:
    layout = make_layout(SPECS["amd64"], 64 * MIB, SEED)
    end = layout.root.start + layout.root.size
    backup = 64 * MIB - 33 * SECTOR
    assert regions_of(layout) == (
        Region("boot sector", 0, 512),
        Region("partition table", 512, 33 * SECTOR),
        Region("gap", 34 * SECTOR, MIB - 34 * SECTOR),
        Region("BIOS boot partition", MIB, MIB),
        Region("EFI system partition", 2 * MIB, 16 * MIB),
        Region("root filesystem", 18 * MIB, 45 * MIB),
        Region("gap", end, backup - end),
        Region("backup partition table", backup, 33 * SECTOR),
    )


def test_there_is_no_gap_of_no_bytes() -> None:
    layout = make_layout((SizedPartition("root"),), 4 * MIB + 33 * SECTOR, SEED)
    assert [region.name for region in regions_of(layout)] == [
        "boot sector", "partition table", "gap", "root filesystem", "backup partition table",
    ]  # fmt: skip
    assert sum(region.size for region in regions_of(layout)) == layout.size_bytes


REGIONS = (Region("a", 0, 512), Region("b", 512, 3 * MIB), Region("c", 3 * MIB + 512, 100))
END = 3 * MIB + 612


@pytest.mark.parametrize(
    ("offset", "number", "start", "end"),
    [
        (0, 0, 0, 512), (511, 0, 0, 512), (512, 1, 512, MIB), (MIB - 1, 1, 512, MIB), (MIB, 1, MIB, 2 * MIB),
        (3 * MIB + 511, 1, 3 * MIB, 3 * MIB + 512), (3 * MIB + 512, 2, 3 * MIB + 512, END),
        (END - 1, 2, END - 100, END),
    ],
)  # fmt: skip
def test_chunks_end_with_their_region_or_at_a_whole_mib(offset: int, number: int, start: int, end: int) -> None:
    assert chunk_at(REGIONS, offset) == Chunk(REGIONS[number], start, end)


@pytest.mark.parametrize("offset", [END, END + MIB, -1])
def test_there_are_no_chunks_outside_of_the_disk(offset: int) -> None:
    with pytest.raises(IndexError):
        chunk_at(REGIONS, offset)


def test_the_chunks_of_a_region_are_in_order() -> None:
    starts = (END - 100, 2 * MIB, 512, 3 * MIB, 0)
    disk = DiskMap(REGIONS, dict.fromkeys(starts, "0" * 64))
    assert disk.size == END
    assert [chunk.start for chunk in disk.chunks(REGIONS[1])] == [512, 2 * MIB, 3 * MIB]
    assert disk.chunks(REGIONS[0]) == [Chunk(REGIONS[0], 0, 512)]
    assert disk.chunks(REGIONS[2]) == [Chunk(REGIONS[2], END - 100, END)]
    assert disk.named("b") == REGIONS[1]
    assert disk.named("x") is None
    same_name = DiskMap((Region("gap", 0, 1), Region("gap", 1, 1)), {})
    assert same_name.named("gap") == Region("gap", 0, 1)


# ---- the map in a manifest -------------------------------------------------------------------------------------------


def body_of(**changes: Any) -> dict[str, Any]:
    body = {
        "chunk": MIB,
        "regions": [{"name": "a", "start": 0, "size": 512}, {"name": "b", "start": 512, "size": 2 * MIB}],
        "sha256": {"0": "a" * 64, "1048576": "0123456789abcdef" * 4},
    }
    return {**body, **changes}


def test_a_map_as_it_is_in_a_manifest() -> None:
    disk = parse_map(body_of())
    assert disk.regions == (Region("a", 0, 512), Region("b", 512, 2 * MIB))
    assert disk.hashes == {0: "a" * 64, MIB: "0123456789abcdef" * 4}
    unordered = DiskMap(disk.regions, dict(sorted(disk.hashes.items(), reverse=True)))
    assert unordered.to_json() == body_of()
    assert list(unordered.to_json()["sha256"]) == ["0", "1048576"]


def region(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "start": 0, "size": 512, **changes}


NO_REGION = "has a region without name, start or size"
NO_HASH = "has an entry that is not the SHA-256 of a chunk"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "is not made of chunks of 1048576 bytes"),
        (body_of(chunk=None), "is not made of chunks of 1048576 bytes"),
        (body_of(chunk=MIB + 1), "is not made of chunks of 1048576 bytes"),
        (body_of(regions=None), "has no list of regions"),
        (body_of(regions={}), "has no list of regions"),
        (body_of(regions=[]), "has no list of regions"),
        (body_of(regions=["a"]), "has a region that is not an object"),
        (body_of(regions=[region(), region(start=513)]), "has a hole or an overlap at byte 512"),
        (body_of(regions=[region(), region(start=511)]), "has a hole or an overlap at byte 512"),
        (body_of(regions=[region(start=512)]), "has a hole or an overlap at byte 0"),
        (body_of(regions=[region(name=5)]), NO_REGION),
        (body_of(regions=[region(name="")]), NO_REGION),
        (body_of(regions=[region(name="n" * 100)]), NO_REGION),
        (body_of(regions=[region(start=-1)]), NO_REGION),
        (body_of(regions=[region(start=False)]), NO_REGION),
        (body_of(regions=[region(start="0")]), NO_REGION),
        (body_of(regions=[region(size=0)]), NO_REGION),
        (body_of(regions=[region(size=-512)]), NO_REGION),
        (body_of(regions=[region(size=512.0)]), NO_REGION),
        (body_of(regions=[region(size=1 << 62)]), NO_REGION),
        (body_of(regions=[{"name": "a", "start": 0}]), NO_REGION),
        (body_of(sha256=None), "has no table of hashes"),
        (body_of(sha256=[]), "has no table of hashes"),
        (body_of(sha256={"": "0" * 64}), NO_HASH),
        (body_of(sha256={"-1": "0" * 64}), NO_HASH),
        (body_of(sha256={"\u0663": "0" * 64}), NO_HASH),
        (body_of(sha256={"\u00b2": "0" * 64}), NO_HASH),
        (body_of(sha256={"1" * 20: "0" * 64}), NO_HASH),
        (body_of(sha256={"0": 5}), NO_HASH),
        (body_of(sha256={"0": "0" * 65}), NO_HASH),
        (body_of(sha256={"0": "A" * 64}), NO_HASH),
        (body_of(sha256={"0": "0" * 64 + "\n"}), NO_HASH),
        (body_of(sha256={"1": "0" * 64}), "has a hash for byte 1, where no chunk begins"),
        (body_of(sha256={str(2 * MIB + 512): "0" * 64}), "has a hash for byte 2097664, where no chunk begins"),
        (body_of(sha256={"1" * 19: "0" * 64}), f"has a hash for byte {'1' * 19}, where no chunk begins"),
    ],
)  # fmt: skip
def test_why_a_map_is_refused(body: object, message: str) -> None:
    with pytest.raises(MapError) as refusal:
        parse_map(body)
    assert str(refusal.value) == message


def test_the_largest_numbers_of_a_map() -> None:
    name = "n" * 99
    size = (1 << 62) - 1
    assert parse_map(body_of(regions=[region(name=name, size=size)], sha256={})).regions == (Region(name, 0, size),)
    assert parse_map(body_of(regions=[region(size=1)], sha256={})).size == 1
    assert parse_map(body_of(regions=[region(start=number, size=1) for number in range(1000)], sha256={})).size == 1000
    with pytest.raises(MapError, match="has no list of regions"):
        parse_map(body_of(regions=[region(start=number, size=1) for number in range(1001)]))


class _Table(dict[str, str]):
    """A table of hashes that states how many there are."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return self._length


def test_a_map_has_chunks_for_four_tebibytes() -> None:
    assert parse_map(body_of(sha256=_Table((4 << 40) // MIB))).hashes == {}
    with pytest.raises(MapError, match="has no table of hashes"):
        parse_map(body_of(sha256=_Table((4 << 40) // MIB + 1)))


# ---- reading the chunks of a disk ------------------------------------------------------------------------------------

DATA = {0: b"boot", MIB + 5: b"x", 3 * MIB + 511: b"end", END: b"behind the disk"}
STATED = [(0, 512), (MIB, 2 * MIB), (3 * MIB, 3 * MIB + 512), (3 * MIB + 512, END)]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a disk with data in four chunks, zeros in a fifth, and holes."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for place, data in {**DATA, 2 * MIB: bytes(4096)}.items():
            file.seek(place)
            file.write(data)
    return path


def test_the_chunks_of_a_disk_are_those_with_data(disk: Path) -> None:
    found = list(chunks(disk, REGIONS))
    assert [(chunk.start, chunk.end) for chunk, _ in found] == STATED
    whole = disk.read_bytes()
    assert [data for _, data in found] == [whole[start:end] for start, end in STATED]


def test_the_map_of_a_disk(disk: Path) -> None:
    whole = disk.read_bytes()
    assert map_disk(disk, REGIONS) == DiskMap(
        REGIONS, {start: hashlib.sha256(whole[start:end]).hexdigest() for start, end in STATED}
    )


@pytest.mark.parametrize("failure", [errno.EINVAL, errno.ENOTSUP])
def test_filesystems_without_holes_are_read_altogether(
    failure: int, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lseek(_descriptor: int, _at: int, _how: int) -> int:
        raise OSError(failure, os.strerror(failure))

    stated = map_disk(disk, REGIONS)
    monkeypatch.setattr(os, "lseek", lseek)
    assert map_disk(disk, REGIONS) == stated
    monkeypatch.setattr(reading, "_SEEK_DATA", None)
    assert map_disk(disk, REGIONS) == stated


def test_holes_are_not_read(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        read.append((offset, offset + size))
        return original(descriptor, size, offset)

    original = os.pread
    monkeypatch.setattr(os, "pread", pread)
    disk.write_bytes(b"")
    with disk.open("r+b") as file:
        file.truncate(END)
        file.seek(2 * MIB)
        file.write(b"x")
    map_disk(disk, REGIONS)
    assert read == [(2 * MIB, 3 * MIB)]


def test_reading_has_its_limits(disk: Path) -> None:
    size = sum(end - start for start, end in STATED)
    assert len(list(chunks(disk, REGIONS, most=size, deadline=time.monotonic() + 1000))) == 4
    with pytest.raises(LimitError) as refusal:
        list(chunks(disk, REGIONS, most=size - 1))
    assert refusal.value.message == f"{disk}: more than {size - 1} bytes of data"
    assert refusal.value.hint == "--limit reads more"
    with pytest.raises(LimitError) as late:
        list(chunks(disk, REGIONS, deadline=time.monotonic() - 1))
    assert late.value.message == f"{disk}: could not be read in time"
    assert late.value.hint == "--timeout gives it more"


def test_no_data_at_all_are_within_every_limit(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(END)
    assert list(chunks(empty, REGIONS, most=0)) == []
    (tmp_path / "zeros.raw").write_bytes(bytes(END))
    assert list(chunks(tmp_path / "zeros.raw", REGIONS, most=0)) == []


# ---- the superblock of ext4 ------------------------------------------------------------------------------------------


def superblock(magic: int = 0xEF53, incompat: int = 0, orphan: int = 0, read_only: int = 0) -> bytes:
    data = bytearray(1024)
    struct.pack_into("<H", data, 0x38, magic)
    struct.pack_into("<I", data, 0x60, incompat)
    struct.pack_into("<I", data, 0x64, read_only)
    struct.pack_into("<I", data, 0xE8, orphan)
    return bytes(data)


JOURNAL = "its journal needs recovery: what that holds is written when the image boots"
ORPHANS = "it lists deleted or cut off files, which are cleaned up when the image boots"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (superblock(), ""),
        (superblock(incompat=0x4), JOURNAL),
        (superblock(incompat=0xFFFFFFFB, read_only=0xFFFEFFFF), ""),
        (superblock(orphan=12), ORPHANS),
        (superblock(read_only=0x10000), ORPHANS),
        (superblock(incompat=0x4, orphan=12), JOURNAL),
        (superblock(magic=0x53EF, incompat=0x4), ""),
        (superblock(incompat=0x4) + b"\0", ""),
        (superblock(incompat=0x4)[:-1], ""),
        (b"", ""),
    ],
)
def test_what_mounting_changes(data: bytes, words: str) -> None:
    assert ext4.pending(data) == words
