"""Images and raw copies with a stand-in for qemu-img, limits of reading, and the requests to the appliance."""

from __future__ import annotations

import json
import os
import queue
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.engines import imagefile, limits, rawcopy
from imgkit.engines.convert import convert
from imgkit.engines.engineerrors import EngineStartError, LimitError, NoSpaceError, UnreadableImageError
from imgkit.engines.guestfs import appliance, appliancestart, channel, hostkernel, quickstart, readback
from imgkit.engines.guestfs import guestfsengine as guestfs
from imgkit.engines.guestfs.appliance import ApplianceRequestError, Holder
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Drive, Options
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import Limits
from imgkit.engines.rawcopy import oddities, raw_disk
from imgkit.engines.reading import Archive
from imgkit.errors import HostError, InputError
from imgkit.host.process import MissingProgramError, ProgramError, ProgramTimeoutError

MIB, GIB = 1 << 20, 1 << 30

# ---- limits ----------------------------------------------------------------------------------------------------------


def test_the_default_limits_and_what_is_left_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    reading = Limits(_start=1000.0)
    assert (reading.size, reading.seconds) == (64 * MIB, 900.0)
    assert (reading.deadline, reading.left) == (1900.0, 900.0)
    clock[0] = 1898.5
    assert reading.left == 1.5
    clock[0] = 1899.5
    assert reading.left == 1.0, "at least one second"
    assert Limits(5, 7.0, _start=3.0).deadline == 10.0
    assert (limits.MORE_BYTES, limits.MORE_TIME) == ("--limit reads more", "--timeout gives it more")


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB])
def test_an_archive_is_read_piece_by_piece(size: int, tmp_path: Path) -> None:
    path = tmp_path / "tar.raw"
    data = bytes(number % 251 for number in range(1000)) * (size // 1000 + 1)
    path.write_bytes(b"before" + data[:size] + b"after" * 1000)
    pieces = list(Archive(path, 6, size, complete=True, complaints="").pieces())
    assert b"".join(pieces) == data[:size]
    assert all(0 < len(piece) <= MIB for piece in pieces)


def test_an_archive_that_is_shorter_than_stated_ends(tmp_path: Path) -> None:
    path = tmp_path / "tar.raw"
    path.write_bytes(b"before123")
    assert list(Archive(path, 6, 100, complete=True, complaints="").pieces()) == [b"123"]


# ---- qemu-img --------------------------------------------------------------------------------------------------------


@dataclass
class FakeQemuImg:
    """Answers each subcommand of qemu-img; an exception is raised. Keeps what it was asked, with all options."""

    answers: dict[str, object] = field(default_factory=dict)
    asked: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    bounds: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, argv: list[str | Path], **options: Any) -> bytes:
        self.asked.append(([str(word) for word in argv], options))
        answer = self.answers.get(str(argv[1]), "")
        if isinstance(answer, Exception):
            raise answer
        return (answer if isinstance(answer, str) else json.dumps(answer)).encode()

    def bounded(self, *values: int) -> None:
        self.bounds.append(values)


@pytest.fixture
def qemu_img(monkeypatch: pytest.MonkeyPatch) -> FakeQemuImg:
    fake = FakeQemuImg()
    for module in (rawcopy, imagefile):
        monkeypatch.setattr(module.process, "run", fake.run)
        monkeypatch.setattr(module.process, "bounded", fake.bounded)
    return fake


INFO = ImageInfo("qcow2", 64 * MIB, 5)


