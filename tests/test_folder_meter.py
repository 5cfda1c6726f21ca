"""The meter of a folder that a guest writes to, scan by scan."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgkit.vm.failures import QuotaError
from imgkit.vm.shares import monitor, usage
from imgkit.vm.shares.monitor import UsageMonitor
from imgkit.vm.shares.quotas import FolderQuota
from imgkit.vm.shares.usage import FolderMeter, MonitoredFolder
from tests.conftest import need
from tests.quotafolders import (
    HANG,
    quickly,  # noqa: F401 - an autouse fixture
    written,
)

MIB = 1 << 20


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
