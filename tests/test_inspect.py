"""What imgkit inspect says of an image, with a stand-in for the appliance that reads it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from imgkit.api import inspecting
from imgkit.cli.main import main
from imgkit.disk.layout import TYPE_GUIDS
from imgkit.engines.engineerrors import LimitError, NoSpaceError, UnreadableImageError
from imgkit.engines.guestfs import readback
from imgkit.engines.guestfs.channel import ApplianceError, Channel
from imgkit.engines.guestfs.lookscripts import OFFSET, mount_script
from imgkit.engines.guestfs.readback import GuestfsReader, PartitionTable, find_esp, find_root, parse_partitions
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import Limits
from imgkit.engines.reading import Archive, FilesystemUsage, ImageDescription, PartitionDescription

IMAGE = Path("out/linux.qcow2")
MIB = 1 << 20
TABLE = {
    "partitiontable": {
        "label": "gpt",
        "id": "DISK-GUID",
        "lastlba": 16 * 2048 - 34,
        "partitions": [
            {"node": "/dev/sda2", "start": 4096, "size": 8192, "type": TYPE_GUIDS["root"], "uuid": "U2"},
            {"node": "/dev/sda1", "start": 2048, "size": 2048, "type": TYPE_GUIDS["esp"].lower(), "name": "ESP"},
        ],
    }
}
BLKID = "\n\n1\nTYPE=vfat\nUUID=ABCD-0123\n\n2\nTYPE=ext4\nLABEL=a=b\nUUID=u2\n"
DATABASE = "P:busybox\nV:1.2-r3\nI:1000\nF:bin\nR:sh\n\nP:musl\nV:1-r0\nI:5000\n\n"


def partition(number: int, **values: Any) -> PartitionDescription:
    """Return a partition with an ext4, but for ``values``."""
    known = {
        "type": "",
        "name": "",
        "uuid": "",
        "start": 0,
        "size": 1,
        "label": "",
        "fs_uuid": "",
        "filesystem": "ext4",
    }
    return PartitionDescription(**{**known, "number": number, **values})


# ---- partitions ------------------------------------------------------------------------------------------------------


def test_partitions_are_described_in_the_order_of_the_disk() -> None:
    table = parse_partitions(IMAGE, json.dumps(TABLE) + BLKID)
    esp, root = table.partitions
    assert (table.guid, table.size) == ("DISK-GUID", 16 * MIB)
    assert esp == PartitionDescription(
        number=1,
        type=TYPE_GUIDS["esp"].lower(),
        name="ESP",
        uuid="",
        start=MIB,
        size=MIB,
        filesystem="vfat",
        label="",
        fs_uuid="ABCD-0123",
    )
    assert (root.number, root.start, root.size, root.uuid) == (2, 2 * MIB, 4 * MIB, "U2")
    assert (root.filesystem, root.label, root.fs_uuid) == ("ext4", "a=b", "u2")


def test_a_table_without_partitions() -> None:
    assert parse_partitions(IMAGE, '{"partitiontable": {"label": "gpt", "id": "X"}}') == PartitionTable("X", 0, ())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("no partition table\n", "out/linux.qcow2: has no partition table"),
        ('{"partitiontable": {"label": "dos"}}', "out/linux.qcow2: its partition table is dos, not GPT"),
    ],
)
def test_tables_that_cannot_be_read(output: str, message: str) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        parse_partitions(IMAGE, output)
    assert caught.value.message == message


def test_the_root_is_the_largest_ext4_of_its_type_or_else_of_any() -> None:
    root = TYPE_GUIDS["root"].lower()
    large, typed, larger = partition(1, size=9), partition(2, size=3, type=root), partition(3, size=5, type=root)
    other = partition(4, size=99, filesystem="btrfs", type=root)
    assert find_root(IMAGE, (large, typed, larger, other)) == 3
    assert find_root(IMAGE, (partition(7, size=3), large, other)) == 1
    with pytest.raises(UnreadableImageError, match=r"^out/linux\.qcow2: has no ext4 filesystem$"):
        find_root(IMAGE, (other,))


def test_the_esp_is_known_by_its_type() -> None:
    esp = TYPE_GUIDS["esp"].lower()
    assert find_esp(IMAGE, (partition(1), partition(2, type=esp), partition(3, type=esp))) == 2
    with pytest.raises(UnreadableImageError, match=r"^out/linux\.qcow2: has no EFI system partition$"):
        find_esp(IMAGE, (partition(1),))


# ---- the reader ------------------------------------------------------------------------------------------------------


class FakeChannel:
    """Answers scripts by a word in them. An answer that is an exception is raised."""

    def __init__(self, answers: Mapping[str, str | Exception]) -> None:
        self._answers = answers
        self.scripts: list[str] = []

    def post(self, request: Mapping[str, Any]) -> None:
        assert request["op"] == "sh"
        self.scripts.append(request["script"])

    def take(self, deadline: float, watch: Callable[[], None]) -> str:
        assert deadline > time.monotonic()
        watch()
        answer = next(answer for word, answer in self._answers.items() if word in self.scripts[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer


LOOKED = "4096 1000 250 500 100\n{size}\n6.1-virt\n6.6-virt\n\n" + base64.b64encode(b'ID="alpine"\n').decode()


def answers(size: str = str(len(DATABASE)), **other: str | Exception) -> dict[str, str | Exception]:
    """Answers of an appliance that sees a good image. ``size`` is what it says of the package database."""
    return {"sfdisk": json.dumps(TABLE) + BLKID, "mount -t": "", "stat -f": LOOKED.format(size=size), **other}


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Return the scratch drive, with the package database on it."""
    path = tmp_path / "tar.raw"
    path.write_bytes(bytes(OFFSET) + DATABASE.encode() + b"rest of an earlier archive")
    return path


