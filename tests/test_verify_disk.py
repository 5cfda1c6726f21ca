"""``imgkit verify`` and the bytes of the disk: whatever is changed is found, and said to be where it is."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.disk import ext4, gpt
from imgkit.disk.layout import SECTOR
from imgkit.disk.regions import BACKUP, BOOT_SECTOR, ESP, ROOT, TABLE, DiskMap, MapError, chunk_at, parse_map
from imgkit.engines.chunks import chunks, map_disk
from imgkit.engines.imagefile import image_info
from imgkit.engines.limits import Limits
from imgkit.engines.rawcopy import oddities, raw_disk
from imgkit.errors import HostError, InputError
from imgkit.verification.disk import TAIL, DiskReport, compare_disk
from tests.conftest import need_program
from tests.verifying import LAYOUT, MIB, REGIONS, SIZE, flip, head, make_disk, seeded

pytestmark = pytest.mark.hostile

FLIPS = 300
QCOW2_FLIPS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiskMap]:
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    return path, make_disk(path)


@pytest.fixture
def disk(made: tuple[Path, DiskMap], tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return copy(made[0], tmp_path / "copy.raw")


def copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
    return target


def compared(path: Path, stated: DiskMap) -> DiskReport:
    return compare_disk(path, path.stat().st_size, stated, Limits(1 << 30))


def test_the_disk_that_was_built_has_no_differences(made: tuple[Path, DiskMap]) -> None:
    path, stated = made
    assert compared(path, stated) == DiskReport(SIZE, SIZE, ())
    assert 8 < len(stated.hashes) < 20
    assert [region.name for region in REGIONS][:2] == [BOOT_SECTOR, TABLE]


def test_every_changed_byte_is_found_where_it_is(disk: Path, made: tuple[Path, DiskMap]) -> None:
    """In data and in holes, in partitions and between them."""
    rng = seeded()
    ends = {place for region in REGIONS for place in (region.start, region.end - 1)}
    for place in [*sorted(ends), *(rng.randrange(SIZE) for _ in range(FLIPS))]:
        flip(disk, place, rng.randrange(1, 256))
        (found,) = compared(disk, made[1]).differences
        assert found.start <= place < found.end <= found.start + MIB, place
        assert found.region == chunk_at(REGIONS, place).region.name
        undo(disk, made[0], place)


def undo(path: Path, original: Path, place: int) -> None:
    with original.open("rb") as source, path.open("r+b") as sink:
        source.seek(place)
        sink.seek(place)
        sink.write(source.read(1))


def test_several_changes_are_several_differences(disk: Path, made: tuple[Path, DiskMap]) -> None:
    root = LAYOUT.root
    for place in (3, root.start, root.start + MIB, root.start + 5 * MIB):
        flip(disk, place)
    assert [(each.region, each.start, each.end) for each in compared(disk, made[1]).differences] == [
        (BOOT_SECTOR, 0, SECTOR),
        (ROOT, root.start, root.start + 2 * MIB),
        (ROOT, root.start + 5 * MIB, root.start + 6 * MIB),
    ]


def test_what_became_zeros_is_found(disk: Path, made: tuple[Path, DiskMap]) -> None:
    esp = LAYOUT.get("esp")
    assert esp is not None
    with disk.open("r+b") as file:
        file.seek(esp.start)
        file.write(bytes(300_000))
    punched = disk.with_name("punched.raw")
    copy(disk, punched)  # with a hole in place of the zeros
    for path in (disk, punched):
        assert [each.region for each in compared(path, made[1]).differences] == [ESP]


@pytest.mark.parametrize("size", [SECTOR, 40 * MIB, SIZE - SECTOR])
def test_a_disk_that_was_cut_off(size: int, disk: Path, made: tuple[Path, DiskMap]) -> None:
    with disk.open("r+b") as file:
        file.truncate(size)
    differences = compared(disk, made[1]).differences
    assert differences
    assert differences[-1].end == SIZE


# ---- qcow2 ---------------------------------------------------------------------------------------------------------


def guest_view(image: Path, folder: Path, stated: DiskMap) -> tuple[bool, Path | None]:
    """Return whether anything is said against an image, and the raw copy if there is one."""
    limits = Limits(1 << 30)
    try:
        info = image_info(image)
        odd = oddities(image, info, limits)
        raw = raw_disk(image, info, folder, limits)
    except InputError:
        return True, None
    report = compare_disk(raw, info.virtual_size, stated, limits)
    return bool(odd or report.differences), raw


def is_same_view(raw: Path, original: Path) -> bool:
    """Whether a raw disk is the original, perhaps with a hole behind it: the header of a qcow2 file has its size."""
    with raw.open("rb") as source:
        same = source.read(SIZE) == original.read_bytes()
        try:
            return same and os.lseek(source.fileno(), SIZE, os.SEEK_DATA) < 0
        except OSError as cause:
            return same and cause.errno == errno.ENXIO


@pytest.fixture(scope="module")
def qcow2(made: tuple[Path, DiskMap], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("qcow2") / "disk.qcow2"
    words: list[str | Path] = ["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", made[0], target]
    subprocess.run([need_program("qemu-img"), *words], check=True)
    return target


def test_every_changed_byte_of_a_qcow2_is_found_or_read_by_nobody(
    qcow2: Path, made: tuple[Path, DiskMap], tmp_path: Path
) -> None:
    rng, image, size = seeded(), tmp_path / "flipped.qcow2", qcow2.stat().st_size
    places = [rng.randrange(1024 if number % 3 == 0 else size) for number in range(QCOW2_FLIPS)]
    silent = 0
    for place in places:
        shutil.copyfile(qcow2, image)
        flip(image, place, rng.randrange(1, 256))
        folder = tmp_path / "scratch"
        folder.mkdir()
        against, raw = guest_view(image, folder, made[1])
        if not against:
            silent += 1
            assert raw is not None, place
            assert is_same_view(raw, made[0]), place
        shutil.rmtree(folder)
    assert silent < len(places)


def test_a_converted_disk_is_the_same(qcow2: Path, made: tuple[Path, DiskMap], tmp_path: Path) -> None:
    against, raw = guest_view(qcow2, tmp_path, made[1])
    assert not against
    assert raw == tmp_path / "disk.raw"
    assert raw.stat().st_blocks * 512 < 8 * MIB, "holes stay holes"
    assert guest_view(made[0], tmp_path, made[1]) == (False, made[0]), "a raw disk is not copied"


def test_snapshots_inside_the_file_are_named(qcow2: Path, tmp_path: Path) -> None:
    image = copy(qcow2, tmp_path / "snapshot.qcow2")
    assert oddities(image, image_info(image), Limits()) == []
    subprocess.run(["qemu-img", "snapshot", "-c", "evil\x1b[31m", image], check=True)
    (line,) = oddities(image, image_info(image), Limits())
    assert line == r"snapshot 'evil\x1b[31m' inside the file"
    subprocess.run(["qemu-img", "bitmap", "--add", image, "dirty"], check=True)
    assert oddities(image, image_info(image), Limits())[1] == "bitmap 'dirty' inside the file"


def test_two_places_of_a_disk_that_share_a_cluster_are_named(made: tuple[Path, DiskMap], tmp_path: Path) -> None:
    """They read as they were built. What is written to the one is read from the other."""
    image, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    raw.write_bytes(b"same" * (1 << 16))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    assert oddities(image, image_info(image), Limits()) == []
    data = bytearray(image.read_bytes())
    (first,) = struct.unpack_from(">Q", data, struct.unpack_from(">Q", data, 40)[0])  # of the L1 table
    second_level = first & 0x00FF_FFFF_FFFF_FE00
    data[second_level + 8 : second_level + 16] = data[second_level : second_level + 8]
    image.write_bytes(data)
    subprocess.run(["qemu-img", "compare", "-q", raw, image], check=True)
    lines = oddities(image, image_info(image), Limits())
    assert len(lines) == 1
    assert lines[0].startswith("the file is inconsistent: ")
    assert "corruptions" in lines[0]


def test_a_cluster_that_nobody_uses_is_no_fault(qcow2: Path, tmp_path: Path) -> None:
    image = copy(qcow2, tmp_path / "leaky.qcow2")
    data = bytearray(image.read_bytes())
    (table,) = struct.unpack_from(">Q", data, 48)  # the refcount table
    (block,) = struct.unpack_from(">Q", data, table)
    size = len(data) + (-len(data) % 65536)
    struct.pack_into(">H", data, block + size // 65536 * 2, 1)
    image.write_bytes(data.ljust(size + 65536, b"\0"))
    assert subprocess.run(["qemu-img", "check", "-q", image], check=False).returncode == 3
    assert oddities(image, image_info(image), Limits()) == []


def test_an_image_with_more_data_than_is_allowed_is_not_unpacked(qcow2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds \d+ MiB of data, where 2 MiB are read at most") as caught:
        raw_disk(qcow2, image_info(qcow2), tmp_path, Limits(2 * MIB))
    assert caught.value.hint == "--limit reads more"
    assert not list(tmp_path.iterdir())


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """16 GiB of the letter x, in a few kilobytes: every cluster of the disk is the same compressed one."""
    image, scratch = tmp_path / "bomb.qcow2", tmp_path / "scratch"
    scratch.mkdir()
    make_bomb(image, 16 << 30)
    assert image.stat().st_size < 5 * MIB
    with pytest.raises(InputError, match="of data, where 1024 MiB are read at most"):
        raw_disk(image, image_info(image), scratch, Limits(1 << 30))
    assert not list(scratch.iterdir())


def make_bomb(image: Path, size: int) -> None:
    """Fill all second-level tables with the first entry of the first (docs/interop/qcow2 of QEMU)."""
    seed = image.with_suffix(".raw")
    with seed.open("wb") as file:
        file.write(b"x" * 65536)
        file.truncate(size)
    words: list[str | Path] = ["convert", "-c", "-O", "qcow2", "-o", "compression_type=zlib", seed, image]
    subprocess.run([need_program("qemu-img"), *words], check=True)
    with image.open("r+b") as file:
        file.seek(36)
        l1_size, l1_place = int.from_bytes(file.read(4), "big"), int.from_bytes(file.read(8), "big")
        file.seek(l1_place)
        first = file.read(8)
        file.seek(int.from_bytes(first, "big") & (1 << 56) - 1)
        table = file.read(8) * 8192
        end = -(-file.seek(0, os.SEEK_END) // 65536) * 65536
        file.seek(end)
        file.write(table)
        file.seek(l1_place)
        file.write((end | 1 << 63).to_bytes(8, "big") * l1_size)


def test_no_room_for_the_copy(qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.engines.rawcopy._SPARE", 1 << 60)
    with pytest.raises(HostError, match="free, and reading the image takes"):
        raw_disk(qcow2, image_info(qcow2), tmp_path, Limits(1 << 30))


def test_a_qemu_img_that_hangs(qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    info = image_info(qcow2)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    with pytest.raises(InputError, match="no result within"):
        raw_disk(qcow2, info, tmp_path, Limits(1 << 30, 0.1))
    assert time.monotonic() - started < 10


# ---- limits of raw disks -------------------------------------------------------------------------------------------


def test_two_terabytes_of_nothing_are_quick(disk: Path, made: tuple[Path, DiskMap]) -> None:
    with disk.open("r+b") as file:
        file.truncate(2 << 40)
    started = time.monotonic()
    assert compared(disk, made[1]).differences == ()
    assert time.monotonic() - started < 10


def test_reading_a_raw_disk_has_its_limits(made: tuple[Path, DiskMap]) -> None:
    path = made[0]
    assert len(list(chunks(path, REGIONS, most=SIZE))) == len(made[1].hashes)
    with pytest.raises(InputError, match=f"more than {MIB} bytes of data"):
        list(chunks(path, REGIONS, most=MIB))
    full = path.with_name("full.raw")
    full.write_bytes(path.read_bytes())  # zeros are no data, whether they are in holes or not
    assert len(list(chunks(full, REGIONS, most=10 * MIB))) == len(made[1].hashes)
    with pytest.raises(InputError, match="could not be read in time"):
        list(chunks(path, REGIONS, deadline=time.monotonic() - 1))


# ---- enlarged disks ------------------------------------------------------------------------------------------------

NEW_SIZE = 96 * MIB


def grown(disk: Path) -> None:
    """Enlarge the disk and move the backup table, as partitioning programs do."""
    with disk.open("r+b") as file:
        file.truncate(NEW_SIZE)
        new = gpt.head_for(head(), NEW_SIZE)
        file.write(new)
        for place, data in gpt.backup_for(new, NEW_SIZE, b"").items():
            file.seek(place)
            file.write(data)


def test_an_enlarged_disk_is_as_it_was_built(disk: Path, made: tuple[Path, DiskMap]) -> None:
    with disk.open("r+b") as file:
        file.truncate(NEW_SIZE)
    assert compared(disk, made[1]) == DiskReport(SIZE, NEW_SIZE, ())
    grown(disk)
    assert compared(disk, made[1]) == DiskReport(SIZE, NEW_SIZE, (), moved=True)
    clear_old_backup(disk)
    assert compared(disk, made[1]) == DiskReport(SIZE, NEW_SIZE, (), moved=True)


def test_a_disk_of_which_the_old_backup_header_alone_was_cleared(disk: Path, made: tuple[Path, DiskMap]) -> None:
    """parted does so."""
    grown(disk)
    with disk.open("r+b") as file:
        file.seek(SIZE - SECTOR)
        file.write(bytes(SECTOR))
    assert compared(disk, made[1]) == DiskReport(SIZE, NEW_SIZE, (), moved=True)
    for place in (SIZE - 33 * SECTOR, SIZE - SECTOR, SIZE - 1):
        flip(disk, place)
        assert [each.region for each in compared(disk, made[1]).differences] == [BACKUP], place
        flip(disk, place)


def clear_old_backup(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(SIZE - 33 * SECTOR)
        file.write(bytes(33 * SECTOR))


def test_without_the_move_the_old_backup_must_stay(disk: Path, made: tuple[Path, DiskMap]) -> None:
    with disk.open("r+b") as file:
        file.truncate(NEW_SIZE)
    clear_old_backup(disk)
    assert [each.region for each in compared(disk, made[1]).differences] == [BACKUP]


@pytest.mark.parametrize("program", ["sgdisk", "sfdisk"])
@pytest.mark.parametrize("size", [NEW_SIZE, 10 << 30])
def test_real_programs_move_the_backup_table(program: str, size: int, tmp_path: Path) -> None:
    need_program(program)
    disk = tmp_path / "real.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    lines = ["label: gpt\nunit: sectors\nfirst-lba: 2048"]
    lines += [f"{part.number} : start={part.start_lba}, size={part.sectors}" for part in LAYOUT.partitions]
    subprocess.run([need_program("sfdisk"), "-q", disk], input="\n".join(lines), text=True, check=True)
    stated = map_disk(disk, REGIONS)
    with disk.open("r+b") as file:
        file.truncate(size)
    words = {"sgdisk": ["-e"], "sfdisk": ["-q", "--relocate", "gpt-bak-std"]}[program]
    subprocess.run([program, *words, disk], check=True, capture_output=True)
    assert compared(disk, stated) == DiskReport(SIZE, size, (), moved=True)


@pytest.mark.parametrize("cleared", [False, True])
def test_every_changed_byte_of_an_enlarged_disk_is_found(
    cleared: bool,
    disk: Path,
    made: tuple[Path, DiskMap],
) -> None:
    grown(disk)
    if cleared:
        clear_old_backup(disk)
    rng = seeded()
    original = copy(disk, disk.with_name("original.raw"))
    heads = [*range(0, 34 * SECTOR, 7), *(rng.randrange(NEW_SIZE) for _ in range(100))]
    tails = [*range(SIZE - 33 * SECTOR, SIZE, 501), *range(NEW_SIZE - 33 * SECTOR, NEW_SIZE, 97)]
    for place in [*rng.sample([*heads, *tails], 250), 450, 451, 458, SECTOR + 32, SECTOR + 48, SECTOR + 16]:
        flip(disk, place)
        report = compared(disk, made[1])
        assert any(each.start <= place < each.end for each in report.differences), place
        undo(disk, original, place)
    assert compared(disk, made[1]).differences == ()


def test_a_backup_table_of_another_head_is_found(disk: Path, made: tuple[Path, DiskMap]) -> None:
    grown(disk)
    other = bytearray(gpt.head_for(head(), NEW_SIZE))
    other[2 * SECTOR] ^= 1
    with disk.open("r+b") as file:
        for place, data in gpt.backup_for(bytes(other), NEW_SIZE, b"").items():
            file.seek(place)
            file.write(data)
    assert [each.region for each in compared(disk, made[1]).differences] == [TAIL]


@pytest.mark.parametrize(
    ("usable", "fits"),
    [
        (SIZE // SECTOR - 35, False),
        (SIZE // SECTOR - 34, True),
        (NEW_SIZE // SECTOR - 34, True),
        (NEW_SIZE // SECTOR - 33, False),
    ],
)
def test_the_last_usable_sector_is_between_the_old_and_the_new(usable: int, fits: object) -> None:
    """Programs that align it are known; one outside of the disk, or in the last partition, is no growth."""
    grown_head = gpt._head(head(), NEW_SIZE, usable, b"\xff\xff\xff")
    assert (gpt.before_growth(grown_head, SIZE, NEW_SIZE) == head()) == fits


@given(st.binary(max_size=100), st.integers(0, 33 * SECTOR), st.integers(SIZE, 1 << 45))
def test_no_head_is_too_odd(data: bytes, place: int, size: int) -> None:
    odd = bytearray(head())
    odd[SECTOR + 12 + place % 80 :][: len(data)] = b""
    odd[SECTOR + place % 90 : SECTOR + place % 90 + len(data)] = data
    for text in (bytes(odd), data, bytes(odd[:SECTOR]) + data):
        gpt.before_growth(text, SIZE, size // SECTOR * SECTOR)
        gpt.backup_for(text, size // SECTOR * SECTOR, text[:SECTOR])


# ---- the map and the superblock ------------------------------------------------------------------------------------


def test_a_map_survives_its_journey(made: tuple[Path, DiskMap]) -> None:
    assert parse_map(made[1].to_json()) == made[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON, JSON)
def test_what_is_no_map_is_refused(region: object, key: object, value: object) -> None:
    good = {"name": "all", "start": 0, "size": 100}
    for body in (region, {"chunk": MIB, "regions": region}, {"chunk": MIB, "regions": [good, region], "sha256": {}}):
        with pytest.raises(MapError):
            parse_map(body)
    with pytest.raises(MapError):
        parse_map({"chunk": MIB, "regions": [good], "sha256": {str(key): value}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 4096}, "is not made of chunks"),
        ({"regions": []}, "has no list of regions"),
        ({"regions": [{"name": "a", "start": 1, "size": 5}]}, "has a hole or an overlap at byte 0"),
        ({"regions": [{"name": "a", "start": 0, "size": True}]}, "has a region without"),
        ({"regions": [{"name": "a", "start": 0, "size": 0}]}, "has a region without"),
        ({"sha256": {"100": "0" * 64}}, "has a hash for byte 100, where no chunk begins"),
        ({"sha256": {"1": "0" * 64}}, "has a hash for byte 1, where no chunk begins"),
        ({"sha256": {"0": "0" * 63}}, "has an entry that is not the SHA-256"),
    ],
)
def test_why_a_map_is_refused(change: dict[str, object], message: str) -> None:
    body: dict[str, object] = {"chunk": MIB, "regions": [{"name": "a", "start": 0, "size": 100}], "sha256": {}}
    assert parse_map(body).size == 100
    with pytest.raises(MapError, match=message):
        parse_map({**body, **change})


@pytest.fixture
def filesystem(tmp_path: Path) -> Path:
    path = tmp_path / "ext4"
    path.write_bytes(b"")
    words: list[str | Path] = ["-q", "-F", "-t", "ext4", path, "8M"]
    subprocess.run([need_program("mke2fs"), *words], check=True, capture_output=True)
    return path


def superblock(path: Path) -> bytes:
    return path.read_bytes()[1024:2048]


def test_a_journal_that_needs_recovery_is_seen(filesystem: Path, tmp_path: Path) -> None:
    need_program("debugfs")
    assert ext4.pending(superblock(filesystem)) == ""
    (tmp_path / "block").write_bytes(bytes(1024))
    (tmp_path / "script").write_text(f"jo\njw -b 5000 {tmp_path / 'block'}\njc\n")
    subprocess.run(["debugfs", "-w", "-f", tmp_path / "script", filesystem], check=True, capture_output=True)
    assert "its journal needs recovery" in ext4.pending(superblock(filesystem))


def test_orphans_are_seen(filesystem: Path) -> None:
    need_program("debugfs")
    subprocess.run(["debugfs", "-w", "-R", "ssv last_orphan 12", filesystem], check=True, capture_output=True)
    assert "deleted or cut off files" in ext4.pending(superblock(filesystem))


@given(st.binary(max_size=1100))
def test_what_is_no_superblock_says_nothing(data: bytes) -> None:
    assert isinstance(ext4.pending(data), str)


@pytest.mark.parametrize(
    ("blocks", "high", "size", "incompat", "stated"),
    [
        (16, 0, 2, 0, 65536),
        (16, 0, 0, 0, 16384),
        (1, 1, 2, 0x80, (1 << 44) + 4096),
        (1, 1, 2, 0, 4096),
        (9, 0, 7, 0, 0),
    ],
)
def test_the_size_of_a_filesystem(blocks: int, high: int, size: int, incompat: int, stated: int) -> None:
    data = bytearray(1024)
    struct.pack_into("<I", data, 4, blocks)
    struct.pack_into("<I", data, 0x18, size)
    struct.pack_into("<I", data, 0x60, incompat)
    struct.pack_into("<I", data, 0x150, high)
    assert ext4.stated_size(bytes(data)) == 0
    struct.pack_into("<H", data, 0x38, 0xEF53)
    assert ext4.stated_size(bytes(data)) == stated
    assert ext4.stated_size(bytes(data[:-1])) == 0
