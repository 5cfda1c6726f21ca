"""Folders are walked and removed: small trees, and every failure. Hostile trees are in test_walk.py."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.host import walk
from tests.files import opened


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Check that every descriptor that a test opened is closed."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def make(top: Path, *paths: str) -> Path:
    """Make files below ``top``, and folders where a path ends with a slash."""
    top.mkdir(exist_ok=True)
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).mkdir() if path.endswith("/") else (top / path).write_text(path)
    return top


def test_every_entry_comes_once_with_its_path_and_status(tmp_path: Path) -> None:
    top = make(tmp_path / "top", "a/b/file", "a/c/", "file")
    (top / "link").symlink_to("a")
    found = {}
    with opened(top) as descriptor:
        steps = walk.Walk(descriptor)
        for entry in steps:
            found[steps.path(entry.name)] = stat.S_IFMT(entry.status.st_mode)
            assert os.lstat(entry.name, dir_fd=entry.folder).st_ino == entry.status.st_ino
    assert found == {
        "a": stat.S_IFDIR,
        "a/b": stat.S_IFDIR,
        "a/b/file": stat.S_IFREG,
        "a/c": stat.S_IFDIR,
        "file": stat.S_IFREG,
        "link": stat.S_IFLNK,
    }
    assert (steps.unread, steps.newest_unread) == (0, float("-inf"))


def test_a_walk_that_is_given_up_closes_everything(tmp_path: Path) -> None:
    top = make(tmp_path / "top", "a/b/c/d/file")
    with opened(top) as descriptor:
        walking = iter(walk.Walk(descriptor))
        for _ in range(3):
            next(walking)
        walking.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("depth", [walk.HELD - 1, walk.HELD, walk.HELD + 1, 2 * walk.HELD + 3])
def test_deep_trees_are_walked_with_few_descriptors(depth: int, tmp_path: Path) -> None:
    top = make(tmp_path / "top", "d/" * depth + "file", "e")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    most, paths = 0, []
    with opened(top) as descriptor:
        steps = walk.Walk(descriptor)
        for entry in steps:
            paths.append(steps.path(entry.name))
            most = max(most, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    assert sorted(paths) == sorted(
        ["e", "d/" * depth + "file", *("/".join("d" * level) for level in range(1, depth + 1))]
    )
    assert most - before == min(depth, walk.HELD) + 3
    assert walk.remove(top)
    assert not top.exists()


class _Entry:
    """An entry of a folder whose status cannot be read."""

    def __init__(self, entry: os.DirEntry[str], error: OSError | None) -> None:
        self._entry, self._error, self.name = entry, error, entry.name

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        if self._error is not None:
            raise self._error
        return self._entry.stat(follow_symlinks=follow_symlinks)

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        if self._error is not None:
            raise self._error
        return self._entry.is_dir(follow_symlinks=follow_symlinks)


def refuse(monkeypatch: pytest.MonkeyPatch, names: Collection[str], error: OSError) -> None:
    """Let the status of entries of these names be unreadable."""
    scandir = os.scandir

    @contextmanager
    def fake(folder: int) -> Iterator[Iterator[_Entry]]:
        with scandir(folder) as entries:
            yield (_Entry(entry, error if entry.name in names else None) for entry in entries)

    monkeypatch.setattr(os, "scandir", fake)


def test_what_may_not_be_searched_is_counted_and_what_is_gone_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = make(tmp_path / "top", "x", "y")
    refuse(monkeypatch, ["x"], PermissionError(13, "x"))
    with opened(top) as descriptor:
        steps = walk.Walk(descriptor)
        assert [entry.name for entry in steps] == ["y"]
    assert (steps.unread, steps.newest_unread) == (1, top.stat().st_ctime)
    monkeypatch.undo()
    refuse(monkeypatch, ["x"], FileNotFoundError(2, "x"))
    with opened(top) as descriptor:
        steps = walk.Walk(descriptor)
        assert [entry.name for entry in steps] == ["y"]
    assert steps.unread == 0


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = make(tmp_path / "top", "x")

    def scandir(folder: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", scandir)
    for owners, newest in ((None, top.stat().st_ctime), ([os.geteuid()], top.stat().st_ctime), ([99], float("-inf"))):
        with opened(top) as descriptor:
            steps = walk.Walk(descriptor, owners)
            assert list(steps) == []
        assert (steps.unread, steps.newest_unread) == (1, newest)


@pytest.mark.parametrize("missing", [True, False])
def test_folders_that_cannot_be_opened(missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has been removed since then is none; another one is counted, and the rest is walked."""
    top = make(tmp_path / "top", "a/file", "b/file", "c/file")
    original = os.open

    def opens(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "b":
            raise (FileNotFoundError if missing else PermissionError)(13, "b")
        return original(path, flags, mode, dir_fd=dir_fd)

    with opened(top) as descriptor:
        monkeypatch.setattr(os, "open", opens)
        steps = walk.Walk(descriptor)
        paths = [steps.path(entry.name) for entry in steps]
    assert sorted(paths) == ["a", "a/file", "b", "c", "c/file"]
    assert steps.unread == (0 if missing else 1)
    assert steps.newest_unread == (float("-inf") if missing else (top / "b").stat().st_ctime)


# ---- removing --------------------------------------------------------------------------------------------------------


def test_a_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "file")
    top = make(tmp_path / "top", "a/b/file", "c/")
    (top / "a/link").symlink_to(outside)
    assert walk.remove(top)
    assert not top.exists()
    assert (outside / "file").exists()
    assert walk.remove(top), "it is gone already"
    assert walk.remove(top / "in a missing one")
    assert not walk.remove(outside / "file"), "which is no folder"
    assert not walk.remove(outside / "file/x")
    assert (outside / "file").exists()