def reader(channel: FakeChannel, drive: Path, limits: Limits | None = None) -> GuestfsReader:
    info = ImageInfo("qcow2", 6 * MIB, 4096)
    return GuestfsReader(cast(Channel, channel), IMAGE, info, drive, limits or Limits())


def test_what_is_in_an_image(drive: Path) -> None:
    channel = FakeChannel(answers())
    image = reader(channel, drive).describe()
    assert (image.format, image.virtual_size, image.file_size) == ("qcow2", 6 * MIB, 4096)
    assert (image.disk_guid, image.partitioned_size) == ("DISK-GUID", 16 * MIB)
    assert image.root == FilesystemUsage(size=4_096_000, used=750 * 4096, free=250 * 4096, inodes=500, inodes_used=400)
    assert (image.os_release, image.kernels) == ({"ID": "alpine"}, ("6.1-virt", "6.6-virt"))
    assert image.apk_installed == DATABASE
    assert mount_script("root", 2, replay=True) in channel.scripts


def test_no_database_is_no_fault(drive: Path) -> None:
    assert reader(FakeChannel(answers("none")), drive).describe().apk_installed == ""


@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        ("special", UnreadableImageError, "out/linux.qcow2: /lib/apk/db/installed is not a regular file"),
        ("1048577", LimitError, "out/linux.qcow2: /lib/apk/db/installed has 2 MiB, more than 1 MiB"),
    ],
)
def test_databases_that_are_not_read(size: str, kind: type[Exception], message: str, drive: Path) -> None:
    with pytest.raises(kind) as caught:
        reader(FakeChannel(answers(size)), drive, Limits(MIB)).describe()
    assert str(caught.value) == message


def test_a_database_as_large_as_the_limit_is_read(drive: Path) -> None:
    image = reader(FakeChannel(answers()), drive, Limits(len(DATABASE))).describe()
    assert image.apk_installed == DATABASE


def test_a_filesystem_is_mounted_once_for_each_way_of_looking(drive: Path) -> None:
    channel = FakeChannel({**answers(), "tar -C": "17 whole\ntar: ./x: cannot read\n"})
    view = reader(channel, drive)
    assert view.archive() == Archive(drive, OFFSET, 17, complete=True, complaints="tar: ./x: cannot read")
    view.archive()
    view.archive(replay=False)
    view.archive("esp")
    mounts = [script for script in channel.scripts if "mount -t" in script]
    assert mounts == [
        mount_script("root", 2, replay=True),
        mount_script("root", 2, replay=False),
        mount_script("esp", 1, replay=True),
    ]
    assert ["noload" in script for script in mounts] == [False, True, False]
    assert all("ro,nodev,nosuid,noexec" in script for script in mounts)


def test_an_archive_that_was_cut_says_so(drive: Path) -> None:
    channel = FakeChannel({**answers(), "tar -C": "5 more\n"})
    archive = reader(channel, drive).archive()
    assert not archive.complete
    assert b"".join(archive.pieces()) == DATABASE[:5].encode()


def test_a_mount_that_failed_is_tried_again(drive: Path) -> None:
    known: dict[str, str | Exception] = {**answers(), "tar -C": "0 whole\n"}
    channel = FakeChannel(known)
    view = reader(channel, drive)
    known["mount -t"] = ApplianceError("call", "wrong fs type,\n  bad superblock", "")
    with pytest.raises(UnreadableImageError) as caught:
        view.archive()
    assert caught.value.message == "out/linux.qcow2: cannot be read: wrong fs type, bad superblock"
    assert caught.value.hint == "the image may be damaged"
    known["mount -t"] = ""
    assert view.archive().size == 0


