"""A thread that measures what a machine takes of the host's disk, and ends it when that is more than its quotas.

No system call limits a folder. So the thread looks at all files again and again: it may be late by a second or, for
folders of very many files, by as long as one look takes. Quotas keep a guest from filling the disk, they do not count
every byte.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from imgkit.host.walk import Walk
from imgkit.vm.failures import QuotaError
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares.quotas import FolderQuota, Quotas, format_size

INTERVAL = 1.0
"""Seconds between the end of one look at a folder and the begin of the next."""
SHARE_OF_TIME = 0.05
"""How much of a processor the measuring takes at most, as long as the host's disk does not fill up quickly."""
SHARE_OF_WAITING = 0.25
"""How much of the time it is at work at most, then: a filesystem of the network's makes it wait, and has others."""
FIRST_LOOK = 2.0
"""Seconds for a look at all folders before the machine is started."""
_SLICE = 1000  # files between two looks at the clock
_PATIENCE = 5.0  # seconds for the thread to end
_LOST = 10  # looks in a row that were cut short by folders that were moved


@dataclass(frozen=True)
class MonitoredFolder:
    """A folder with a quota; ``name`` is what messages call it, ``option`` what the command line does."""

    name: str
    path: Path
    limit: FolderQuota
    option: str


class _Meter:
    """Looks at an area again and again, a slice at a time."""

    def __init__(self, area: MonitoredFolder, owners: Collection[int]) -> None:
        self.area = area
        self._owners = owners
        self._since = float("inf")  # when the machine is started: nothing is newer before
        self._before: tuple[int, int] | None = None  # bytes and files that were there already
        self._free = _free(area.path)
        self._steps: Iterator[None] | None = None
        self._due = 0.0
        self._lost = 0

    @property
    def hurry(self) -> bool:
        """Whether to spend all time on it: the first look is not over, or the disk has lost more than the quota."""
        if self._before is None:
            return True  # what the guest changes before it is seen cannot be told from what it adds
        size = self.area.limit.size
        with suppress(OSError):
            return size is not None and self._taken()[0] > size
        return False

    def look_first(self, until: float) -> None:
        """Look, before the machine is started, at as much as can be seen ``until`` then (monotonic clock)."""
        with suppress(OSError):  # a folder that is gone: it is looked at again
            while self._before is None and time.monotonic() < until and self.advance():
                pass
        self._since, self._free = time.time(), _free(self.area.path)

    def advance(self) -> bool:
        """Look at the next slice; False while the area is to be left alone.

        Raises:
            QuotaError: the guest took too much.
        """
        if self._steps is None and time.monotonic() < self._due:
            return False
        self._steps = self._steps or self._look()
        try:
            next(self._steps)
        except StopIteration:
            self._steps, self._due = None, time.monotonic() + INTERVAL
        return True

    def _look(self) -> Iterator[None]:
        """One look at the whole area; the first one also sees what was there before."""
        size = files = new_size = new_files = 0
        seen: set[tuple[int, int]] = set()  # files of several names
        with _opened(self.area.path) as top:
            steps = Walk(top, self._owners)
            try:
                for entry in steps:
                    blocks = _blocks(entry.status, seen)
                    size, files = size + blocks, files + 1
                    if self._before is None and entry.status.st_ctime >= self._since:
                        new_size, new_files = new_size + blocks, new_files + 1
                    if files % _SLICE == 0:
                        yield
                self._lost = 0
            except OSError:
                self._lost += 1
            hidden = steps.newest_unread >= self._since
        taken = self._taken()
        # Until one look is over, who changed a byte of a big file cannot be told from who added it. But what was added
        # is lost to the disk.
        before = self._before or (size - min(new_size, taken[0]), files - min(new_files, taken[1]))
        if not self._lost:
            self._before = before
        if hidden:  # in folders that nobody may read: as much as the disk has lost
            size = max(size, before[0] + taken[0])
            files = max(files, before[1] + taken[1])
        self._judge(size - before[0], files - before[1])

    def _taken(self) -> tuple[int, int]:
        """Bytes and files that the disk has lost since the machine was started, whoever took them."""
        free = _free(self.area.path)
        return max(0, self._free[0] - free[0]), max(0, self._free[1] - free[1])

    def _judge(self, size: int, files: int) -> None:
        limit, where = self.area.limit, f"the {self.area.name} ({self.area.path})"
        if limit.size is not None and size > limit.size:
            raise _over(f"the guest added {format_size(size)} to {where}", format_size(limit.size), self.area.option)
        if limit.files is not None and files > limit.files:
            raise _over(f"the guest added {files} files to {where}", str(limit.files), f"{self.area.option}-files")
        if self._lost >= _LOST:
            raise QuotaError(f"{where} cannot be measured: the guest moves its folders all the time")


