"""Monitor the disk usage of a machine in a thread, and end the machine when it exceeds its quotas.

No system call limits the size of a folder, so the thread scans all files again and again. It may notice an excess a
second late, or, in folders of very many files, as late as one scan takes. The quotas keep a guest from filling the
host's disk; they are not exact to the byte.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen

from imgkit.vm.failures import QuotaError
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import usage
from imgkit.vm.shares.diskfiles import disk_check, process_tree
from imgkit.vm.shares.quotas import FolderQuota, Quotas
from imgkit.vm.shares.usage import FolderMeter, MonitoredFolder

PROCESSOR_SHARE = 0.05
"""Share of a processor's time that scanning takes, unless a meter is urgent."""
WORKING_SHARE = 0.25
"""Share of the time that passes while scanning, unless a meter is urgent: a network filesystem makes the thread wait,
and has other users."""
FIRST_SCAN_TIMEOUT = 2.0
"""Seconds for scanning all folders before the machine is started."""
_JOIN_TIMEOUT = 5.0  # seconds for the thread to end


def _nothing() -> None:
    """Do nothing."""


class UsageMonitor:
    """A thread that measures what a machine adds to folders and to its disk, and ends it when that is too much.

    Attributes:
        failure: why the machine was ended, or None.
    """

    def __init__(self, folders: Sequence[MonitoredFolder], owners: Collection[int] = ()) -> None:
        """Scan the folders for up to :data:`FIRST_SCAN_TIMEOUT` seconds, before the machine is started.

        What is in the folders then does not count. What was not scanned in time is told from what the guest adds by its
        time of change and by the space that the disk has lost.

        Args:
            folders: the folders that have quotas.
            owners: uids, besides that of this process, in whose unreadable folders the guest may hide files.
        """
        self.failure: QuotaError | None = None
        deadline = time.monotonic() + FIRST_SCAN_TIMEOUT
        self._meters = [FolderMeter(folder, {os.geteuid(), *owners}) for folder in folders]
        for meter in self._meters:
            meter.scan_before_start(deadline)
        self._check_disk: Callable[[], None] = _nothing
        self._trim_console: Callable[[], None] = _nothing
        self._end: Callable[[], None] = _nothing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imgkit-quotas", daemon=True)

    @contextmanager
    def running(
        self, check_disk: Callable[[], None], end: Callable[[], None], trim_console: Callable[[], None] = _nothing
    ) -> Iterator[UsageMonitor]:
        """Measure during the block, in which the machine runs.

        Args:
            check_disk: raises QuotaError when the machine has written too much to its disk.
            end: ends the machine.
            trim_console: keeps the file of the machine's console short.
        """
        self._check_disk, self._end, self._trim_console = check_disk, end, trim_console
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(_JOIN_TIMEOUT)  # a filesystem may not answer, which must not delay the end for ever

    def check(self) -> None:
        """Raise the QuotaError for which the machine was ended, if it was."""
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        due = pause = 0.0
        while not self._stop.wait(pause):
            processor_begin, begin = time.thread_time(), time.monotonic()
            try:
                busy = [meter for meter in self._meters if _advance(meter)]
                if time.monotonic() >= due:
                    due = time.monotonic() + usage.INTERVAL
                    self._check_files()
                urgent = any(meter.urgent for meter in busy)
            except Exception as failure:  # noqa: BLE001 - a machine must not go on without its quotas
                self._fail(failure)
                return
            if urgent:
                pause = 0.0
            elif busy:
                pause = _pause(time.thread_time() - processor_begin, time.monotonic() - begin)
            else:
                pause = usage.INTERVAL / 4

    def _check_files(self) -> None:
        """Check the disk's quota and trim the console. A file or process that is gone is not an error."""
        for action in (self._check_disk, self._trim_console):
            with suppress(OSError):
                action()

    def _fail(self, failure: Exception) -> None:
        if not isinstance(failure, QuotaError):
            failure = QuotaError(f"the quotas cannot be measured: {failure}")
        self.failure = failure
        self._end()


def _advance(meter: FolderMeter) -> bool:
    """Scan a slice. Return whether there was something to do; a folder that is gone is not an error."""
    with suppress(OSError):
        return meter.advance()
    return False


def _pause(processor_time: float, elapsed: float) -> float:
    """Return the seconds to pause after scanning for ``elapsed`` seconds, of which the processor worked some."""
    return max(processor_time / PROCESSOR_SHARE, elapsed / WORKING_SHARE - elapsed)


def monitor_for(spec: VmSpec, quotas: Quotas, user: Identity | None) -> UsageMonitor:
    """Make the monitor of a machine that is about to be started.

    Args:
        spec: the machine, whose writable shares are monitored.
        quotas: the machine's quotas.
        user: the user that QEMU runs as, or None for the user of this process.
    """
    folders = []
    for share in spec.shares:
        is_ipc = share.tag == "ipc"
        limit = quotas.ipc if is_ipc else quotas.share
        if not share.read_only and limit != FolderQuota():
            name = "request share" if is_ipc else f"share {share.tag}"
            folders.append(MonitoredFolder(name, share.path, limit, "ipc" if is_ipc else "share"))
    return UsageMonitor(folders, () if user is None else (user.uid,))


@contextmanager
def monitored(
    monitor: UsageMonitor,
    spec: VmSpec,
    disk_limit: int | None,
    child: Popen[bytes],
    stderr: Path,
    trim_console: Callable[[], None] = _nothing,
) -> Iterator[UsageMonitor]:
    """Measure during the block.

    Args:
        monitor: the machine's monitor.
        spec: the machine.
        disk_limit: bytes that the guest may change on its disk; None for no limit.
        child: the machine's process.
        stderr: the file of the process's standard error, which counts as part of the disk.
        trim_console: keeps the file of the machine's console short.
    """
    files = [stderr] + ([spec.disk.path] if spec.disk is not None and spec.disk.writable else [])

    def end() -> None:
        if child.poll() is None:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)

    with monitor.running(disk_check(disk_limit, lambda: process_tree(child.pid), files), end, trim_console):
        yield monitor