@pytest.mark.parametrize("seconds", [900.0, -1.0])
def test_an_image_that_takes_too_long(seconds: float, drive: Path) -> None:
    """The appliance does not answer in time, or the time was over before it was asked."""
    channel = FakeChannel({**answers(), "sfdisk": TimeoutError()})
    with pytest.raises(LimitError) as caught:
        reader(channel, drive, Limits(MIB, seconds)).describe()
    assert caught.value.message == f"out/linux.qcow2: could not be read within {seconds:g} s"
    assert caught.value.hint == "--timeout gives it more; the image may be made to take forever"
    assert bool(channel.scripts) == (seconds > 0)


def test_reading_stops_before_the_disk_is_full(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "_SPARE", 1 << 62)
    with pytest.raises(NoSpaceError, match="no space left for what is read of the image"):
        reader(FakeChannel(answers()), drive).describe()


# ---- the command -----------------------------------------------------------------------------------------------------

DESCRIPTION = ImageDescription(
    format="qcow2",
    virtual_size=4096 * MIB,
    file_size=100 * MIB + 1,
    disk_guid="G",
    partitioned_size=4096 * MIB,
    partitions=(
        partition(1, name="ESP", filesystem="", start=MIB, size=64 * MIB, uuid="P1"),
        partition(2, name="root", start=65 * MIB, size=MIB + 1, uuid="P2", fs_uuid="F2"),
    ),
    root=FilesystemUsage(size=100 * MIB, used=MIB, free=99 * MIB, inodes=9, inodes_used=4),
    os_release={"PRETTY_NAME": "Alpine Linux v3.23"},
    kernels=("6.1-virt",),
    apk_installed=DATABASE,
)
DIFFERENT: dict[str, Any] = {}
"""What another test finds in the image."""
TEXT = """\
out/linux.qcow2: qcow2, 4096 MiB, 105 MB on disk
system     Alpine Linux v3.23
kernel     6.1-virt
root       1 MiB of 100 MiB used, 4 inodes

 nr  name         filesystem     start       size  uuid
  1  ESP          -              1 MiB     64 MiB  P1
  2  root         ext4          65 MiB      2 MiB  F2

2 packages, the largest first
      0.0 MB  musl-1-r0
      0.0 MB  busybox-1.2-r3
"""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """Return a stand-in for the reader; the limits with which it was opened."""
    opened: list[Limits] = []

    @contextmanager
    def open_image(_image: Path, folder: Path, _options: object, limits: Limits) -> Iterator[Any]:
        assert list(folder.iterdir()) == []
        opened.append(limits)
        yield type("Reader", (), {"describe": lambda _self: replace(DESCRIPTION, **DIFFERENT)})()

    monkeypatch.setattr(inspecting, "open_image", open_image)
    monkeypatch.setattr(inspecting, "appliance_options", lambda: None)
    return opened


def test_inspect_prints_tables(opened: list[Limits], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(IMAGE)]) == 0
    assert capsys.readouterr().out == TEXT
    assert [(limits.size, limits.seconds) for limits in opened] == [(64 * MIB, 900.0)]


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("size", "table", "lines"),
    [
        (6144 * MIB, 4096 * MIB, 1),
        (4097 * MIB + 1, 4096 * MIB, 1),
        (4097 * MIB, 4096 * MIB, 0),
        (4096 * MIB, 0, 0),
    ],
)
def test_inspect_says_that_a_disk_was_enlarged(
    size: int, table: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DIFFERENT, "virtual_size", size)
    monkeypatch.setitem(DIFFERENT, "partitioned_size", table)
    assert main(["inspect", str(IMAGE)]) == 0
    text = "enlarged   its partition table was made for 4096 MiB; the root of an image of imgkit grows at its next boot"
    assert capsys.readouterr().out.splitlines().count(text) == lines


def test_inspect_prints_json(opened: list[Limits], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(IMAGE), "--json", "--limit", "2M", "--timeout", "7"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == [
        *("format", "virtualSize", "fileSize", "diskGuid", "partitionedSize", "partitions", "root"),
        *("osRelease", "kernels", "packages"),
    ]
    assert facts["packages"] == [
        {"name": "busybox", "version": "1.2-r3", "size": 1000},
        {"name": "musl", "version": "1-r0", "size": 5000},
    ]
    assert facts["partitions"][1]["fsUuid"] == "F2"
    assert [(limits.size, limits.seconds) for limits in opened] == [(2 * MIB, 7.0)]


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(("most", "status"), [(7, 4), (8, 0)])
def test_a_database_of_more_lines_than_any(
    most: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has eight lines besides the lists of files."""
    monkeypatch.setattr(inspecting, "_MOST_LINES", most)
    assert main(["inspect", str(IMAGE)]) == status
    error = "error: out/linux.qcow2: its package database has more than 7 lines besides lists of files\n"
    assert capsys.readouterr().err == (error if status else "")
