"""Quotas of the host's disk, measured on folders that the tests fill, and the end of the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.errors import UsageError
from imgkit.host.walk import Walk
from imgkit.vm.failures import QuotaError
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import monitor, usage
from imgkit.vm.shares.diskfiles import disk_check, process_tree, unlinked_bytes
from imgkit.vm.shares.monitor import UsageMonitor
from imgkit.vm.shares.quotas import FolderQuota, Quotas, format_size, parse
from imgkit.vm.shares.usage import FolderMeter, MonitoredFolder
from tests.conftest import need
from tests.files import nest, noise

MIB = 1 << 20
HANG = 60.0
"""Seconds after which a wait that should end within one or two counts as a hang."""


@contextmanager
def monitored(path: Path, limit: FolderQuota) -> Iterator[tuple[UsageMonitor, threading.Event]]:
    """Monitor a folder without pauses. Yield the monitor, and an event that is set when it ends the machine."""
    ended = threading.Event()
    folder = MonitoredFolder("share work", path, limit, "share")
    monitoring = UsageMonitor([folder])
    with monitoring.running(lambda: None, ended.set):
        yield monitoring, ended


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL", 0.02)


def settled(monitoring: UsageMonitor) -> None:
    """Wait until a scan has started and ended after now."""
    (meter,) = monitoring._meters
    for _ in range(2):
        due, deadline = meter._due, time.monotonic() + HANG
        while meter._due == due and monitoring.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def exceeds(monitoring: UsageMonitor, ended: threading.Event) -> str:
    assert ended.wait(HANG), "the machine was not ended"
    with pytest.raises(QuotaError) as raised:
        monitoring.check()
    return raised.value.message


def test_bytes_that_are_added_end_the_machine(tmp_path: Path) -> None:
    (tmp_path / "there before").write_bytes(bytes(4 * MIB))
    time.sleep(0.05)  # the clock of a filesystem is a little late
    with monitored(tmp_path, FolderQuota(2 * MIB, None)) as (monitoring, ended):
        settled(monitoring)
        monitoring.check()
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/file").write_bytes(noise(MIB))
        settled(monitoring)
        monitoring.check()
        assert not ended.is_set()
        (tmp_path / "deep/more").write_bytes(noise(3 * MIB))
        message = exceeds(monitoring, ended)
    assert "MiB to the share work" in message
    assert str(tmp_path) in message
    assert message.endswith("and may add 2 MiB")


def test_files_that_are_added_end_the_machine(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"before {number}").touch()
    time.sleep(0.05)
    with monitored(tmp_path, FolderQuota(None, 20)) as (monitoring, ended):
        settled(monitoring)
        monitoring.check()
        nest(tmp_path, 21)
        assert exceeds(monitoring, ended).startswith("the guest added 21 files to the share work")


def test_what_is_added_before_the_first_look_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "FIRST_SCAN_TIMEOUT", 0)
    monkeypatch.setattr(usage, "_free", lambda _: (1 << 40, 1 << 20))  # others write to this disk, too
    folder, ended = MonitoredFolder("share work", tmp_path, FolderQuota(2 * MIB), "share"), threading.Event()
    monitoring = UsageMonitor([folder])
    time.sleep(0.05)  # the clock of a filesystem is a little late
    (tmp_path / "file").write_bytes(noise(3 * MIB))
    monkeypatch.setattr(usage, "_free", lambda _: ((1 << 40) - 4 * MIB, 1 << 20))
    with monitoring.running(lambda: None, ended.set):
        exceeds(monitoring, ended)


@pytest.mark.parametrize("seconds", [0, 2], ids=["not seen before the start", "seen before the start"])
def test_a_big_file_of_which_one_byte_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Only what it grew by counts, whenever that was."""
    monkeypatch.setattr(monitor, "FIRST_SCAN_TIMEOUT", seconds)
    monkeypatch.setattr(usage, "_free", lambda _: (1 << 40, 1 << 20))  # others write to this disk, too
    file = tmp_path / "file"
    file.write_bytes(noise(32 * MIB))
    with file.open("r+b") as sink:
        os.fsync(sink.fileno())
    time.sleep(0.05)  # the clock of a filesystem is a little late
    folder, ended = MonitoredFolder("share work", tmp_path, FolderQuota(12 * MIB, None), "share"), threading.Event()
    monitoring = UsageMonitor([folder])
    time.sleep(0.05)
    with file.open("r+b") as sink:
        sink.write(b"x")
    with monitoring.running(lambda: None, ended.set):
        settled(monitoring)
        monitoring.check()
        assert not ended.is_set()
        with file.open("ab") as sink:
            sink.write(noise(16 * MIB))
        message = exceeds(monitoring, ended)
    assert re.search(r"added 1[2-6] MiB to the share work", message), message  # it may be seen while it is written


