"""Locks between processes: who gets one, who waits, and that the dead hold none."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.host import locks

HOLDER = """
import sys, time
from pathlib import Path
from imgkit.host import locks
with locks.locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path, kind: str = "alone") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of ``path``."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path, kind], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"locked\n"
            yield child
        finally:
            child.kill()


def test_nobody_else_gets_a_lock_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path):
        for shared in (False, True):
            start = time.monotonic()
            with pytest.raises(BlockingIOError):
                locks.lock_file(path, shared=shared, timeout=0.2)
            assert 0.2 <= time.monotonic() - start < 5
    with locks.locked(path, timeout=5):
        assert path.exists(), "the file stays: whoever comes later locks the same one"


def test_a_shared_lock_is_held_by_several_and_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, "shared"):
        os.close(locks.lock_file(path, shared=True, timeout=0))
        with pytest.raises(BlockingIOError):
            locks.lock_file(path, timeout=0)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
        with locks.locked(path, timeout=0):
            pass


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_whoever_waits_gets_the_lock_when_it_is_given_back(tmp_path: Path, timeout: float | None) -> None:
    path = tmp_path / "lock"
    with holder(path) as child:
        timer = threading.Timer(0.2, child.kill)
        timer.start()
        with locks.locked(path, timeout=timeout):
            assert timer.finished.is_set()


def test_a_lock_that_cannot_be_had_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(BlockingIOError):
            locks.lock_file(path, timeout=0)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_can_be_its_own_lock(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
    locks.acquire(first, timeout=0)
    with pytest.raises(BlockingIOError):
        locks.acquire(second, timeout=0)
    os.close(first)
    locks.acquire(second, timeout=0)
    os.close(second)
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_locks_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        locks.lock_file(tmp_path / "lock", timeout=60)


def test_locks_are_for_this_user_and_not_for_programs_that_are_started(tmp_path: Path) -> None:
    descriptor = locks.lock_file(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(("timeout", "attempts"), [(0, 1), (0.03, 3), (0.04, 3)])
def test_how_often_a_lock_is_asked_for(
    timeout: float, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 20 ms until the time is up, and once at the end of it. The clock is one that only sleeping moves."""
    clock, asked = [100.0], []

    def flock(_descriptor: int, kind: int) -> None:
        asked.append(kind)
        raise BlockingIOError

    def sleep(seconds: float) -> None:
        clock[0] = round(clock[0] + seconds, 6)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(BlockingIOError):
        locks.acquire(0, timeout=timeout)
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB] * attempts


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, fcntl.LOCK_EX),
        ({"shared": True}, fcntl.LOCK_SH),
        ({"timeout": 5}, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ({"shared": True, "timeout": 5}, fcntl.LOCK_SH | fcntl.LOCK_NB),
    ],
)
def test_which_lock_is_asked_for(
    options: dict[str, bool], kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(fcntl, "flock", lambda _descriptor, kind: asked.append(kind))
    path = tmp_path / "lock"
    os.close(locks.lock_file(path, **options))
    with locks.locked(path, **options):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208
    assert asked == [kind, kind]
