"""What a machine's files take of the host's disk, and the quota of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from imgkit.vm.failures import QuotaError
from imgkit.vm.shares.diskfiles import disk_check, process_tree, unlinked_bytes
from tests.conftest import need
from tests.files import noise
from tests.quotafolders import HANG, written

MIB = 1 << 20


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
