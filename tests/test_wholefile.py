"""Files that appear as a whole: what reaches the disk before the new name does, and what a failure leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imgkit.errors import HostError
from imgkit.host import scratch, wholefile


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is synced and renamed, by inode number, in order. Nothing else shows that: the kernel has no log of it."""
    found: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        found.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        found.append(("rename", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return found


def test_bytes_reach_the_disk_before_the_name_and_the_folder_after_it(
    tmp_path: Path, calls: list[tuple[str, int]]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    wholefile.write(path, b"new")
    inode = path.stat().st_ino
    assert calls == [("fsync", inode), ("rename", inode), ("fsync", tmp_path.stat().st_ino)]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_all_of_a_folder_reaches_the_disk(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    folder = tmp_path / "new"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file").write_text("text")
    (folder / "link").symlink_to("nowhere")
    inodes = {path.stat().st_ino for path in (folder, folder / "inner", folder / "inner/file")}
    wholefile.place({folder: tmp_path / "place"})
    assert {inode for what, inode in calls[:3] if what == "fsync"} == inodes
    assert [what for what, _ in calls] == ["fsync"] * 3 + ["rename", "fsync"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        wholefile.write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_filesystems_without_fsync_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def no_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    wholefile.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def moves(tmp_path: Path) -> dict[Path, Path]:
    """Return a new kernel and image, to be put where old ones are."""
    (tmp_path / "new").mkdir()
    for name in ("kernel", "image"):
        (tmp_path / "new" / name).write_text("new")
        (tmp_path / name).write_text("old")
    return {tmp_path / "new" / name: tmp_path / name for name in ("kernel", "image")}


def test_the_last_is_never_seen_beside_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, seen = moves(tmp_path), []
    replace = Path.replace

    def looked(source: Path, target: Path) -> Path:
        seen.append({path.name: path.read_text() for path in wanted.values() if path.exists()})
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", looked)
    wholefile.rename_together(wanted)
    assert seen == [{"kernel": "old"}, {"kernel": "new"}]
    assert (tmp_path / "image").read_text() == "new"


def test_all_or_none(tmp_path: Path) -> None:
    wanted = moves(tmp_path)
    (tmp_path / "new/image").unlink()
    with pytest.raises(FileNotFoundError):
        wholefile.rename_together(wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is there and may be written to. Nothing is made in it to try that: a kill would leave it."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "folder").stat().st_mtime_ns
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    monkeypatch.setenv("TEMP", str(tmp_path / "missing"))
    monkeypatch.setenv("TMP", str(tmp_path / "folder"))
    assert scratch.temporary() == tmp_path / "folder"
    assert (tmp_path / "folder").stat().st_mtime_ns == before
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(HostError, match="no folder for temporary files") as caught:
        scratch.temporary()
    assert "TMPDIR" in str(caught.value.hint)


def test_other_failures_of_fsync_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    with pytest.raises(OSError, match="Input/output error"):
        wholefile.settle({tmp_path: tmp_path})
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_filesystem_may_lack_fsync(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lacking)
    wholefile.settle({tmp_path: tmp_path})


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "link").symlink_to("folder")
    wholefile.settle({tmp_path / "link": tmp_path})
    assert calls == []


def test_every_folder_is_written_to_the_disk_once(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    moves = {}
    for folder, name in (("a", "1"), ("b", "2"), ("a", "3")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / name).touch()
        moves[tmp_path / name] = tmp_path / folder / name
    wholefile.rename(moves)
    folders = sorted((tmp_path / folder).stat().st_ino for folder in "ab")
    assert sorted(inode for what, inode in calls if what == "fsync") == folders


def test_the_old_last_file_goes_first_and_may_be_missing(tmp_path: Path) -> None:
    wanted = moves(tmp_path)
    (tmp_path / "image").unlink()
    wholefile.rename_together(wanted)
    assert [(tmp_path / name).read_text() for name in ("kernel", "image")] == ["new", "new"]


def test_a_folder_in_the_way_stays_and_the_failure_is_its_own(tmp_path: Path) -> None:
    wanted = moves(tmp_path)
    (tmp_path / "kernel").unlink()
    (tmp_path / "kernel").mkdir()
    with pytest.raises(IsADirectoryError):
        wholefile.rename_together(wanted)
    assert (tmp_path / "kernel").is_dir()
    assert not (tmp_path / "image").exists()
