"""Scratch folders in a place where other users make what they like, and what dead processes left there."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imgkit.host import process, scratch, walk
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


def test_a_machines_folder_goes_however_deep_the_guests_tree_is() -> None:
    with private_folder() as folder:
        nest(folder, 1_300)
    assert not folder.exists()


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
