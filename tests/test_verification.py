"""What ``imgkit verify`` compares and says, without an appliance and on disks of a few MiB.

Hostile disks and archives are in test_verify.py and test_verify_disk.py.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.disk.layout import SECTOR, SizedPartition, make_layout
from imgkit.disk.regions import DiskMap, Region, regions_of
from imgkit.engines.chunks import map_disk
from imgkit.engines.engineerrors import LimitError, UnreadableImageError
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import Limits
from imgkit.engines.reading import Archive, Filesystem, ImageDescription
from imgkit.errors import InputError
from imgkit.rootfs.digest import NodeRecord, records
from imgkit.tree import File, Inline, Tree
from imgkit.verification import contents as contents_module
from imgkit.verification.check import Subject, Verification, limits_for, verify
from imgkit.verification.disk import Difference, DiskReport, compare_disk
from imgkit.verification.statement import StatedFile, Statement
from tests.tables import ENTRIES, gpt_header, head_of
from tests.verifying import tar_of, write_stated

MIB = 1 << 20
SIZE, NEW_SIZE = 8 * MIB, 12 * MIB
LAYOUT = make_layout((SizedPartition("esp", MIB), SizedPartition("root")), SIZE, uuid.UUID(int=5))
REGIONS = regions_of(LAYOUT)
ESP, ROOT = 1 * MIB, 2 * MIB
BACKUP = SIZE - 33 * SECTOR


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiskMap]:
    """Return a disk as it was built, and its map."""
    path = tmp_path_factory.mktemp("built") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.write(head_of(SIZE))
        for place in (ESP + 100, ROOT + 100, ROOT + 3 * MIB):
            file.seek(place)
            file.write(b"data" * 1000)
        file.seek(BACKUP)
        file.write(ENTRIES + gpt_header(SIZE, backup=True))
    return path, map_disk(path, REGIONS)


@pytest.fixture
def disk(built: tuple[Path, DiskMap], tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    path = tmp_path / "disk.raw"
    path.write_bytes(built[0].read_bytes())
    return path


def write(path: Path, place: int, data: bytes | bytearray) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def resize(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def compared(path: Path, stated: DiskMap, size: int | None = None) -> DiskReport:
    return compare_disk(path, path.stat().st_size if size is None else size, stated, Limits(1 << 30))


# ---- the bytes of a disk ---------------------------------------------------------------------------------------------


def test_a_disk_as_it_was_built(disk: Path, built: tuple[Path, DiskMap]) -> None:
    assert compared(disk, built[1]) == DiskReport(SIZE, SIZE, ())


def test_what_differs_is_listed_in_order_and_joined(disk: Path, built: tuple[Path, DiskMap]) -> None:
    """What was overwritten with zeros is found after the rest, and comes in its place all the same."""
    write(disk, ROOT + 4 * MIB, b"x")
    write(disk, ROOT + 3 * MIB, bytes(4000))
    write(disk, ROOT + 100, bytes(4000))
    write(disk, 3, b"x")
    report = compared(disk, built[1])
    assert report.differences == (
        Difference("boot sector", 0, 512),
        Difference("root filesystem", ROOT, ROOT + MIB),
        Difference("root filesystem", ROOT + 3 * MIB, ROOT + 5 * MIB),
    )
    assert (report.touches("root filesystem"), report.touches("EFI system partition")) == (True, False)


def test_neighbours_in_two_regions_are_two_differences(disk: Path, built: tuple[Path, DiskMap]) -> None:
    write(disk, ESP, b"x")
    write(disk, ROOT, b"x")
    assert compared(disk, built[1]).differences == (
        Difference("EFI system partition", ESP, ROOT),
        Difference("root filesystem", ROOT, ROOT + MIB),
    )


def test_a_disk_that_is_too_short(disk: Path, built: tuple[Path, DiskMap]) -> None:
    resize(disk, BACKUP)
    assert compared(disk, built[1]) == DiskReport(SIZE, BACKUP, (Difference("backup partition table", BACKUP, SIZE),))


def test_reading_stops_at_the_limits(disk: Path, built: tuple[Path, DiskMap]) -> None:
    with pytest.raises(LimitError, match=r"more than 1048576 bytes of data$"):
        compare_disk(disk, SIZE, built[1], Limits(MIB))
    with pytest.raises(LimitError, match=r"could not be read in time$"):
        compare_disk(disk, SIZE, built[1], Limits(1 << 30, -1.0))


def test_the_journal_is_looked_at(disk: Path, built: tuple[Path, DiskMap]) -> None:
    superblock = bytearray(1024)
    struct.pack_into("<H", superblock, 0x38, 0xEF53)
    struct.pack_into("<I", superblock, 0x60, 4)
    write(disk, ROOT + 1024, superblock)
    assert compared(disk, built[1]).pending.startswith("its journal needs recovery")
    nameless = DiskMap((Region("all", 0, SIZE),), {})
    assert compared(disk, nameless).pending == ""


# ---- enlarged disks --------------------------------------------------------------------------------------------------


def grow(path: Path, *, cleared: str = "no", size: int = NEW_SIZE) -> None:
    """Enlarge a disk and move its backup table, as partitioning programs do."""
    resize(path, size)
    write(path, 0, head_of(size))
    write(path, size - 33 * SECTOR, ENTRIES + gpt_header(size, backup=True))
    if cleared == "all":
        write(path, BACKUP, bytes(33 * SECTOR))
    elif cleared == "header":
        write(path, SIZE - SECTOR, bytes(SECTOR))
    elif cleared == "entries":
        write(path, BACKUP, bytes(32 * SECTOR))


@pytest.mark.parametrize("cleared", ["no", "all", "header"])
def test_a_disk_that_was_enlarged(cleared: str, disk: Path, built: tuple[Path, DiskMap]) -> None:
    grow(disk, cleared=cleared)
    assert compared(disk, built[1]) == DiskReport(SIZE, NEW_SIZE, (), moved=True)


def test_a_disk_with_empty_space_behind_it(disk: Path, built: tuple[Path, DiskMap]) -> None:
    resize(disk, NEW_SIZE)
    assert compared(disk, built[1]) == DiskReport(SIZE, NEW_SIZE, ())
    write(disk, BACKUP, bytes(33 * SECTOR))
    assert compared(disk, built[1]).differences == (Difference("backup partition table", BACKUP, SIZE),)


def test_an_old_backup_without_its_entries_is_no_growth(disk: Path, built: tuple[Path, DiskMap]) -> None:
    grow(disk, cleared="entries")
    assert compared(disk, built[1]).differences == (Difference("backup partition table", BACKUP, SIZE),)
    grow(disk, cleared="header")
    write(disk, BACKUP + 5, b"x")
    assert compared(disk, built[1]).differences == (Difference("backup partition table", BACKUP, SIZE),)


@pytest.mark.parametrize(
    ("place", "regions"),
    [
        (20, ["boot sector", "partition table", "behind the disk that was built"]),
        (SECTOR + 40, ["boot sector", "partition table", "behind the disk that was built"]),
        (3 * SECTOR, ["boot sector", "partition table", "behind the disk that was built"]),
        (SIZE + 5, ["behind the disk that was built"]),
        (NEW_SIZE - 20 * SECTOR, ["behind the disk that was built"]),
        (NEW_SIZE - 1, ["behind the disk that was built"]),
    ],
)
def test_other_changes_to_an_enlarged_disk(
    place: int, regions: list[str], disk: Path, built: tuple[Path, DiskMap]
) -> None:
    grow(disk)
    write(disk, place, b"\x99")
    report = compared(disk, built[1])
    assert [difference.region for difference in report.differences] == regions
    assert report.moved is (place >= SIZE)


def test_a_map_without_a_table_excuses_nothing(disk: Path, built: tuple[Path, DiskMap]) -> None:
    """It states the same bytes, but does not say that they are a partition table."""
    grow(disk)
    for name in ("boot sector", "partition table"):
        regions = tuple(replace(region, name="x") if region.name == name else region for region in REGIONS)
        report = compared(disk, DiskMap(regions, built[1].hashes))
        assert not report.moved
        assert len(report.differences) == 3


def test_a_map_without_a_backup_region(disk: Path, built: tuple[Path, DiskMap]) -> None:
    grow(disk, cleared="all")
    regions = tuple(replace(region, name="x") if region.start == BACKUP else region for region in REGIONS)
    report = compared(disk, DiskMap(regions, built[1].hashes))
    assert (report.moved, report.differences) == (True, (Difference("x", BACKUP, SIZE),))


def test_a_large_region_is_no_old_backup(disk: Path, built: tuple[Path, DiskMap]) -> None:
    """A manifest may call anything a backup table; a gibibyte of it is not read into memory."""
    first = [region for region in REGIONS if region.start < 34 * SECTOR]
    whole = (*first, Region("backup partition table", 34 * SECTOR, SIZE - 34 * SECTOR))
    resize(disk, 34 * SECTOR)
    grow(disk)
    stated = DiskMap(whole, {**{0: built[1].hashes[0], 512: built[1].hashes[512]}, MIB: "0" * 64})
    assert compared(disk, stated).differences == (Difference("backup partition table", MIB, 2 * MIB),)


# ---- limits ----------------------------------------------------------------------------------------------------------


def statement_with(files: Mapping[str, NodeRecord], chunks: int | None = None) -> Statement:
    hashes = {number * MIB: "0" * 64 for number in range(chunks or 0)}
    disk = None if chunks is None else DiskMap((Region("a", 0, (chunks + 1) * MIB),), hashes)
    return Statement("amd64", None, {}, files, disk)


def test_limits_are_twice_what_was_built() -> None:
    gib = 1 << 30
    assert limits_for(statement_with({}), None, None).size == gib
    assert limits_for(statement_with({}, 512), None, None).size == gib
    assert limits_for(statement_with({}, 513), None, None).size == gib + 2 * MIB
    large = {"/a": {"size": gib}, "/b": {"size": 5}, "/c": {}}
    assert limits_for(statement_with(large), None, None).size == 2 * (gib + 5 + 3 * 4096)
    odd: dict[str, NodeRecord] = {
        "/a": {"size": "9" * 20},
        "/b": {"size": -gib},
        "/c": {"size": True},
        "/d": {"size": gib},
    }
    assert limits_for(statement_with(odd), None, None).size == 2 * (gib + 4 * 4096)
    assert limits_for(statement_with(large, 5), 7, None).size == 7
    assert limits_for(statement_with({}), None, None).seconds == 900
    assert limits_for(statement_with({}), None, 3.5).seconds == 3.5


# ---- everything together ---------------------------------------------------------------------------------------------


@dataclass
class FakeReader:
    """A reader of an image with these archives, and the record of what was asked."""

    archives: dict[tuple[Filesystem, bool], Archive | InputError]
    asked: list[tuple[Filesystem, bool]] = field(default_factory=list)
    opened: list[Path] = field(default_factory=list)

    def describe(self) -> ImageDescription:
        raise NotImplementedError

    def archive(self, filesystem: Filesystem = "root", *, replay: bool = True) -> Archive:
        self.asked.append((filesystem, replay))
        archive = self.archives[filesystem, replay]
        if isinstance(archive, InputError):
            raise archive
        return archive

    @contextmanager
    def __call__(self, disk: Path, limits: Limits) -> Iterator[FakeReader]:
        assert limits.size == 1 << 30
        self.opened.append(disk)
        yield self


def archive_of(tree: Tree, path: Path, *, complete: bool = True, complaints: str = "") -> Archive:
    data = tar_of(tree)
    path.write_bytes(b"before" + data + b"after")
    return Archive(path, 6, len(data), complete, complaints)


def root_tree(text: bytes = b"text") -> Tree:
    tree = Tree()
    tree.write("etc/a", text)
    tree.mkdir("lost+found", mode=0o700)
    return tree


def esp_tree(data: bytes = b"efi") -> Tree:
    tree = Tree()
    tree.add("", tree[""])
    for name in ("EFI", "EFI/BOOT"):
        tree.mkdir(name)
    tree.add("EFI/BOOT/X.EFI", File(content=Inline(data), mode=0o755))
    return tree


@dataclass
class Case:
    """A raw image beside nothing, its manifest, and the reader of its files."""

    image: Path
    stated: Statement
    reader: FakeReader

    def verify(self) -> Verification:
        size = self.image.stat().st_size
        subject = Subject(self.image, ImageInfo("raw", size, size), self.image.parent)
        return verify(subject, self.stated, Limits(1 << 30), self.reader)


@pytest.fixture
def case(disk: Path, built: tuple[Path, DiskMap], tmp_path: Path) -> Case:
    expected = {path: record for path, record in records(root_tree()).items() if path != "/lost+found"}
    efi = StatedFile("EFI/BOOT/X.EFI", hashlib.sha256(b"efi").hexdigest(), 3)
    image = StatedFile("", hashlib.sha256(disk.read_bytes()).hexdigest(), SIZE)
    stated = Statement("amd64", image, {}, expected, built[1], {efi.name: efi})
    reader = FakeReader(
        {
            ("root", True): archive_of(root_tree(), tmp_path / "root.tar"),
            ("root", False): archive_of(root_tree(), tmp_path / "unreplayed.tar"),
            ("esp", True): archive_of(esp_tree(), tmp_path / "esp.tar"),
        }
    )
    return Case(disk, stated, reader)


SAME = "the same disk in another container: every byte that a guest sees is as it was built"


def test_a_manifest_about_an_image_of_another_format_is_named(case: Case) -> None:
    """An image of an earlier build lies beside it. Its disk may still be the same one."""
    case.stated = replace(case.stated, image_name="linux-amd64.qcow2", image=StatedFile("", "0" * 64, 5))
    assert case.verify().faults == []
    write(case.image, ROOT + 100, b"other")
    line = "disk.raw: the manifest is about linux-amd64.qcow2"
    assert case.verify().faults[0] == line
    case.stated = replace(case.stated, image_name="linux-amd64.raw")
    assert line not in case.verify().faults


def test_the_very_file_is_proved_by_its_hash(case: Case) -> None:
    kernel = write_stated(case.image.parent / "vmlinuz-virt-amd64", b"kernel")
    case.stated = replace(case.stated, boot={"kernel": kernel})
    result = case.verify()
    assert result == Verification(
        [f"{case.image}: the very file that was built", "vmlinuz-virt-amd64: the very file that was built"], []
    )
    (case.image.parent / kernel.name).write_bytes(b"other")
    assert case.verify() == Verification(
        [f"{case.image}: the very file that was built"], ["vmlinuz-virt-amd64: is not the kernel that was built"]
    )
    assert case.reader.opened == []


def test_a_disk_is_compared_where_the_file_is_another(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgkit")
    case.stated = replace(case.stated, image=StatedFile("", "0" * 64, SIZE))
    assert case.verify() == Verification([f"{case.image}: {SAME}"], [])
    assert caplog.messages == [f"{case.image}: not the very file that was built, so its disk is compared"]
    case.stated = replace(case.stated, image=None)
    assert case.verify() == Verification([f"{case.image}: {SAME}"], [])
    assert case.reader.opened == []


def test_an_enlarged_disk_is_said_to_be_one(case: Case) -> None:
    resize(case.image, NEW_SIZE)
    lines = [f"{case.image}: {SAME}", f"{case.image}: enlarged from 8 MiB to 12 MiB: what was added is empty"]
    assert case.verify() == Verification(lines, [])
    grow(case.image)
    adapted = (
        "the partition table was adapted to the new size: the size in the protective MBR, the place of the backup"
        " table, the last usable sector and the checksum differ, all else in it is as it was built"
    )
    assert case.verify() == Verification([*lines, f"{case.image}: {adapted}"], [])


OUTSIDE = "paths are as the manifest says: what differs is outside of files"


def test_a_difference_outside_of_filesystems_starts_no_appliance(case: Case) -> None:
    write(case.image, 5, b"x")
    write(case.image, 100 * SECTOR, b"x")
    assert case.verify() == Verification(
        [],
        [
            "boot sector: differs within 512 bytes of the disk, at 0-511",
            f"gap: differs within {MIB - 34 * SECTOR} bytes of the disk, at {34 * SECTOR}-{MIB - 1}",
        ],
    )
    assert case.reader.opened == []


def test_the_files_of_the_root_are_compared_where_it_differs(case: Case, tmp_path: Path) -> None:
    write(case.image, ROOT, b"x")
    line = f"root filesystem: differs within {MIB} bytes of the disk, at {ROOT}-{ROOT + MIB - 1}"
    assert case.verify().faults == [line, f"root filesystem: all 4 {OUTSIDE}"]
    assert (case.reader.opened, case.reader.asked) == ([case.image], [("root", True)])
    case.reader.archives["root", True] = archive_of(root_tree(b"evil"), tmp_path / "root.tar")
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"evil", b"text")]
    assert case.verify().faults == [line, f"/etc/a: sha256 is {hashes[0]}, should be {hashes[1]}"]


def test_the_files_of_the_esp_are_compared_where_it_differs(case: Case, tmp_path: Path) -> None:
    write(case.image, ESP, b"x")
    line = f"EFI system partition: differs within {MIB} bytes of the disk, at {ESP}-{ESP + MIB - 1}"
    assert case.verify().faults == [line, f"EFI system partition: all 4 {OUTSIDE}"]
    assert case.reader.asked == [("esp", True)]
    case.reader.archives["esp", True] = archive_of(esp_tree(b"evil"), tmp_path / "esp.tar")
    fault = case.verify().faults[1]
    assert fault.startswith("EFI system partition: /EFI/BOOT/X.EFI: sha256 is ")
    assert "size is 4, should be 3" in fault
    case.reader.archives["esp", True] = UnreadableImageError("has no EFI system partition")
    assert case.verify().faults == [line, "EFI system partition: has no EFI system partition"]


def test_both_filesystems_are_compared_root_first(case: Case) -> None:
    write(case.image, ESP, b"x")
    write(case.image, ROOT, b"x")
    assert case.verify().faults[2:] == [f"root filesystem: all 4 {OUTSIDE}", f"EFI system partition: all 4 {OUTSIDE}"]
    assert case.reader.asked == [("root", True), ("esp", True)]


def needs_recovery(case: Case) -> None:
    """Write a superblock that has a journal to replay, which is in the map."""
    superblock = bytearray(1024)
    struct.pack_into("<H", superblock, 0x38, 0xEF53)
    struct.pack_into("<I", superblock, 0x60, 4)
    write(case.image, ROOT + 1024, superblock)
    case.stated = replace(case.stated, disk=map_disk(case.image, REGIONS), image=None)


def test_a_journal_is_a_fault_and_both_views_are_compared(case: Case, tmp_path: Path) -> None:
    """What is the same with and without the journal is said once."""
    needs_recovery(case)
    journal = "root filesystem: its journal needs recovery: what that holds is written when the image boots"
    assert case.verify() == Verification([], [journal, f"root filesystem: all 4 {OUTSIDE}"])
    assert case.reader.asked == [("root", False), ("root", True)]
    changed = root_tree()
    changed.write("extra", b"")
    case.reader.archives["root", True] = archive_of(changed, tmp_path / "root.tar")
    changed.write("other", b"")
    case.reader.archives["root", False] = archive_of(changed, tmp_path / "unreplayed.tar")
    assert case.verify().faults[1:] == [
        "/extra: not in the manifest", "/other: not in the manifest (before the journal is replayed)",
    ]  # fmt: skip


def test_a_manifest_without_a_map_says_what_was_not_compared(case: Case) -> None:
    case.stated = replace(case.stated, disk=None, image=None)
    assert case.verify() == Verification(
        [],
        [
            "the manifest is of an earlier imgkit and has no map of the disk: boot sector, partition table, boot"
            " loader, EFI system partition and everything outside of files could not be compared",
            f"root filesystem: all 4 {OUTSIDE}",
        ],
    )
    assert case.reader.asked == [("root", False), ("root", True)]


def test_what_could_not_be_compared_is_listed(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(case.image, ROOT, b"x")

    def lines(**changes: Any) -> list[str]:
        case.reader.archives["root", True] = archive_of(root_tree(), tmp_path / "root.tar", **changes)
        return case.verify().faults[1:]

    said = [f"tar: ./{number}: Cannot read" for number in range(5)]
    read = [f"root filesystem: ./{number}: Cannot read" for number in range(5)]
    assert lines(complaints="\n".join(said)) == read
    assert lines(complaints="\n".join([*said, "x", "y"])) == [
        *read, "root filesystem: 2 further complaints about what could not be read",
    ]  # fmt: skip
    assert lines(complaints="tar: x tar: y", complete=False) == [
        "root filesystem: more than 1024 MiB in files; what is behind that was not compared"
    ]
    monkeypatch.setattr(contents_module, "_MOST_UNEXPECTED", 0)
    case.stated = replace(case.stated, files={"/": case.stated.files["/"]})
    assert lines() == ["root filesystem: 2 further paths are not in the manifest"]
    archive = archive_of(root_tree(), tmp_path / "root.tar")
    case.reader.archives["root", True] = replace(archive, size=700)
    assert case.verify().faults[-1].startswith("root filesystem: the archive of its files ")
    case.reader.archives["root", True] = replace(archive, size=700, complete=False)
    assert "the archive of its files" not in case.verify().faults[-1]


def test_of_many_ranges_ten_are_shown(built: tuple[Path, DiskMap], tmp_path: Path) -> None:
    regions = (Region("a", 0, 24 * MIB),)
    path = tmp_path / "many.raw"

    def faults(count: int) -> list[str]:
        with path.open("wb") as file:
            file.truncate(24 * MIB)
            for number in range(count):
                file.seek(number * 2 * MIB)
                file.write(b"x")
        stated = Statement("amd64", None, {}, {}, DiskMap(regions, {}))
        return Case(path, stated, FakeReader({})).verify().faults

    shown = ", ".join(f"{number * 2 * MIB}-{number * 2 * MIB + MIB - 1}" for number in range(10))
    assert faults(10) == [f"a: differs within {10 * MIB} bytes of the disk, at {shown}"]
    assert faults(12) == [f"a: differs within {12 * MIB} bytes of the disk, at {shown} and 2 more"]
