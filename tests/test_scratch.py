"""Scratch folders in a place where other users make what they like, and what dead processes left there."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError
from imgkit.host import locks, process, scratch, walk
from imgkit.vm.qemu.privatefolder import private_folder
from tests.conftest import need, need_program
from tests.files import nest, nested

DEAD = "imgkit-1-0123abcd"


def test_folders_of_other_users_stay(tmp_path: Path) -> None:
    need("root", os.geteuid() == 0)
    foreign, own = tmp_path / DEAD, tmp_path / "imgkit-2-0123abcd"
    for folder in (foreign, own):
        folder.mkdir()
        (folder / "file").touch()
    os.chown(foreign, 12345, 12345)
    with scratch.folder(tmp_path):
        assert (foreign / "file").exists()
        assert not own.exists()


def test_a_name_that_somebody_else_took_since_then_is_theirs(tmp_path: Path) -> None:
    need("root", os.geteuid() == 0)
    with scratch.folder(tmp_path) as folder:
        pass
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    scratch.remove_all()
    assert folder.exists()


def test_a_link_of_the_name_of_a_dead_folder_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").touch()
    (tmp_path / DEAD).symlink_to(target)
    (tmp_path / "imgkit-2-0123abcd").touch()
    with scratch.folder(tmp_path):
        assert (target / "file").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"target", DEAD, "imgkit-2-0123abcd"}


def test_whoever_holds_the_lock_of_the_place_holds_nobody_up(tmp_path: Path) -> None:
    """Every user may lock /tmp. Nothing waits for the lock, and folders of dead processes are still removed."""
    (tmp_path / DEAD).mkdir()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        started = time.monotonic()
        for _ in range(5):
            with scratch.folder(tmp_path):
                assert not (tmp_path / DEAD).exists()
        assert time.monotonic() - started < 5
    finally:
        os.close(descriptor)


def test_a_name_that_is_there_already_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["00000000", "00000000", "00000001"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(tokens))
    with scratch.folder(tmp_path) as first, scratch.folder(tmp_path) as second:
        assert first != second


def test_a_new_folder_that_another_process_took_for_a_dead_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the making and the locking, as nobody may hold the lock of the place."""
    claim = scratch._claim
    taken: list[Path] = []

    def late(path: Path) -> int | None:
        if not taken:
            taken.append(path)
            path.rmdir()
        return claim(path)

    monkeypatch.setattr(scratch, "_claim", late)
    with scratch.folder(tmp_path) as folder:
        assert folder.is_dir()
        assert folder not in taken
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_that_is_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"No such file|Not a directory"), scratch.folder(tmp_path / place):
        pass


@pytest.mark.slow
def test_a_machines_folder_goes_however_deep_the_guests_tree_is() -> None:
    with private_folder() as folder:
        nest(folder, 1_300)
    assert not folder.exists()


@pytest.mark.slow
def test_what_a_killed_process_left_of_a_machine_goes_at_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its reaper was killed, too, as at the end of a container."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left = tmp_path / "imgkit-vm-1-0123abcd"
    with nested(left, 1_300), private_folder() as living, private_folder() as folder:
        assert living.exists()
        assert not left.exists()
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


STUCK = """
import logging, subprocess, sys, time
from imgkit.host import scratch
from imgkit.vm.qemu.privatefolder import private_folder
logging.basicConfig()
with private_folder() as folder:
    (folder / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "mount"], check=True)
    start = time.monotonic()
scratch.remove_all()
print(time.monotonic() - start)
"""


@pytest.mark.slow
def test_what_cannot_be_removed_is_said_once(tmp_path: Path) -> None:
    """A mount stays, and what it is in. It is waited for once."""
    prefix = [need_program("unshare"), "--map-root-user", "--mount"]
    (tmp_path / "probe").mkdir()
    probe = subprocess.run([*prefix, "mount", "-t", "tmpfs", "none", tmp_path / "probe"], capture_output=True)
    need("mounts in a namespace", probe.returncode == 0)
    argv = [*prefix, sys.executable, "-c", STUCK]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("could not be removed") == 1
    assert float(done.stdout) < 2 * scratch._REMOVAL_TIMEOUT