class UsageMonitor:
    """A thread that measures what a machine takes, and ends it when that is too much."""

    def __init__(self, areas: Sequence[MonitoredFolder], owners: Collection[int] = ()) -> None:
        """Made before the machine is started: what is in the folders then does not count.

        A look at them takes up to :data:`FIRST_LOOK` seconds. What was not seen by then counts from when it is.

        Args:
            areas: folders with quotas.
            owners: uids, besides this process's, whose closed folders the guest may hide something in.
        """
        self.failure: QuotaError | None = None
        until = time.monotonic() + FIRST_LOOK
        self._meters = [_Meter(area, {os.geteuid(), *owners}) for area in areas]
        for meter in self._meters:
            meter.look_first(until)
        self._disk: Callable[[], None] = lambda: None
        self._console: Callable[[], None] = lambda: None
        self._end: Callable[[], None] = lambda: None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imgkit-quotas", daemon=True)

    @contextmanager
    def running(
        self, disk: Callable[[], None], end: Callable[[], None], console: Callable[[], None] = lambda: None
    ) -> Iterator[UsageMonitor]:
        """Measure during the block, in which the machine runs.

        Args:
            disk: raises QuotaError when the machine's temporary files are too big.
            end: ends the machine.
            console: keeps the file of the console short.
        """
        self._disk, self._end, self._console = disk, end, console
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(_PATIENCE)  # a filesystem that does not answer must not hold up the end

    def check(self) -> None:
        """Raises QuotaError: the machine was ended because of it."""
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        due = pause = 0.0
        while not self._stop.wait(pause):
            began, begin = time.thread_time(), time.monotonic()
            try:
                busy = [meter for meter in self._meters if _quietly(meter.advance)]
                if time.monotonic() >= due:
                    due = time.monotonic() + INTERVAL
                    _quietly(self._disk)
                    _quietly(self._console)
                hurry = any(meter.hurry for meter in busy)
            except Exception as failure:  # noqa: BLE001 - a machine must not go on without its quotas
                self._fail(failure)
                return
            pause = _pause(time.thread_time() - began, time.monotonic() - begin) if busy else INTERVAL / 4
            if hurry:
                pause = 0.0

    def _fail(self, failure: Exception) -> None:
        if not isinstance(failure, QuotaError):
            failure = QuotaError(f"the quotas cannot be measured: {failure}")
        self.failure = failure
        self._end()


def _quietly(measure: Callable[[], bool | None]) -> bool:
    """Measure; a folder or process that is gone is nobody's fault."""
    with suppress(OSError):
        return bool(measure())
    return False


def _pause(worked: float, passed: float) -> float:
    """Seconds to leave the folders alone after so much time of the processor, and of the clock."""
    return max(worked / SHARE_OF_TIME, passed / SHARE_OF_WAITING - passed)


def monitor_for(spec: VmSpec, quotas: Quotas, user: Identity | None) -> UsageMonitor:
    """The watcher of a machine that is about to be started, as ``user`` or as this process's own."""
    areas = []
    for share in spec.shares:
        limit = quotas.ipc if share.tag == "ipc" else quotas.share
        if not share.read_only and limit != FolderQuota():
            name = "request share" if share.tag == "ipc" else f"share {share.tag}"
            areas.append(MonitoredFolder(name, share.path, limit, "ipc" if share.tag == "ipc" else "share"))
    return UsageMonitor(areas, () if user is None else (user.uid,))


@contextmanager
def monitored(
    watcher: UsageMonitor,
    spec: VmSpec,
    limit: int | None,
    child: Popen[bytes],
    stderr: Path,
    console: Callable[[], None] = lambda: None,
) -> Iterator[UsageMonitor]:
    """Measure during the block.

    Args:
        limit: bytes that the guest may change on its disk, None for any number.
        child: the machine's process.
        stderr: the file of its standard error.
        console: keeps the file of its console short.
    """
    files = [stderr] + ([spec.disk.path] if spec.disk is not None and spec.disk.writable else [])

    def end() -> None:
        if child.poll() is None:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)

    with watcher.running(disk_check(limit, lambda: process_tree(child.pid), files), end, console):
        yield watcher


def disk_check(limit: int | None, processes: Callable[[], Sequence[int]], files: Sequence[Path]) -> Callable[[], None]:
    """A function that raises QuotaError when the temporary files of ``processes``, and ``files``, grew too big."""
    before = {path: _size_of(path) for path in files}

    def check() -> None:
        if limit is None:
            return
        size = unlinked_bytes(processes()) + sum(max(0, _size_of(path) - old) for path, old in before.items())
        if size > limit:
            raise _over(f"the guest wrote {format_size(size)} to its disk", format_size(limit), "disk")

    return check


def unlinked_bytes(processes: Sequence[int]) -> int:
    """Bytes of the files without a name that processes have open: QEMU's ``snapshot=on`` (proc(5), Linux only)."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in processes:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names are all that is wanted
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116 - hot
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and not _is_memory(pid, name):
                        sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _is_memory(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:")  # noqa: PTH115


def process_tree(pid: int) -> list[int]:
    """A process and all that descend from it (Linux; elsewhere the process alone): QEMU may be run by a sandbox."""
    members = [pid]
    for member in members:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                members += [int(word) for word in (task / "children").read_text().split()]
    return members


def _over(what: str, limit: str, option: str) -> QuotaError:
    return QuotaError(f"{what}, and may add {limit}", hint=f"--quota {option}=… allows more, --quota {option}=none all")


def _blocks(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    """Bytes that a file takes on the disk, the first time that it is seen."""
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        identity = status.st_dev, status.st_ino
        if identity in seen:
            return 0
        seen.add(identity)
    return status.st_blocks * 512


def _free(path: Path) -> tuple[int, int]:
    """Bytes and files that the filesystem of ``path`` has room for."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize, status.f_ffree


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
