"""What monitors the quotas of a machine: its thread, its pauses, and how the machine is ended."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.vm.failures import QuotaError
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import monitor, usage
from imgkit.vm.shares.monitor import UsageMonitor
from imgkit.vm.shares.quotas import FolderQuota, Quotas
from imgkit.vm.shares.usage import MonitoredFolder
from tests.files import noise
from tests.quotafolders import (
    HANG,
    quickly,  # noqa: F401 - an autouse fixture
)

MIB = 1 << 20


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


@pytest.mark.slow
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