def test_a_raw_copy_of_an_image(qemu_img: FakeQemuImg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = Path("x.qcow2")
    qemu_img.answers["measure"] = {"required": 10 * MIB}
    reading = Limits(10 * MIB)
    assert raw_disk(image, INFO, tmp_path, reading) == tmp_path / "disk.raw"
    (measure, options), (convert_, more) = qemu_img.asked
    full = str(tmp_path / "x.qcow2")
    assert measure == ["qemu-img", "measure", "--output=json", "-f", "qcow2", "-O", "qcow2", full]
    assert convert_ == [
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-S", "64k", full, str(tmp_path / "disk.raw"),
    ]  # fmt: skip
    assert 890 < options["timeout"] <= 900
    assert (options["good"], more["good"]) == ((0,), (0,))
    assert qemu_img.bounds == [(2 * GIB, 14400, 0), (2 * GIB, 14400, 64 * MIB)]


def test_a_raw_disk_is_its_own_copy(qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("disk")
    raw = ImageInfo("raw", 1, 1)
    assert raw_disk(tmp_path / "link", raw, tmp_path, Limits(0)) == tmp_path.resolve() / "disk"
    assert oddities(tmp_path / "link", raw, Limits()) == []
    assert qemu_img.asked == []


def test_more_data_than_is_allowed_is_not_copied(qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    qemu_img.answers["measure"] = {"required": 10 * MIB + 1}
    with pytest.raises(LimitError) as caught:
        raw_disk(Path("x"), INFO, tmp_path, Limits(10 * MIB))
    assert caught.value.message == "x: holds 11 MiB of data, where 10 MiB are read at most"
    assert caught.value.hint == "--limit reads more"
    assert len(qemu_img.asked) == 1


@pytest.mark.parametrize(("free", "fits"), [(74 * MIB, True), (74 * MIB - 1, False)])
def test_sixty_four_mib_stay_free(
    free: int, fits: bool, qemu_img: FakeQemuImg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu_img.answers["measure"] = {"required": 10 * MIB}
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=free, f_frsize=1, f_bfree=1 << 60))
    if fits:
        raw_disk(Path("x"), INFO, tmp_path, Limits())
        return
    with pytest.raises(NoSpaceError) as caught:
        raw_disk(Path("x"), INFO, tmp_path, Limits())
    assert caught.value.message == f"{tmp_path}: only 74 MiB free, and reading the image takes 74 MiB"
    assert caught.value.hint == "make room, or give it a raw copy of the image"


def test_what_is_odd_about_an_image(qemu_img: FakeQemuImg) -> None:
    qemu_img.answers |= {
        "info": {
            "snapshots": [{"name": "a\x1b"}, {}],
            "format-specific": {"data": {"bitmaps": [{"name": "b" * 101}], "corrupt": True}},
        },
        "check": {"corruptions": 2, "check-errors": 1, "leaks": 5},
    }
    assert oddities(Path("/x"), INFO, Limits()) == [
        r"snapshot 'a\x1b' inside the file",
        "snapshot 'None' inside the file",
        f"bitmap '{'b' * 100}' inside the file",
        "the file is marked as corrupt",
        "the file is inconsistent: 2 corruptions (qemu-img check)",
        "the file is inconsistent: 1 check-errors (qemu-img check)",
    ]
    assert [words for words, _ in qemu_img.asked] == [
        ["qemu-img", "info", "--output=json", "-f", "qcow2", "/x"],
        ["qemu-img", "check", "--output=json", "-f", "qcow2", "/x"],
    ]
    assert qemu_img.asked[1][1]["good"] == (0, 2, 3)


def test_an_image_without_oddities(qemu_img: FakeQemuImg) -> None:
    qemu_img.answers |= {"info": {}, "check": {"leaks": 5, "corruptions": 0}}
    assert oddities(Path("/x"), INFO, Limits()) == []


def test_ten_snapshots_and_bitmaps_are_named(qemu_img: FakeQemuImg) -> None:
    many = [{"name": str(number)} for number in range(11)]
    qemu_img.answers |= {"info": {"snapshots": many, "format-specific": {"data": {"bitmaps": many}}}, "check": {}}
    lines = oddities(Path("/x"), INFO, Limits())
    assert len(lines) == 20
    assert lines[9] == "snapshot '9' inside the file"
    assert lines[19] == "bitmap '9' inside the file"


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (MissingProgramError("qemu-img"), MissingProgramError, "qemu-img: program not found",
         "apt-get install qemu-utils"),
        (ProgramTimeoutError("no result within 5 s"), LimitError, "x: no result within 5 s",
         "the image may be damaged"),
        (ProgramError("qemu-img", 1, "write: No space left on device"), ProgramError,
         "qemu-img failed with status 1: write: No space left on device", None),
        (ProgramError("qemu-img", 1, "bad"), UnreadableImageError, "x: qemu-img failed with status 1: bad",
         "the image may be damaged"),
        (HostError("other"), UnreadableImageError, "x: other", "the image may be damaged"),
    ],
)  # fmt: skip
def test_how_qemu_img_fails(
    error: HostError, kind: type[Exception], message: str, hint: str | None, qemu_img: FakeQemuImg, tmp_path: Path
) -> None:
    qemu_img.answers["measure"] = error
    with pytest.raises(kind) as caught:
        raw_disk(Path("x"), INFO, tmp_path, Limits())
    assert (cast(Any, caught.value).message, cast(Any, caught.value).hint) == (message, hint)