def test_a_folder_can_be_emptied_and_stays(tmp_path: Path) -> None:
    top = make(tmp_path / "top", "a/b/file", "file")
    top.chmod(0o500)
    with opened(top) as descriptor:
        assert walk.empty(descriptor)
    assert list(top.iterdir()) == []
    assert stat.S_IMODE(top.stat().st_mode) == 0o700


def test_usable_folders_keep_their_mode(tmp_path: Path) -> None:
    top = make(tmp_path / "top")
    top.chmod(0o755)
    with opened(top) as descriptor:
        assert walk.empty(descriptor)
    assert stat.S_IMODE(top.stat().st_mode) == 0o755


def test_names_are_removed_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_BATCH", 3)
    for count in (2, 3, 4, 10):
        top = make(tmp_path / "top", *(f"file{number}" for number in range(count)), "folder/file")
        assert walk.remove(top), count
        assert not top.exists()


def stay(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Let files and folders of these names be impossible to remove; returns the names that were tried, in order."""
    tried = []
    unlink, rmdir = os.unlink, os.rmdir

    def unlinks(name: str, *, dir_fd: int | None = None) -> None:
        tried.append(name)
        if name in names:
            raise PermissionError(1, name)
        unlink(name, dir_fd=dir_fd)

    def rmdirs(name: str, *, dir_fd: int | None = None) -> None:
        tried.append(name)
        if name in names:
            raise PermissionError(1, name)
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlinks)
    monkeypatch.setattr(os, "rmdir", rmdirs)
    return tried


@pytest.mark.parametrize("batch", [2, 4096])
def test_what_cannot_be_removed_is_tried_once_and_stays(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "_BATCH", batch)
    top = make(tmp_path / "top", "a/stuck", "a/file", "kept/file", "file1", "file2", "file3")
    tried = stay(monkeypatch, "stuck", "kept")
    with opened(top) as descriptor:
        assert not walk.empty(descriptor)
    assert {str(path.relative_to(top)) for path in top.rglob("*")} == {"a", "a/stuck", "kept"}
    assert sorted(tried) == ["a", "file", "file", "file1", "file2", "file3", "kept", "stuck"]
    assert not walk.remove(top)


def test_folders_whose_kind_cannot_be_read_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = make(tmp_path / "top", "a/file", "b")
    refuse(monkeypatch, ["a"], OSError(5, "a"))
    with opened(top) as descriptor:
        assert not walk.empty(descriptor)
    assert [path.name for path in top.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_entered_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = make(tmp_path / "top", "a/file", "b/file")
    mount = walk._mount
    inode = (top / "a").stat().st_ino
    monkeypatch.setattr(
        walk, "_mount", lambda folder: (0, b"other") if os.fstat(folder).st_ino == inode else mount(folder)
    )
    with opened(top) as descriptor:
        assert not walk.empty(descriptor)
    assert sorted(str(path.relative_to(top)) for path in top.rglob("*")) == ["a", "a/file"]


def test_mounts_are_told_apart_by_device_and_number(tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(Path("/proc")) as other:
        device, number = walk._mount(first)
        assert device == tmp_path.stat().st_dev
        assert number.isdigit()
        assert walk._mount(first) == walk._mount(first) != walk._mount(other)


def test_no_error_comes_out_of_emptying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(walk, "_make_usable", refuse)
    with opened(tmp_path) as descriptor:
        assert not walk.empty(descriptor)


def test_modes_are_set_without_following_links(tmp_path: Path) -> None:
    top = make(tmp_path / "top", "file")
    (top / "link").symlink_to("file")
    (top / "file").chmod(0o600)
    with opened(top) as descriptor:
        walk.change_mode("file", 0o640, descriptor)
        assert stat.S_IMODE((top / "file").stat().st_mode) == 0o640
        with pytest.raises(OSError, match="not supported"):
            walk.change_mode("link", 0o777, descriptor)
        with pytest.raises(FileNotFoundError):
            walk.change_mode("missing", 0o777, descriptor)
    assert stat.S_IMODE((top / "file").stat().st_mode) == 0o640


def test_a_closed_folder_is_opened_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not apply to root, so the first attempt is made to fail as an ordinary user's does."""
    top = make(tmp_path / "top", "closed/")
    (top / "closed").chmod(0)
    original = os.open

    def opens(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "closed" and not flags & os.O_PATH and not stat.S_IMODE((top / "closed").stat().st_mode):
            raise PermissionError(13, path)
        return original(path, flags, mode, dir_fd=dir_fd)

    with opened(top) as descriptor:
        monkeypatch.setattr(os, "open", opens)
        os.close(walk._open_up("closed", descriptor))
    assert stat.S_IMODE((top / "closed").stat().st_mode) == 0o700