def test_a_look_that_was_begun_before_the_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there in many folders does not count, whether the first look came to it in time or not."""
    monkeypatch.setattr(monitor, "FIRST_SCAN_TIMEOUT", 1e-9)
    monkeypatch.setattr(usage, "_SLICE", 10)
    for number in range(300):
        (tmp_path / f"{number}").touch()
    with monitored(tmp_path, FolderQuota(None, 20)) as (monitoring, ended):
        settled(monitoring)
        monitoring.check()
        nest(tmp_path, 21)
        assert exceeds(monitoring, ended).startswith("the guest added 21 files")


def test_closed_folders_of_other_users_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in those of the user who runs imgkit, or QEMU, can the guest hide anything."""
    top, mine = os.open(tmp_path, os.O_RDONLY), os.geteuid()
    real = os.open

    def closed(path: str | Path, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if path == "closed":
            raise PermissionError
        return real(path, flags, *rest, dir_fd=dir_fd)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "open", closed)
    for owners, is_noted in (({mine + 1}, False), ({mine}, True), (None, True)):
        walk = Walk(top, owners)
        list(walk)
        assert (walk.unread, walk.newest_unread > 0) == (1, is_noted)
    (meter,) = UsageMonitor([MonitoredFolder("share", tmp_path, FolderQuota(), "share")], owners=[4711])._meters
    assert meter._owners == {mine, 4711}
    os.close(top)


def test_a_filesystem_that_makes_it_wait_is_left_alone_most_of_the_time() -> None:
    assert monitor._pause(0.05, 0.05) == pytest.approx(1.0)
    assert monitor._pause(0.001, 1.0) == pytest.approx(3.0), (
        "the look works a quarter of the time, whatever it waits for"
    )


def test_what_takes_no_room_does_not_count(tmp_path: Path) -> None:
    """Sparse files, further names of a file, links to what lies outside, and files that went."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(noise(4 * MIB))
    top = tmp_path / "top"
    top.mkdir()
    with monitored(top, FolderQuota(2 * MIB)) as (monitoring, _):
        with (top / "sparse").open("wb") as sink:
            sink.truncate(1 << 40)
        (top / "file").write_bytes(noise(MIB))
        for number in range(10):
            os.link(top / "file", top / f"name {number}")
        (top / "link").symlink_to(outside)
        settled(monitoring)
        (top / "passing").write_bytes(noise(MIB // 2))
        settled(monitoring)
        (top / "passing").unlink()
        (top / "another").write_bytes(noise(MIB // 2))
        settled(monitoring)
        monitoring.check()


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with monitored(top, FolderQuota(MIB)) as (monitoring, _):
        settled(monitoring)
        top.rmdir()
        time.sleep(0.2)
        top.mkdir()
        (top / "file").write_bytes(noise(2 * MIB))
        settled(monitoring)
        with pytest.raises(QuotaError):
            monitoring.check()


def test_a_guest_that_keeps_moving_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot escape measuring: after some looks in a row that were cut short the machine is ended."""

    class Moving:
        newest_unread = float("-inf")

        def __init__(self, *_: object) -> None:
            """Take the arguments of a walk."""

        def __iter__(self) -> Iterator[None]:
            raise OSError("was moved while it was read")

    monkeypatch.setattr(usage, "Walk", Moving)
    with monitored(tmp_path, FolderQuota(MIB)) as (monitoring, ended):
        assert "cannot be measured" in exceeds(monitoring, ended)


def test_a_failure_of_the_measuring_ends_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "FIRST_SCAN_TIMEOUT", 0)
    monkeypatch.setattr(usage, "Walk", None)
    with monitored(tmp_path, FolderQuota(MIB)) as (monitoring, ended):
        assert "the quotas cannot be measured" in exceeds(monitoring, ended)