def disk_file(folder: Path, start: bytes = b"") -> Path:
    path = folder / "disk"
    path.write_bytes(start or bytes(510) + b"\x55\xaa")
    return path


def reported(**values: Any) -> dict[str, Any]:
    return {"format": "raw", "virtual-size": 7, "actual-size": 9, **values}


def test_what_qemu_img_says_of_an_image(qemu_img: FakeQemuImg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disk_file(tmp_path)
    qemu_img.answers["info"] = reported()
    assert image_info(Path("disk")) == ImageInfo("raw", 7, 9)
    ((words, options),) = qemu_img.asked
    assert words == ["qemu-img", "info", "-f", "raw", "--output=json", str(tmp_path / "disk")]
    assert (options["timeout"], qemu_img.bounds) == (20, [(GIB, 20)])


OTHER_FILES = "refers to another file of this host, which is not followed"


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        (reported(**{"backing-filename": "/etc/passwd"}), OTHER_FILES, None),
        (reported(**{"format-specific": {"data": {"data-file": "/x"}}}), OTHER_FILES, None),
        (reported(format="vpc"), "format vpc is not supported", "qcow2 and raw are"),
        (ProgramError("qemu-img", 1, "bad"), "qemu-img failed with status 1: bad", None),
    ],
)
def test_images_that_are_refused(
    answer: object, message: str, hint: str | None, qemu_img: FakeQemuImg, tmp_path: Path
) -> None:
    path = disk_file(tmp_path)
    qemu_img.answers["info"] = answer
    with pytest.raises(UnreadableImageError) as caught:
        image_info(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}: {message}", hint)


NO_DISK = "it has no boot sector, no partition table, and is no ext4 filesystem"


