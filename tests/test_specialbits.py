"""Files of a guest that would give rights on the host are made harmless where no filter has prevented them."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from imgkit.host import walk
from imgkit.vm.shares import specialbits
from imgkit.vm.shares.specialbits import drop_special_bits
from tests.conftest import need


def test_special_bits_of_what_changed_are_dropped(tmp_path: Path) -> None:
    folder, other = tmp_path / "work", tmp_path / "other"
    (folder / "deep").mkdir(parents=True)
    for path in (other, folder / "deep/tool", folder / "plain"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o6755)
    (folder / "link").symlink_to(other)
    (folder / "plain").chmod(0o644)
    assert drop_special_bits(folder, since=time.time() + 60) == []
    assert drop_special_bits(folder, since=time.time() - 60) == [folder / "deep/tool"]
    assert (folder / "deep/tool").stat().st_mode & 0o7777 == 0o755
    assert other.stat().st_mode & 0o7777 == 0o6755, "links are not followed"


def test_either_bit_is_enough_and_folders_keep_theirs(tmp_path: Path) -> None:
    for name, mode in (("user", 0o4755), ("group", 0o2755), ("sticky", 0o1755)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "team").mkdir()
    (tmp_path / "team").chmod(0o2775)
    changed = drop_special_bits(tmp_path, since=time.time() - 60)
    assert sorted(changed) == [tmp_path / "group", tmp_path / "user"]
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()}
    assert modes == {"user": 0o755, "group": 0o755, "sticky": 0o1755, "team": 0o2775}


def test_the_second_before_the_start_counts(tmp_path: Path) -> None:
    """The times of a filesystem may be coarse. What is older stays as the user has it."""
    tool = tmp_path / "tool"
    tool.touch()
    tool.chmod(0o4755)
    changed = tool.stat().st_ctime
    assert drop_special_bits(tmp_path, since=changed + 1.1) == []
    assert tool.stat().st_mode & 0o4000
    assert drop_special_bits(tmp_path, since=changed + 1) == [tool]


def test_a_folder_that_its_owner_could_not_search_is_opened(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o300)
    assert drop_special_bits(tmp_path, since=time.time() - 60) == []
    assert closed.stat().st_mode & 0o777 == 0o700


def test_what_nobody_may_read_is_seen_to(tmp_path: Path) -> None:
    """By root, and by a user without root's rights, who may not list the folder as it is."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "program").touch()
    (closed / "program").chmod(0o4111)
    closed.chmod(0o111)
    (tmp_path / "other").mkdir()
    assert drop_special_bits(tmp_path, since=time.time() - 60) == [closed / "program"]
    assert (closed / "program").stat().st_mode & 0o7777 == 0o111


@pytest.mark.slow
def test_depth_is_no_obstacle(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("program", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.fchmod(os.open("program", os.O_RDONLY, dir_fd=here), 0o4755)
    assert len(drop_special_bits(tmp_path, since=time.time() - 60)) == 1
    assert os.stat("program", dir_fd=here).st_mode & 0o7777 == 0o755
    for _ in range(3001):  # what made it takes it away
        for name in os.listdir(here):  # noqa: PTH208 - of a descriptor
            os.rmdir(name, dir_fd=here) if name == "d" else os.unlink(name, dir_fd=here)
        above = os.open("..", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = above
    os.close(here)


def test_device_nodes_go(tmp_path: Path) -> None:
    need("root", os.geteuid() == 0)
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        need("device nodes", False)
    os.mkfifo(tmp_path / "pipe")
    assert drop_special_bits(tmp_path, since=time.time() - 60) == [tmp_path / "null"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        drop_special_bits(tmp_path / "none", since=0)


def test_a_pipe_in_place_of_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "work")
    with pytest.raises(NotADirectoryError):
        drop_special_bits(tmp_path / "work", since=0)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    need("/proc", Path("/proc/self/fd").is_dir())
    (tmp_path / "deep").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    for _ in range(3):
        drop_special_bits(tmp_path, since=0)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_files_and_folders_without_special_bits_stay_as_they_are(tmp_path: Path) -> None:
    """A folder is opened to its owner only if the owner lacks a right to it."""
    modes = {"file": 0o000, "other": 0o1644, "folder": 0o700, "open": 0o2777, "closed": 0o2500, "none": 0o005}
    for name, mode in modes.items():
        (tmp_path / name).touch() if name in ("file", "other") else (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    times = {name: (tmp_path / name).stat().st_ctime_ns for name in modes}
    assert drop_special_bits(tmp_path, since=time.time() - 60) == []
    changed = {name for name in modes if (tmp_path / name).stat().st_ctime_ns != times[name]}
    assert changed <= {"closed", "none"}
    expected = {**modes, "closed": 0o2700, "none": 0o705}
    assert {name: (tmp_path / name).stat().st_mode & 0o7777 for name in modes} == expected


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_either_kind_of_device_goes(kind: int, tmp_path: Path) -> None:
    need("root", os.geteuid() == 0)
    try:
        os.mknod(tmp_path / "device", kind | 0o600, os.makedev(1, 3))
    except PermissionError:
        need("device nodes", False)
    assert drop_special_bits(tmp_path, since=time.time() - 60) == [tmp_path / "device"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_changed_is_not_reported_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be gone by then, and the rest of the folder is still seen to."""
    for name in ("first", "second"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o4755)
    real = walk.change_mode

    def change(name: str, mode: int, folder: int) -> None:
        if name == "first":
            raise FileNotFoundError
        real(name, mode, folder)

    monkeypatch.setattr(specialbits, "change_mode", change)
    assert drop_special_bits(tmp_path, since=time.time() - 60) == [tmp_path / "second"]