def test_what_is_hidden_in_folders_that_nobody_may_read() -> None:
    """Without root's rights a folder that the guest closes cannot be read: then counts what the disk has lost."""
    script = """
import os, sys, threading, time, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
package = types.ModuleType("imgkit.vm")  # whose own __init__ imports libraries
package.__path__ = [sys.argv[1] + "/imgkit/vm"]
sys.modules["imgkit.vm"] = package
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import monitor, usage
from imgkit.vm.shares.quotas import FolderQuota
usage.INTERVAL = 0.02
top = Path(sys.argv[2])
ended = threading.Event()
monitoring = monitor.UsageMonitor([usage.MonitoredFolder("share", top, FolderQuota(4 << 20), "share")])
time.sleep(0.05)
with monitoring.running(lambda: None, ended.set):
    (top / "hidden").mkdir()
    os.chmod(top / "hidden", 0o300)
    (top / "hidden" / "file").write_bytes(b"x" * (64 << 20))
    os.chmod(top / "hidden", 0)
    assert ended.wait(60)
"""
    place = Path(tempfile.mkdtemp(prefix="imgkit-test-", dir="/tmp"))  # pytest's own are closed to other users
    user = 65534 if os.geteuid() == 0 else None
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") if user is not None else sys.executable
    need("a Python for every user", python)
    try:
        package = Path(monitor.__file__).parents[2]
        shutil.copytree(package, place / "code/imgkit", ignore=shutil.ignore_patterns("__pycache__"))
        (place / "top").mkdir()
        if user is not None:
            os.chown(place / "top", user, user)
        place.chmod(0o755)
        subprocess.run([str(python), "-c", script, place / "code", place / "top"], user=user, check=True, timeout=120)
    finally:
        shutil.rmtree(place)


def test_files_without_a_name_count_as_the_disk(tmp_path: Path) -> None:
    """QEMU's temporary file is one, and so is what a guest unlinks and keeps open."""
    need("/proc", Path("/proc/self/fd").is_dir())
    before = unlinked_bytes([os.getpid()])
    named = tmp_path / "named"
    with tempfile.TemporaryFile(dir=tmp_path) as first, named.open("wb") as second:
        for sink, size in ((first, 3 * MIB), (second, 9 * MIB)):
            sink.write(noise(size))
            sink.flush()
            os.fsync(sink.fileno())
        blocks = os.fstat(first.fileno()).st_blocks * 512
        assert 2 * MIB < blocks < 4 * MIB
        assert unlinked_bytes([os.getpid()]) - before == blocks, "not the file that has a name"
        check = disk_check(before + 2 * MIB, lambda: [os.getpid()], [])
        with pytest.raises(QuotaError, match="to its disk, and may add"):
            check()
        disk_check(None, lambda: [os.getpid()], [])()
    assert unlinked_bytes([os.getpid(), 1 << 22]) == before