@pytest.mark.slow
def test_the_folder_of_a_process_that_is_killed_goes_with_it(tmp_path: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom imgkit.vm.qemu.privatefolder import private_folder\n"
        "from tests.files import nest\n"
        "with private_folder() as folder:\n nest(folder, 1300)\n print(folder, flush=True)\n time.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().decode().strip())
        assert folder.is_dir()
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = list(tmp_path.iterdir())
    walk.remove(folder)  # pytest could not
    assert left == []


# ---- one step at a time ----------------------------------------------------------------------------------------------


def test_a_scratch_folder_is_for_this_user_and_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch.folder() as folder:
        assert folder.parent == tmp_path
        assert re.fullmatch(rf"imgkit-{os.getpid()}-[0-9a-f]{{8}}", folder.name)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder in scratch._folders
        (folder / "file").touch()
    assert not folder.exists()
    assert folder not in scratch._folders
    monkeypatch.chdir(tmp_path)
    with scratch.folder(Path(), ".x-") as folder:
        assert folder.is_absolute()
        assert folder.name.startswith(".x-")
    with pytest.raises(ZeroDivisionError), scratch.folder(tmp_path) as folder:
        raise ZeroDivisionError
    assert not folder.exists()


def test_a_scratch_folder_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / DEAD).mkdir()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    with scratch.folder(tmp_path), scratch.alone(tmp_path):
        assert len(os.listdir("/proc/self/fd")) == len(before) + 2, "two locks"  # noqa: PTH208
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("name", ["imgkit-1-0123abc", "imgkit-1-0123abcd5", "imgkit-x-0123abcd", "Ximgkit-1-0123abcd"])
def test_folders_with_other_names_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with scratch.folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_prefix_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "xx-1-0123abcd").mkdir()
    (tmp_path / "x.-1-0123abcd").mkdir()
    with scratch.folder(tmp_path, "x.-"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["xx-1-0123abcd"]


def test_a_folder_of_a_dead_process_is_said_to_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgkit")
    (tmp_path / DEAD).mkdir()
    with scratch.folder(tmp_path):
        pass
    assert caplog.messages == [f"{tmp_path / DEAD}: left by a process that was killed, removed"]


def test_ten_names_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def mkdir(path: Path, mode: int) -> None:
        tried.append(path)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(FileExistsError) as caught, scratch.folder(tmp_path):
        pass
    assert len(tried) == 10
    assert caught.value.filename == f"{tmp_path}/imgkit-*"
    assert caught.value.strerror == "File exists"
    assert not set(tried) & set(scratch._folders)


def test_a_disk_that_takes_no_folder_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def mkdir(path: Path, mode: int) -> None:
        tried.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OSError, match="No space left"), scratch.folder(tmp_path):
        pass
    assert len(tried) == 1
    assert not set(tried) & set(scratch._folders)


def test_a_filesystem_without_locks_has_scratch_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, **_options: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks, "acquire", refuse)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with scratch.folder(tmp_path) as folder, scratch.alone(tmp_path) as locked:
        assert folder.is_dir()
        assert locked is False
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not folder.exists()


def test_the_lock_of_a_place_is_held_for_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_LOCK_TIMEOUT", 0.0)
    with scratch.alone(tmp_path) as first:
        assert first is True
        with scratch.alone(tmp_path) as second:
            assert second is False
    with scratch.alone(tmp_path) as again:
        assert again is True
    with scratch.alone(tmp_path / "missing") as none:
        assert none is False


def test_the_lock_of_a_place_is_waited_for_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(locks, "acquire", lambda descriptor, *, timeout: waited.append(timeout))
    with scratch.alone(tmp_path):
        pass
    assert waited == [2.0]


def test_parents_are_made_and_removed_if_they_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with scratch.parents(Path("a/b/c")):
        assert (tmp_path / "a/b/c").is_dir()
        assert [path.name for path in scratch._parents] == ["a", "b", "c"]
        with scratch.parents(Path("a/b/c")):
            pass
        assert (tmp_path / "a/b/c").is_dir(), "it was there before"
        (tmp_path / "a/file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]
    assert scratch._parents == []


def test_what_is_left_at_the_end_is_removed(tmp_path: Path) -> None:
    block = scratch.folder(tmp_path)
    folder = block.__enter__()
    above = scratch.parents(tmp_path / "x/y")
    above.__enter__()
    with scratch.folder(tmp_path) as again:
        pass
    again.mkdir()  # something has made it once more
    scratch.remove_all()
    assert list(tmp_path.iterdir()) == []
    assert (scratch._folders.get(folder), scratch._removed, scratch._parents) == (None, [], [])


@pytest.mark.parametrize(("attempts", "warned"), [(1, False), (3, False), (1000, True)])
def test_a_folder_that_something_writes_to_is_removed_again(
    attempts: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For two seconds, every 50 ms. The clock is one that only sleeping moves."""
    clock, tried = [5.0], []

    def sleep(seconds: float) -> None:
        clock[0] = round(clock[0] + seconds, 6)

    def remove(path: Path) -> bool:
        tried.append(path)
        return len(tried) >= attempts

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(walk, "remove", remove)
    scratch._remove_tree(tmp_path)
    assert tried == [tmp_path] * (41 if warned else attempts)
    assert caplog.messages == ([f"{tmp_path}: could not be removed"] if warned else [])


def test_candidates_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert scratch.temporary() == Path("/tmp")
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) == ("/var/tmp", os.W_OK | os.X_OK))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    assert scratch.temporary() == Path("/var/tmp")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(HostError) as caught:
        scratch.temporary()
    assert caught.value.message == "no folder for temporary files may be written to"
    assert caught.value.hint == "set TMPDIR to one that may"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", ".")
    assert scratch.temporary() == tmp_path


def test_nothing_waits_for_the_lock_of_a_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives, or another one is just looking at the new folder."""
    living = tmp_path / DEAD
    living.mkdir()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it was waited for"))
    try:
        with scratch.folder(tmp_path):
            assert living.exists()
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(BlockingIOError):
            scratch._claim(living)
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    finally:
        os.close(descriptor)


def test_the_process_that_removes_a_folder_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlives this one, and writes to nobody's terminal. The end of its input tells it that this one is gone."""
    asked: list[dict[str, Any]] = []
    real = process.start

    def start(command: list[str | Path], **options: Any) -> Any:
        asked.append(options)
        return real(command, **options)

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setenv("SECRET", "of the caller")
    with private_folder() as folder:
        assert folder.name.startswith("imgkit-vm-")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    (options,) = asked
    assert list(options.pop("env")) == ["PATH"]
    assert options == {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