def test_a_filesystem_without_a_partition_table_is_an_image(qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    qemu_img.answers["info"] = reported()
    superblock = struct.pack("<2I16xI", 16, 16, 2).ljust(0x38, b"\0") + b"\x53\xef"
    path = disk_file(tmp_path, (bytes(1024) + superblock).ljust(16 * 4096, b"\0"))
    assert image_info(path).format == "raw"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(InputError, match="damaged or truncated: 65024 bytes of a disk of 65536"):
        image_info(path)


def test_images_that_are_no_disks(qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    qemu_img.answers["info"] = reported()
    for start in (bytes(510) + b"\x55\xab", bytes(510) + b"\x55\xaa\0", b"\x55\xaa" * 100):
        path = disk_file(tmp_path, start)
        with pytest.raises(UnreadableImageError) as caught:
            image_info(path)
        assert caught.value.message == f"{path}: not a disk image: {NO_DISK}"
        assert caught.value.hint == "give it the qcow2 file that a build made, or a raw copy of it"
    qemu_img.answers["info"] = reported(format="qcow2")
    assert image_info(path).format == "qcow2", "which has a header of its own"
    with pytest.raises(UnreadableImageError, match=f"^{tmp_path}: a folder, not a disk image$"):
        image_info(tmp_path)


def test_a_missing_qemu_img_is_said_as_it_is(qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    qemu_img.answers["info"] = MissingProgramError("qemu-img")
    with pytest.raises(MissingProgramError):
        image_info(disk_file(tmp_path))


@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_how_an_image_is_compressed(compression: Any, qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    target = tmp_path / "image"
    target.write_bytes(b"12345")
    assert convert(tmp_path / "raw", target, compression) == 5
    ((words, options),) = qemu_img.asked
    settings = f"compression_type={compression},cluster_size=65536,lazy_refcounts=off"
    assert words == [
        "qemu-img", "convert", "-c", "-m", "8", "-W", "-f", "raw", "-O", "qcow2", "-o", settings,
        str(tmp_path / "raw"), str(target),
    ]  # fmt: skip
    assert options == {}
    convert(tmp_path / "raw", target)
    assert "compression_type=zstd" in qemu_img.asked[1][0][11]


# ---- opening an image ------------------------------------------------------------------------------------------------


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what an appliance was opened with, and with what it was waited for."""
    calls: list[Any] = []

    @contextmanager
    def opened(*arguments: Any) -> Iterator[str]:
        calls.append((*arguments, arguments[1][1].path.stat().st_size))
        yield "channel"

    monkeypatch.setattr(readback, "opened", opened)
    monkeypatch.setattr(readback, "wait", lambda *arguments: calls.append(arguments))
    return calls


def test_an_image_is_opened_read_only(drives: list[Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("image")
    options = Options(launch_timeout=50.0)
    before = time.monotonic()
    with readback.open_image(tmp_path / "link", tmp_path, options, info=INFO) as reader:
        assert (reader._limits.size, reader._limits.seconds) == (64 * MIB + GIB, 900.0)
    (scratch, given, used, size), (waited, deadline, same) = drives
    assert scratch == tmp_path
    assert given == [Drive(tmp_path / "image", "qcow2", readonly=True), Drive(tmp_path / "tar.raw")]
    assert (used, same, waited) == (options, options, "channel")
    assert size == 64 * MIB + GIB + 2 * MIB
    assert 50 <= deadline - before < 100
    assert not (tmp_path / "tar.raw").exists()


@pytest.mark.parametrize(("limit", "size"), [(MIB, 3 * MIB), (MIB - 1, 2 * MIB), (5, 2 * MIB)])
def test_the_scratch_drive_has_room_for_what_is_read(limit: int, size: int, drives: list[Any], tmp_path: Path) -> None:
    """One MiB before it, and whole MiB altogether."""
    with readback.open_image(tmp_path / "x", tmp_path, Options(), Limits(limit), info=INFO):
        assert drives[0][3] == size


def test_the_format_is_read_if_it_is_not_known(drives: list[Any], qemu_img: FakeQemuImg, tmp_path: Path) -> None:
    path = disk_file(tmp_path)
    qemu_img.answers["info"] = reported()
    with readback.open_image(path, tmp_path, Options()):
        assert drives[0][1][0].format == "raw"


def test_no_room_for_the_scratch_drive(drives: list[Any], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        pytest.raises(NoSpaceError) as caught,
        readback.open_image(tmp_path / "x", missing, Options(), Limits(5 * MIB), info=INFO),
    ):
        pass
    assert caught.value.message == f"{missing}: no room for 5 MiB: No such file or directory"
    assert drives == []


def test_os_release_in_full() -> None:
    text = "A= \"x'y\" \n B=1\n_C=2\nd=3\nE2=\nF=a=b\nA_1='q'"
    assert readback.parse_os_release(text) == {"A": "x'y", "_C": "2", "E2": "", "F": "a=b", "A_1": "q"}


# ---- the requests to the process that holds libguestfs --------------------------------------------------------------


def test_what_an_appliance_is_launched_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBGUESTFS_PATH", raising=False)
    drives = [Drive(Path("/a"), "qcow2", readonly=True), Drive(Path("/b"))]
    options = Options("kvm", 2048, 3, 5.0, tmp_path / "cache")
    assert channel._launch_request(tmp_path, drives, options, quick=True) == {
        "op": "launch",
        "accelerator": "kvm",
        "memory": 2048,
        "cpus": 3,
        "cache": str(tmp_path / "cache"),
        "quick": True,
        "fixed": False,
        "tmpdir": str(tmp_path),
        "drives": [
            {"path": "/a", "format": "qcow2", "readonly": True, "cachemode": "writeback"},
            {"path": "/b", "format": "raw", "readonly": False, "cachemode": "unsafe"},
        ],
    }
    monkeypatch.setenv("LIBGUESTFS_PATH", "/own")
    request = channel._launch_request(tmp_path, [], Options(), quick=False)
    assert (request["fixed"], request["cache"], request["quick"]) == (True, "", False)
    assert (request["accelerator"], request["memory"], request["cpus"]) == ("tcg", 1024, 1)
    assert Options().launch_timeout == 120.0


@pytest.mark.parametrize(
    ("environ", "cache", "quick"),
    [
        ({}, True, True), ({}, False, False), ({"IMGKIT_APPLIANCE": "stock"}, True, False),
        ({"IMGKIT_APPLIANCE": "quick"}, True, True), ({"LIBGUESTFS_PATH": "/x"}, True, False),
        ({"LIBGUESTFS_PATH": ""}, True, True),
    ],
)  # fmt: skip
def test_when_the_quick_appliance_is_used(
    environ: dict[str, str], cache: bool, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IMGKIT_APPLIANCE", "LIBGUESTFS_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert channel._may_be_quick(Options(cache=Path("/c") if cache else None)) is quick


def test_the_variables_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/own")
    for name in ("LIBGUESTFS_HV", "LIBGUESTFS_PATH", "LIBGUESTFS_CACHEDIR", "LIBGUESTFS_DEBUG", "OTHER"):
        monkeypatch.setenv(name, name)
    found = channel._environment(Path("/sockets"))
    assert (found["XDG_RUNTIME_DIR"], found["LC_ALL"], found["OTHER"]) == ("/sockets", "C.UTF-8", "OTHER")
    assert {name for name in found if name.startswith("LIBGUESTFS_")} == {
        "LIBGUESTFS_HV", "LIBGUESTFS_PATH", "LIBGUESTFS_CACHEDIR",
    }  # fmt: skip
    assert found["PYTHONPATH"] == "/own"


@pytest.mark.parametrize(("length", "fits"), [(76, True), (77, False)])
def test_the_longest_path_of_a_socket(length: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a socket of libguestfs has 31 characters, and its path must not have more than 107."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    scratch = Path("/" + "x" * (length - 1))
    with channel._socket_folder(scratch) as folder:
        assert (folder if fits else folder.parent) == (scratch if fits else tmp_path)


def a_channel(*answers: dict[str, Any] | None, log: Path | None = None, status: object = 3) -> Channel:
    """Return a channel whose process has given these answers; None is the end of its output."""
    link = Channel.__new__(Channel)
    link._answers = queue.Queue()
    for answer in answers:
        link._answers.put(answer)

    def wait(timeout: float) -> object:
        if isinstance(status, Exception):
            raise status
        return status

    link._child = cast(Any, SimpleNamespace(wait=wait, stdin=None))
    if log is not None:
        link._scratch = log.parent
    return link


def test_answers_come_in_order() -> None:
    failure = {"error": "bad", "kind": "call", "console": "boot"}
    link = a_channel({"result": 1}, failure, {"result": None})
    assert link.failure() is None
    assert link.take() == 1
    seen = link.failure()
    assert seen is not None
    assert (seen.kind, seen.message, seen.console, str(seen)) == ("call", "bad", "boot", "bad")
    with pytest.raises(ApplianceError) as caught:
        link.take()
    assert (caught.value.kind, caught.value.message, caught.value.console) == ("call", "bad", "boot")
    assert link.failure() is None
    assert link.take() is None
    assert link.failure() is None
    assert a_channel(None).failure() is None


def test_waiting_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_POLL", 0.001)
    looks = []
    with pytest.raises(TimeoutError):
        a_channel().take(time.monotonic() - 1, lambda: looks.append(1))
    assert looks == [1]
    link = a_channel()

    def watch() -> None:
        looks.append(2)
        if len(looks) == 4:
            link._answers.put({"result": "late"})

    assert link.take(time.monotonic() + 100, watch) == "late"
    assert looks == [1, 2, 2, 2]
    assert a_channel({"result": 5}).take(time.monotonic() - 1) == 5, "an answer that is there is taken"


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        (3, "first\nlast\n", "failed with status 3: last"),
        (-9, "", "was killed by SIGKILL"),
        (subprocess.TimeoutExpired("x", 5), "", "failed with status 1"),
    ],
)
def test_a_process_that_died(status: object, log: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "appliance.log"
    path.write_text(log)
    with pytest.raises(HostError) as caught:
        a_channel(None, log=path, status=status).take()
    assert caught.value.message == f"the process that holds libguestfs {words}"


# ---- why an appliance does not start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (ApplianceError("bindings", "No module named 'guestfs'", ""),
         "libguestfs' Python bindings cannot be imported: No module named 'guestfs'",
         "apt-get install python3-guestfs (Fedora, openSUSE: python3-libguestfs)"),
        (ApplianceError("kernel", "no kernel in /boot", ""), "libguestfs needs a kernel: no kernel in /boot",
         "apt-get install linux-image-amd64 (Ubuntu: linux-image-generic, arm64: linux-image-arm64)"),
        (ApplianceError("kernel", "/boot/vmlinuz is not readable", ""),
         "libguestfs needs a kernel, and /boot/vmlinuz is not readable by this user",
         "sudo chmod 0644 /boot/vmlinuz-*; or without root: apt-get download linux-image-$(uname -r),"
         " dpkg-deb -x it, and set SUPERMIN_KERNEL to its boot/vmlinuz-…"),
        (ApplianceError("launch", "guestfs_launch failed.\nmore advice", "boot\n  last line \n"),
         "the libguestfs appliance did not start: guestfs_launch failed.; its last output: last line",
         "libguestfs-test-tool shows why"),
        (ApplianceError("launch", "failed", ""), "the libguestfs appliance did not start: failed",
         "libguestfs-test-tool shows why"),
        (ApplianceError("launch", "failed", "x" + "y" * 200),
         f"the libguestfs appliance did not start: failed; its last output: {'y' * 200}",
         "libguestfs-test-tool shows why"),
        (ApplianceError("launch", "supermin: exited with status 1", ""),
         "the libguestfs appliance did not start: supermin: exited with status 1", "libguestfs-test-tool shows why"),
    ],
)  # fmt: skip
def test_why_it_did_not_start(error: ApplianceError, message: str, hint: str) -> None:
    found = appliancestart.launch_error(error)
    assert isinstance(found, EngineStartError)
    assert (found.message, found.hint) == (message, hint)


@pytest.mark.parametrize(
    ("message", "program"),
    [
        ("supermin: No such file or directory", "supermin"),
        ("sh: supermin: not found", "supermin"),
        ("qemu-system-x86_64: not found", "qemu-system-x86_64"),
    ],
)
def test_a_program_that_an_appliance_needs(message: str, program: str) -> None:
    found = appliancestart.launch_error(ApplianceError("launch", message, ""))
    assert isinstance(found, MissingProgramError)
    assert found.program == program


def test_a_stock_appliance_that_hangs() -> None:
    link = cast(Channel, SimpleNamespace(quick=False, take=lambda deadline: (_ for _ in ()).throw(TimeoutError())))
    with pytest.raises(EngineStartError) as caught:
        appliancestart.wait(link, 0, Options(launch_timeout=7.5))
    assert caught.value.message == "the libguestfs appliance did not start within 7.5 s"
    assert caught.value.hint == "libguestfs-test-tool shows where it hangs"


# ---- the process itself ----------------------------------------------------------------------------------------------


class FakeGuestFS:
    """Stands for libguestfs' handle: it keeps what is called, and fails where ``failing`` says so."""

    failing = ""

    def __init__(self, *, python_return_dict: bool) -> None:
        assert python_return_dict
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> str:
            self.calls.append((name, *arguments, *([options] if options else [])))
            if name == self.failing:
                raise RuntimeError(f"{name} failed")
            return "output"

        return call


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeGuestFS]:
    """Return the handles that were made by a stand-in for the bindings."""
    made: list[FakeGuestFS] = []

    def make(*, python_return_dict: bool) -> FakeGuestFS:
        made.append(FakeGuestFS(python_return_dict=python_return_dict))
        return made[-1]

    monkeypatch.setitem(sys.modules, "guestfs", cast(Any, SimpleNamespace(GuestFS=make, EVENT_APPLIANCE=16)))
    monkeypatch.setattr(FakeGuestFS, "failing", "")
    monkeypatch.setattr(hostkernel, "choice", lambda environment: {"SUPERMIN_KERNEL": "/chosen"})
    monkeypatch.setenv("SUPERMIN_KERNEL", "/before")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return made


def request(**changes: Any) -> dict[str, Any]:
    drive = {"path": "/d", "format": "raw", "readonly": False, "cachemode": "unsafe"}
    return {
        "op": "launch", "accelerator": "tcg", "memory": 512, "cpus": 2, "cache": "", "quick": False, "fixed": False,
        "tmpdir": "/tmp/x", "drives": [drive], **changes,
    }  # fmt: skip


def test_how_an_appliance_is_configured(made: list[FakeGuestFS], tmp_path: Path) -> None:
    holder = Holder()
    answer = holder.answer(request(cache=str(tmp_path / "a/b")))
    assert 0 <= answer["seconds"] < 60
    (handle,) = made
    assert handle.calls == [
        ("set_event_callback", holder._on_console, 16),
        ("set_backend", "direct"),
        ("set_backend_setting", "force_tcg", "1"),
        ("set_network", False),
        ("set_memsize", 512),
        ("set_smp", 2),
        ("set_tmpdir", "/tmp/x"),
        ("set_cachedir", str(tmp_path / "a/b")),
        ("set_append", "mitigations=off lsm=capability clearcpuid=297,580"),
        ("add_drive_opts", "/d", {"format": "raw", "readonly": False, "cachemode": "unsafe"}),
        ("launch",),
    ]
    assert (tmp_path / "a/b").is_dir()
    assert os.environ["SUPERMIN_KERNEL"] == "/chosen"


@pytest.mark.parametrize(
    ("machine", "accelerator", "arguments"),
    [
        ("x86_64", "kvm", "mitigations=off lsm=capability"),
        ("i686", "tcg", "mitigations=off lsm=capability clearcpuid=297,580"),
        ("aarch64", "tcg", "mitigations=off lsm=capability"),
    ],
)
def test_the_kernel_arguments_of_an_appliance(
    machine: str, accelerator: str, arguments: str, made: list[FakeGuestFS], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    Holder().launch(request(accelerator=accelerator))
    assert ("set_append", arguments) in made[0].calls
    assert ("set_backend_setting", f"force_{accelerator}", "1") in made[0].calls
    assert not any(call[0] == "set_cachedir" for call in made[0].calls)


def test_the_users_own_appliance_needs_no_kernel(made: list[FakeGuestFS]) -> None:
    Holder().launch(request(fixed=True))
    assert os.environ["SUPERMIN_KERNEL"] == "/before"


def test_a_quick_appliance_is_kept_until_the_end(
    made: list[FakeGuestFS], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    @contextmanager
    def quick(cache: Path) -> Iterator[Path]:
        steps.append(f"made in {cache}")
        yield Path("/ready")
        steps.append("released")

    monkeypatch.setattr(quickstart, "appliance", quick)
    holder = Holder()
    holder.launch(request(quick=True, cache=str(tmp_path)))
    assert made[0].calls[-2:] == [("set_path", "/ready"), ("launch",)]
    assert steps == [f"made in {tmp_path}"]
    assert holder.answer({"op": "sh", "script": "ls '/'"}) == "output"
    assert made[0].calls[-1] == ("debug", "sh", ["bash -c 'ls '\"'\"'/'\"'\"''"])
    assert holder.answer({"op": "close"}) is None
    assert made[0].calls[-2:] == [("shutdown",), ("close",)]
    assert steps == [f"made in {tmp_path}", "released"]
    assert holder.answer({"op": "close"}) is None, "a second time there is nothing to do"
    assert len(made[0].calls) == 15


@pytest.mark.parametrize(
    ("failing", "operation", "kind"), [("launch", {}, "launch"), ("debug", {"op": "sh", "script": ""}, "call"),
                                       ("shutdown", {"op": "close"}, "call")]
)  # fmt: skip
def test_how_requests_fail(
    failing: str, operation: dict[str, str], kind: str, made: list[FakeGuestFS], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGuestFS, "failing", failing)
    holder = Holder()
    if operation:
        holder.launch(request())
    with pytest.raises(ApplianceRequestError) as caught:
        holder.answer(operation or request())
    assert (caught.value.kind, str(caught.value)) == (kind, f"{failing} failed")
    assert (made[0].calls[-1] == ("close",)) is (failing != "debug")


def test_requests_that_cannot_be_answered(made: list[FakeGuestFS], monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(operation: dict[str, Any]) -> tuple[str, str]:
        with pytest.raises(ApplianceRequestError) as caught:
            Holder().answer(operation)
        return caught.value.kind, str(caught.value)

    assert refusal({"op": "sh", "script": "x"}) == ("call", "there is no appliance")
    assert refusal({"op": "dance"}) == ("call", "dance: no such operation")

    def unavailable(cache: Path) -> None:
        raise quickstart.UnavailableError(f"not in {cache}")

    monkeypatch.setattr(quickstart, "appliance", unavailable)
    assert refusal(request(quick=True, cache="/c")) == ("launch", "not in /c")

    def none(environment: object) -> None:
        raise hostkernel.NoKernelError("no kernel")

    monkeypatch.setattr(hostkernel, "choice", none)
    assert refusal(request()) == ("kernel", "no kernel")
    monkeypatch.setitem(sys.modules, "guestfs", None)
    assert refusal(request())[0] == "bindings"


def test_the_last_output_of_an_appliance_is_kept() -> None:
    holder = Holder()
    for text in (b"bytes \xff", "text", 5, "x" * 3990):
        holder._on_console(0, 0, text, None)
    assert holder.console == ("bytes \ufffdtext5" + "x" * 3990)[-4000:]
    assert appliance.ApplianceRequestError("call", "x").kind == "call"


# ---- small readers ---------------------------------------------------------------------------------------------------


def cpio_member(name: str, content: bytes, *, size: int | None = None) -> bytes:
    """Return a member as buffer-format.rst of the kernel's documentation has it; each field has another value."""
    length = len(content) if size is None else size
    numbers = [1, 0o100644, 2, 3, 4, 5, length, 6, 7, 8, 9, len(name) + 1, 0]
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)


def test_every_member_of_a_cpio_archive_is_read() -> None:
    members = [("a" * number, b"c" * number) for number in (1, 2, 3, 4, 5, 20)] + [("empty", b"")]
    archive = b"".join(cpio_member(name, content) for name, content in members)
    assert list(quickstart.read_cpio(archive)) == members
    trailer = cpio_member("TRAILER!!!", b"")
    assert list(quickstart.read_cpio(archive + trailer + archive)) == members
    assert list(quickstart.read_cpio(b"070702" + archive[6:])) == []
    cut = cpio_member("large", b"x" * 16, size=0x10000008)
    assert list(quickstart.read_cpio(cut)) == [("large", b"x" * 16)]


@pytest.mark.parametrize(("free", "enough"), [(8 * MIB, True), (8 * MIB - 1, False)])
def test_eight_mib_stay_free_while_an_image_is_read(
    free: int, enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=free, f_frsize=1, f_bfree=1 << 60))
    reader = readback.GuestfsReader(cast(Channel, None), Path("x"), INFO, tmp_path / "tar.raw", Limits())
    if enough:
        reader._watch_space()
        return
    with pytest.raises(NoSpaceError) as caught:
        reader._watch_space()
    assert caught.value.message == f"{tmp_path}: no space left for what is read of the image"
    assert caught.value.hint == "make room"


def test_an_appliance_that_cannot_start_is_no_reason_to_give_up() -> None:
    other = "build without libguestfs: --engine native, or IMGKIT_ENGINE=native"
    failures: dict[HostError, str] = {
        EngineStartError("a", hint="install it"): f"install it; or {other}",
        EngineStartError("b"): other,
    }
    failures[MissingProgramError("supermin")] = f"apt-get install supermin; or {other}"
    for failure, hint in failures.items():
        with pytest.raises(HostError) as caught, guestfs._other_engine():
            raise failure
        assert (caught.value, caught.value.hint) == (failure, hint)
    with pytest.raises(NoSpaceError) as full, guestfs._other_engine():
        raise NoSpaceError("full", hint="make room")
    assert full.value.hint == "make room"