def test_a_writable_image_counts_by_what_it_grew(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(noise(3 * MIB))
    check = disk_check(2 * MIB, list, [image, tmp_path / "missing"])
    check()
    image.write_bytes(noise(8 * MIB))
    with pytest.raises(QuotaError):
        check()


def test_processes_that_a_process_started() -> None:
    need("/proc/PID/task/TID/children", Path(f"/proc/self/task/{os.getpid()}/children").exists())
    with subprocess.Popen(["/bin/sh", "-c", "sleep 30 & wait"]) as child:
        deadline = time.monotonic() + HANG
        while len(members := process_tree(child.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert members[0] == child.pid
        assert len(members) == 2
        for pid in reversed(members):
            os.kill(pid, 9)


def test_words_of_the_command_line() -> None:
    assert parse([]) == Quotas()
    words = ["ipc=5", "ipc-files=6", "share=7K", "share=8G", "share-files=none", "disk=1.5", "time=9"]
    with pytest.raises(UsageError, match=r"--quota disk=1\.5: not a number"):
        parse(words)
    words[5] = "disk=2TiB"
    assert parse(words) == Quotas(FolderQuota(5, 6), FolderQuota(8 << 30, None), 2 << 40, 9)
    assert parse(["disk=none", "time=none"]) == Quotas(disk=None)


@pytest.mark.parametrize(
    "word", ["ipc", "ipc=", "=5", "work=5", "ipc=-1", "ipc=1X", "time=5K", "ipc-files=5K", "share=99999999999999999"]
)
def test_words_without_sense(word: str) -> None:
    with pytest.raises(UsageError, match="--quota"):
        parse([word])


@pytest.mark.parametrize("name", ["ipc", "ipc-files", "share", "share-files", "disk", "time"])
def test_nothing_at_all_is_no_quota(name: str) -> None:
    """A quota of 0 is refused, as ``--timeout 0`` is."""
    with pytest.raises(UsageError, match=f"--quota {name}=0: at least 1"):
        parse([f"{name}=0"])


def test_the_hint_has_an_example_of_time() -> None:
    with pytest.raises(UsageError) as raised:
        parse(["time=1h"])
    assert "time=600" in str(raised.value.hint)


def test_the_default_lets_the_longest_stream_pass() -> None:
    from imgkit.vm.agent.requests import MAX_STREAM

    limit = Quotas().ipc.size
    assert limit is not None
    assert limit > MAX_STREAM


@pytest.mark.parametrize(("size", "text"), [(0, "0 MiB"), (1, "1 MiB"), (MIB + 1, "2 MiB"), (3 << 29, "1.5 GiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_sizes_at_the_change_of_the_unit() -> None:
    assert (format_size(1 << 30), format_size((1 << 30) - 1), format_size(MIB)) == ("1.0 GiB", "1024 MiB", "1 MiB")


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2k", 2 << 10), ("3M", 3 << 20), ("4GB", 4 << 30), ("5TiB", 5 << 40), ("6b", 6)]
)
def test_units_of_the_command_line(text: str, size: int) -> None:
    assert parse([f"ipc={text}"]).ipc == FolderQuota(size, Quotas().ipc.files)
    assert parse([f"disk={text}"]).disk == size


def test_the_hint_names_the_quotas() -> None:
    with pytest.raises(UsageError, match="--quota work=5: no such quota") as raised:
        parse(["work=5"])
    assert raised.value.hint == "ipc, ipc-files, share, share-files, disk, time"


def test_the_quota_that_was_exceeded_is_named_with_its_option(tmp_path: Path) -> None:
    """Bytes and files of a folder have quotas of their own names; the hint says how to raise the one in question."""
    for quota, option in ((FolderQuota(size=MIB), "share"), (FolderQuota(files=1), "share-files")):
        with monitored(tmp_path, quota) as (monitoring, ended):
            settled(monitoring)
            for number in range(2):
                (tmp_path / f"{option} {number}").write_bytes(noise(MIB))
            exceeds(monitoring, ended)
        assert monitoring.failure is not None
        hint = f"--quota {option}=… allows more, --quota {option}=none removes the limit"
        assert monitoring.failure.hint == hint


def spec(tmp_path: Path, *shares: Share) -> VmSpec:
    return VmSpec(arch="amd64", disk=None, console=tmp_path / "console", shares=shares)


def test_the_shares_that_are_monitored(tmp_path: Path) -> None:
    """Those that the guest may write to and that have a quota; the request share has one of its own."""
    shares = [Share("ipc", tmp_path), Share("work", tmp_path), Share("data", tmp_path, read_only=True)]
    quotas = Quotas(ipc=FolderQuota(1, 2), share=FolderQuota(None, 4))
    monitoring = monitor.monitor_for(spec(tmp_path, *shares), quotas, None)
    assert [meter.folder for meter in monitoring._meters] == [
        MonitoredFolder("request share", tmp_path, FolderQuota(1, 2), "ipc"),
        MonitoredFolder("share work", tmp_path, FolderQuota(None, 4), "share"),
    ]
    assert {frozenset(meter._owners) for meter in monitoring._meters} == {frozenset({os.geteuid()})}
    quotas = Quotas(ipc=FolderQuota(), share=FolderQuota(5))
    (meter,) = monitor.monitor_for(spec(tmp_path, *shares), quotas, Identity(4711, 4711))._meters
    assert meter.folder.name == "share work"
    assert meter._owners == {os.geteuid(), 4711}


def test_the_machine_is_killed_with_its_group(tmp_path: Path) -> None:
    """What QEMU's own output takes counts as its disk."""
    stderr = tmp_path / "stderr"
    stderr.write_bytes(noise(4 * MIB))
    trimmed = threading.Event()
    command = ["/bin/sh", "-c", "sleep 60 & wait"]
    with subprocess.Popen(command, start_new_session=True) as child:
        monitoring = UsageMonitor([])
        with monitor.monitored(monitoring, spec(tmp_path), 2 * MIB, child, stderr, trimmed.set):
            assert trimmed.wait(HANG)
            time.sleep(0.1)
            assert child.poll() is None, "what was there before does not count"
            stderr.write_bytes(noise(8 * MIB))
            assert child.wait(HANG) == -9
        with pytest.raises(QuotaError, match=r"the guest wrote .* to its disk, and may add 2 MiB"):
            monitoring.check()
    deadline = time.monotonic() + HANG
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(child.pid, 0)
            time.sleep(0.01)
    assert time.monotonic() < deadline, "a process that the machine started goes with it"


def test_pauses() -> None:
    """A twentieth of a processor, or a quarter of the time that passes while the filesystem is waited for."""
    assert monitor._pause(1.0, 1.0) == pytest.approx(20.0)
    assert monitor._pause(0.0, 1.0) == pytest.approx(3.0)


def test_all_time_goes_to_a_folder_whose_disk_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_free", lambda _: (100, 100))
    (meter,) = UsageMonitor([MonitoredFolder("share", tmp_path, FolderQuota(10), "share")])._meters
    urgent = {}
    for free in (100, 90, 89):
        monkeypatch.setattr(usage, "_free", lambda _, free=free: (free, 100))
        urgent[free] = meter.urgent
    assert urgent == {100: False, 90: False, 89: True}
    (unlimited,) = UsageMonitor([MonitoredFolder("share", tmp_path, FolderQuota(), "share")])._meters
    monkeypatch.setattr(usage, "_free", lambda _: (0, 100))
    assert not unlimited.urgent
    monkeypatch.setattr(monitor, "FIRST_SCAN_TIMEOUT", 0)
    (unknown,) = UsageMonitor([MonitoredFolder("share", tmp_path, FolderQuota(), "share")])._meters
    assert unknown.urgent, "nothing is known before the first scan"


def test_exactly_the_quota_is_allowed(tmp_path: Path) -> None:
    (meter,) = UsageMonitor([MonitoredFolder("share", tmp_path, FolderQuota(MIB, 3), "share")])._meters
    meter._judge(MIB, 3)
    with pytest.raises(QuotaError, match="the guest added 2 MiB to the share"):
        meter._judge(MIB + 1, 3)
    with pytest.raises(QuotaError, match=r"the guest added 4 files to the share .* and may add 3"):
        meter._judge(MIB, 4)
    meter._interrupted = 9
    meter._judge(0, 0)
    meter._interrupted = 10
    with pytest.raises(QuotaError, match="cannot be measured: the guest moves its folders all the time"):
        meter._judge(0, 0)


def test_exactly_the_quota_of_the_disk_is_allowed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    check = disk_check(8192, list, [image])
    image.write_bytes(noise(8192))
    with image.open("r+b") as sink:
        os.fsync(sink.fileno())
    need("blocks of 4096 bytes", image.stat().st_blocks == 16)
    check()
    with image.open("ab") as sink:
        sink.write(b"x")
        os.fsync(sink.fileno())
    with pytest.raises(QuotaError, match="the guest wrote 1 MiB to its disk, and may add 1 MiB"):
        check()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")
def test_files_in_memory_are_not_on_the_disk() -> None:
    """QEMU has such files, too: they take none of the disk, and the guest's memory is no quota's business."""
    before = unlinked_bytes([os.getpid()])
    descriptor = os.memfd_create("not a disk")
    os.write(descriptor, noise(MIB))
    assert os.fstat(descriptor).st_blocks > 0
    assert unlinked_bytes([os.getpid()]) == before
    os.close(descriptor)


def test_a_file_that_two_processes_have_open_counts_once(tmp_path: Path) -> None:
    need("/proc", Path("/proc/self/fd").is_dir())
    with tempfile.TemporaryFile(dir=tmp_path) as sink:
        sink.write(noise(MIB))
        sink.flush()
        once = unlinked_bytes([os.getpid()])
        again = os.dup(sink.fileno())
        assert unlinked_bytes([os.getpid(), os.getpid()]) == once
        os.close(again)


def written(path: Path, size: int) -> int:
    """Write so many bytes, and return how many they are on the disk."""
    with path.open("wb") as sink:
        sink.write(noise(size))
        sink.flush()
        os.fsync(sink.fileno())
    return path.stat().st_blocks * 512


def test_a_file_that_shrinks_makes_no_room_for_others_and_takes_none(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    written(one, 64 << 10)
    other.touch()
    limit = 32 << 10
    check = disk_check(limit, list, [one, other])
    one.write_bytes(b"")
    need("blocks of 4096 bytes", written(other, limit) == limit)
    check()
    written(other, limit + 1)
    with pytest.raises(QuotaError, match="the guest wrote 1 MiB to its disk"):
        check()


def test_a_file_that_appears_counts_as_a_whole(tmp_path: Path) -> None:
    image = tmp_path / "image"
    exact, less = (disk_check(limit, list, [image]) for limit in (8192, 8191))
    need("blocks of 4096 bytes", written(image, 8192) == 8192)
    exact()
    with pytest.raises(QuotaError, match="to its disk"):
        less()


# ---- a folder's meter, scan by scan ----------------------------------------------------------------------------------

FREE = (1 << 40, 1 << 20)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list whose last entry is what the disk has room for: bytes and files."""
    room = [FREE]
    monkeypatch.setattr(usage, "_free", lambda _: room[-1])
    return room


def metered(path: Path, limit: FolderQuota, *, seen: bool = True) -> FolderMeter:
    """Return the meter of a folder that was scanned before the start, or was not."""
    meter = FolderMeter(MonitoredFolder("share", path, limit, "share"), {os.geteuid()})
    meter.scan_before_start(time.monotonic() + (HANG if seen else 0))
    return meter


def scanned(meter: FolderMeter) -> int:
    """Scan the folder once, now. Return how many slices that took."""
    meter._due, slices = 0.0, 1
    assert meter.advance() is True
    while meter._scan is not None:
        assert meter.advance() is True
        slices += 1
    return slices


def test_a_scan_is_due_an_interval_after_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL", 1000.0)
    meter = metered(tmp_path, FolderQuota())
    assert meter.advance() is False
    assert time.monotonic() + 900 < meter._due < time.monotonic() + 1001
    assert scanned(meter) == 1
    assert meter.advance() is False


def test_a_scan_before_the_start_that_has_no_time(tmp_path: Path) -> None:
    meter = metered(tmp_path, FolderQuota(), seen=False)
    assert meter.urgent is True
    assert scanned(meter) == 1
    assert meter.urgent is False


@pytest.mark.parametrize(("files", "slices"), [(0, 1), (9, 1), (10, 2), (25, 3)])
def test_a_slice_has_a_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, slices: int
) -> None:
    monkeypatch.setattr(usage, "_SLICE", 10)
    for number in range(files):
        (tmp_path / str(number)).touch()
    meter = metered(tmp_path, FolderQuota(), seen=False)
    assert scanned(meter) == slices


def test_what_the_guest_added_is_counted_to_the_byte_and_the_file(tmp_path: Path, free: list[tuple[int, int]]) -> None:
    """Two names of a file are two files, whose bytes are on the disk once."""
    written(tmp_path / "before", 5000)
    size = written(tmp_path / "probe", 9000)
    (tmp_path / "probe").unlink()
    meters = [metered(tmp_path, FolderQuota(*limit)) for limit in ((size, 2), (size - 1, 2), (size, 1))]
    need("the same size twice", written(tmp_path / "file", 9000) == size)
    os.link(tmp_path / "file", tmp_path / "name")
    scanned(meters[0])
    for meter, message in ((meters[1], "the guest added 1 MiB"), (meters[2], "the guest added 2 files")):
        with pytest.raises(QuotaError, match=message):
            scanned(meter)


class Tree:
    """Stands in for a walk through a folder: what is in it, and when the newest folder that cannot be read changed."""

    def __init__(self, *entries: SimpleNamespace, newest_unread: float = float("-inf")) -> None:
        self.entries, self.newest_unread = entries, newest_unread

    def __call__(self, *_: object) -> Tree:
        return self

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self.entries)


def entry(changed: float, blocks: int = 2) -> SimpleNamespace:
    status = SimpleNamespace(st_ctime=changed, st_blocks=blocks, st_nlink=1, st_mode=0o100644)
    return SimpleNamespace(status=status)


def counted(meter: FolderMeter, monkeypatch: pytest.MonkeyPatch, tree: Tree) -> tuple[int, int]:
    """Return the bytes and files that count as added after a scan of this tree."""
    judged: list[tuple[int, int]] = []
    monkeypatch.setattr(usage, "Walk", tree)
    monkeypatch.setattr(meter, "_judge", lambda *added: judged.append(added))
    scanned(meter)
    return judged[-1]


@pytest.mark.parametrize(
    ("lost", "added"),
    [((1 << 30, 1 << 10), (6 * 512, 2)), ((1024, 1), (1024, 1)), ((0, 0), (0, 0)), ((-5, -5), (0, 0))],
)
def test_before_a_whole_scan_what_is_new_counts_as_far_as_the_disk_has_lost_room(
    lost: tuple[int, int],
    added: tuple[int, int],
    tmp_path: Path,
    free: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter = metered(tmp_path, FolderQuota(), seen=False)
    meter._started = 100.0
    free.append((FREE[0] - lost[0], FREE[1] - lost[1]))
    assert counted(meter, monkeypatch, Tree(entry(99.9), entry(100.0, 2), entry(101.0, 4))) == added
    free.append((0, 0))
    more = Tree(entry(99.9), entry(100.0, 2), entry(101.0, 4), entry(102.0, 8))
    assert counted(meter, monkeypatch, more) == (added[0] + 8 * 512, added[1] + 1), "from now on, all that is added"


@pytest.mark.parametrize(
    ("unread", "lost", "added"),
    [
        (100.0, (7000, 3), (7000, 3)),
        (100.0, (100, 1), (2 * 512, 2)),
        (99.9, (7000, 3), (2 * 512, 2)),
    ],
)
def test_folders_that_the_guest_has_closed_count_as_what_the_disk_has_lost(
    unread: float,
    lost: tuple[int, int],
    added: tuple[int, int],
    tmp_path: Path,
    free: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If that is more than what can be seen, and if they were closed since the start."""
    meter = metered(tmp_path, FolderQuota())
    meter._started = 100.0
    assert counted(meter, monkeypatch, Tree()) == (0, 0)
    free.append((FREE[0] - lost[0], FREE[1] - lost[1]))
    tree = Tree(entry(101.0, 1), entry(101.0, 1), newest_unread=unread)
    assert counted(meter, monkeypatch, tree) == added


def test_ten_scans_in_a_row_may_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Moving(Tree):
        def __iter__(self) -> Iterator[SimpleNamespace]:
            raise OSError("was moved while it was read")

    meter = metered(tmp_path, FolderQuota())
    monkeypatch.setattr(usage, "Walk", Moving())
    for _ in range(9):
        scanned(meter)
    monkeypatch.setattr(usage, "Walk", Tree())
    scanned(meter)
    monkeypatch.setattr(usage, "Walk", Moving())
    for _ in range(9):
        scanned(meter)
    with pytest.raises(QuotaError, match="the guest moves its folders all the time"):
        scanned(meter)


def test_the_room_of_a_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, not in blocks (statvfs(3)), and with what is reserved for root, as that can be taken as well."""
    status = SimpleNamespace(f_bfree=10, f_bavail=5, f_frsize=4096, f_bsize=1, f_ffree=7, f_favail=6)
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    assert usage._free(Path("/")) == (40960, 7)


def test_a_pipe_in_place_of_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    """A folder that a guest can exchange is itself in a folder that it may write to."""
    top = tmp_path / "top"
    top.mkdir()
    meters = [metered(top, FolderQuota(MIB)) for _ in range(2)]
    top.rmdir()
    os.mkfifo(top)
    for meter in meters:
        meter._due = 0.0
    with pytest.raises(NotADirectoryError):
        meters[0].advance()
    assert monitor._advance(meters[1]) is False, "as if it were gone"


def test_scans_leave_no_descriptor_open(tmp_path: Path) -> None:
    need("/proc", Path("/proc/self/fd").is_dir())
    meter = metered(tmp_path, FolderQuota())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    for _ in range(3):
        scanned(meter)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# ---- the monitor's thread --------------------------------------------------------------------------------------------


def test_the_thread_ends_with_the_block_and_never_keeps_the_program(tmp_path: Path) -> None:
    """What it does when the block ends is finished before the machine's files go."""
    begun, done = threading.Event(), threading.Event()
    monitoring = UsageMonitor([])

    def check_disk() -> None:
        begun.set()
        monitoring._stop.wait(HANG)
        time.sleep(0.02)
        done.set()

    with monitoring.running(check_disk, lambda: None) as same:
        assert same is monitoring
        assert begun.wait(HANG)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "imgkit-quotas")
        assert thread.daemon, "a filesystem may never answer"
    assert done.is_set()
    assert not thread.is_alive()


class Pauses(threading.Event):
    """Notes for how long it is waited for, and is set after so many times."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.seen: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seen.append(timeout)
        return len(self.seen) > self.number


@dataclass
class Busy:
    """A meter that always has something to do, or never."""

    busy: bool = True
    urgent: bool = False

    def advance(self) -> bool:
        return self.busy


@pytest.mark.parametrize(
    ("meters", "pause"),
    [
        ([], None),
        ([Busy(busy=False, urgent=True)], None),
        ([Busy()], 7.0),
        ([Busy(), Busy(busy=False, urgent=True)], 7.0),
        ([Busy(), Busy(urgent=True)], 0.0),
    ],
)
def test_pauses_between_slices(meters: list[Any], pause: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """None if a meter that is urgent has something to do; most of an interval passes if no meter has."""
    measured: list[tuple[float, float]] = []
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock) / 2)
    monkeypatch.setattr(monitor, "_pause", lambda *seconds: measured.append(seconds) or 7.0)  # type: ignore[func-returns-value]
    monkeypatch.setattr(usage, "INTERVAL", 1000.0)
    monitoring = UsageMonitor([])
    stop = Pauses(3)
    monitoring._meters, monitoring._stop = meters, stop
    checks: list[str] = []
    monitoring._check_disk = lambda: checks.append("disk")
    monitoring._trim_console = lambda: checks.append("console")
    monitoring._run()
    first, *rest = stop.seen
    assert first == 0.0
    if pause is None:
        assert all(each is not None and 0 < each < 1000.0 for each in rest)
    else:
        assert rest == [pause] * 3
    assert checks == ["disk", "console"], "once in an interval"
    for processor_time, elapsed in measured:
        assert processor_time == 0.5
        assert 0 <= elapsed < HANG
    assert len(measured) == (3 if pause == 7.0 else 0)


def test_a_disk_that_cannot_be_measured_for_a_moment_ends_nothing() -> None:
    """Files of the process may go while they are looked at. The console is still kept short then."""
    trimmed: list[bool] = []

    def gone() -> None:
        raise FileNotFoundError

    monitoring = UsageMonitor([])
    monitoring._check_disk, monitoring._trim_console = gone, lambda: trimmed.append(True)
    monitoring._stop = Pauses(1)
    monitoring._run()
    assert trimmed == [True]
    monitoring.check()


def test_any_other_failure_is_named_and_ends_the_machine() -> None:
    ended: list[bool] = []
    monitoring = UsageMonitor([])

    def fail() -> None:
        raise KeyError("key")

    monitoring._end = lambda: ended.append(True)
    monitoring._check_disk = fail
    monitoring._stop = Pauses(5)
    monitoring._run()
    assert ended == [True]
    with pytest.raises(QuotaError, match=r"^the quotas cannot be measured: 'key'$"):
        monitoring.check()


@pytest.mark.parametrize("writable", [False, True])
def test_a_writable_image_is_part_of_the_disk(tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Sequence[Path]] = []
    monkeypatch.setattr(monitor, "disk_check", lambda _limit, _processes, files: measured.append(files))
    machine = replace(spec(tmp_path), disk=Disk(tmp_path / "image", writable=writable))
    child, stderr = cast("subprocess.Popen[bytes]", SimpleNamespace(poll=lambda: 0, pid=0)), tmp_path / "stderr"
    with monitor.monitored(UsageMonitor([]), machine, None, child, stderr):
        assert measured == [[stderr, tmp_path / "image"] if writable else [stderr]]


def test_a_process_that_has_ended_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another process's by now."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *signalled: killed.append(signalled))
    for status in (0, None):
        child = cast("subprocess.Popen[bytes]", SimpleNamespace(poll=lambda status=status: status, pid=4711))
        monitoring = UsageMonitor([])
        with monitor.monitored(monitoring, spec(tmp_path), None, child, tmp_path / "stderr"):
            monitoring._end()
    assert killed == [(4711, 9)]


# ---- what is allowed by default --------------------------------------------------------------------------------------


def test_the_default_quotas() -> None:
    """docs/reference/limits.md."""
    assert parse([]) == Quotas(FolderQuota(2147483648, 10000), FolderQuota(68719476736, 2000000), 68719476736, None)
