"""Measure what a guest adds to a folder, by scanning the folder again and again.

A scan may take longer than a machine lives, so it is done in slices (:meth:`FolderMeter.advance`). What was in the
folder when the machine started does not count.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.host.walk import Walk
from imgkit.vm.failures import QuotaError
from imgkit.vm.shares.quotas import FolderQuota, exceeded, format_size

INTERVAL = 1.0
"""Seconds between the end of a scan of a folder and the start of the next."""
_SLICE = 1000  # files between two looks at the clock
_MAX_INTERRUPTED = 10  # scans in a row that may be interrupted because folders were moved


@dataclass(frozen=True)
class MonitoredFolder:
    """A folder with a quota.

    Attributes:
        name: what messages call the folder.
        path: the folder.
        limit: what the guest may add to it.
        option: name of the quota in the argument of ``--quota``.
    """

    name: str
    path: Path
    limit: FolderQuota
    option: str


class FolderMeter:
    """Scans a folder repeatedly, one slice at a time, and compares what was added with the folder's quota."""

    def __init__(self, folder: MonitoredFolder, owners: Collection[int]) -> None:
        """Prepare to measure ``folder``. The guest may hide files in unreadable folders of the uids ``owners``."""
        self.folder = folder
        self._owners = owners
        self._started = float("inf")  # Unix time of the start of the machine; nothing is newer before
        self._baseline: tuple[int, int] | None = None  # bytes and files that do not count, known after a whole scan
        self._free_at_start = _free(folder.path)
        self._scan: Iterator[None] | None = None
        self._due = 0.0  # monotonic time of the next scan
        self._interrupted = 0

    @property
    def urgent(self) -> bool:
        """Whether all time should be spent on this folder.

        This is so before the first scan is complete, because until then a changed file cannot be told from an added
        one, and when the disk has lost more space than the quota allows.
        """
        if self._baseline is None:
            return True
        size = self.folder.limit.size
        with suppress(OSError):
            return size is not None and self._lost_space()[0] > size
        return False

    def scan_before_start(self, deadline: float) -> None:
        """Scan what can be scanned until ``deadline`` (monotonic clock), and note that the machine starts now."""
        with suppress(OSError):  # the folder is gone; later scans will see whether it comes back
            while self._baseline is None and time.monotonic() < deadline and self.advance():
                pass
        self._started, self._free_at_start = time.time(), _free(self.folder.path)

    def advance(self) -> bool:
        """Scan the next slice. Return False if no scan is due yet.

        Raises:
            QuotaError: the guest exceeded the folder's quota, or prevents it from being measured.
            OSError: the folder is gone.
        """
        if self._scan is None and time.monotonic() < self._due:
            return False
        self._scan = self._scan or self._scan_once()
        try:
            next(self._scan)
        except StopIteration:
            self._scan, self._due = None, time.monotonic() + INTERVAL
        return True

    def _scan_once(self) -> Iterator[None]:
        """Scan the whole folder and judge the result. The first complete scan determines the baseline, too."""
        size = files = new_size = new_files = 0
        seen: set[tuple[int, int]] = set()  # device and inode of files with several names
        with _opened(self.folder.path) as top:
            walk = Walk(top, self._owners)
            try:
                for entry in walk:
                    blocks = _bytes_on_disk(entry.status, seen)
                    size, files = size + blocks, files + 1
                    if self._baseline is None and entry.status.st_ctime >= self._started:
                        new_size, new_files = new_size + blocks, new_files + 1
                    if files % _SLICE == 0:
                        yield
                self._interrupted = 0
            except OSError:
                self._interrupted += 1
            hidden = walk.newest_unread >= self._started
        lost = self._lost_space()
        # Before one scan is complete, a big file that the guest changed cannot be told from one that it added. But the
        # disk has lost the space of what was added, so not more than that counts as added.
        baseline = self._baseline or (size - min(new_size, lost[0]), files - min(new_files, lost[1]))
        if not self._interrupted:
            self._baseline = baseline
        if hidden:  # folders that cannot be read count as much as the disk has lost
            size = max(size, baseline[0] + lost[0])
            files = max(files, baseline[1] + lost[1])
        self._judge(size - baseline[0], files - baseline[1])

    def _lost_space(self) -> tuple[int, int]:
        """Return the bytes and files that the filesystem has lost since the start, including those of other users."""
        size, files = _free(self.folder.path)
        return max(0, self._free_at_start[0] - size), max(0, self._free_at_start[1] - files)

    def _judge(self, size: int, files: int) -> None:
        limit, option = self.folder.limit, self.folder.option
        title = f"the {self.folder.name} ({self.folder.path})"
        if limit.size is not None and size > limit.size:
            raise exceeded(f"the guest added {format_size(size)} to {title}", format_size(limit.size), option)
        if limit.files is not None and files > limit.files:
            raise exceeded(f"the guest added {files} files to {title}", str(limit.files), f"{option}-files")
        if self._interrupted >= _MAX_INTERRUPTED:
            raise QuotaError(f"{title} cannot be measured: the guest moves its folders all the time")


def _bytes_on_disk(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    """Return the bytes that a file takes on the disk; 0 if another name of the same file was counted before."""
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        identity = status.st_dev, status.st_ino
        if identity in seen:
            return 0
        seen.add(identity)
    return status.st_blocks * 512


def _free(path: Path) -> tuple[int, int]:
    """Return the number of bytes, and of files, for which the filesystem of ``path`` has room."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize, status.f_ffree


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
