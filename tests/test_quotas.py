"""Quotas of shared folders, measured on folders that the tests fill, and the end of the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.host.walk import Walk
from imgkit.vm.failures import QuotaError
from imgkit.vm.shares import monitor, usage
from imgkit.vm.shares.monitor import UsageMonitor
from imgkit.vm.shares.quotas import FolderQuota
from imgkit.vm.shares.usage import MonitoredFolder
from tests.conftest import need
from tests.files import nest, noise
from tests.quotafolders import (
    HANG,
    quickly,  # noqa: F401 - an autouse fixture
)

MIB = 1 << 20


@contextmanager
def monitored(path: Path, limit: FolderQuota) -> Iterator[tuple[UsageMonitor, threading.Event]]:
    """Monitor a folder without pauses. Yield the monitor, and an event that is set when it ends the machine."""
    ended = threading.Event()
    folder = MonitoredFolder("share work", path, limit, "share")
    monitoring = UsageMonitor([folder])
    with monitoring.running(lambda: None, ended.set):
        yield monitoring, ended


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


@pytest.mark.slow
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


@pytest.mark.slow
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
