"""Files that a hostile guest puts into a share do not lead the host to other files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import HostError
from imgkit.vm.agent import protocol
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.shares.sharedfolder import SharedFolder, ShareError
from tests.conftest import need

# ---- the share as hostile ground ---------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_text('{"timestamp": 1, "secret": true}')
    return path


@pytest.fixture
def ipc(tmp_path: Path) -> Path:
    path = tmp_path / "ipc"
    path.mkdir()
    return path


def test_links_are_not_read(ipc: Path, secret: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    (ipc / "heartbeat").symlink_to(secret)
    assert mode.heartbeat() is None
    mode.submit("id", {})
    (ipc / "streams" / "id.log").symlink_to(secret)
    with pytest.raises(ShareError, match="not a regular file"):
        mode.read("id")
    mode.close()


@pytest.mark.parametrize("name", ["requests", "streams", "responses"])
def test_a_folder_that_became_a_link_is_refused(ipc: Path, secret: Path, name: str) -> None:
    mode = FileTransport(SharedFolder(ipc))
    (ipc / name).rmdir()
    (ipc / name).symlink_to(secret.parent)
    if name == "streams":
        mode.submit("id", {})
    touch: dict[str, Callable[[], object]] = {
        "requests": lambda: mode.submit("id", {}),
        "responses": lambda: mode.permission("id", {}),
        "streams": lambda: mode.read("id"),
    }
    with pytest.raises(ShareError, match="a link or file is where a folder must be"):
        touch[name]()
    with pytest.raises(ShareError):
        FileTransport(SharedFolder(ipc))
    mode.close()
    assert _names(secret.parent) == ["secret"]


def test_a_planted_link_is_replaced_not_followed(ipc: Path, secret: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    (ipc / "responses" / "p.json").symlink_to(secret)
    mode.permission("p", {"behavior": "deny"})
    assert "secret" in secret.read_text()
    assert not (ipc / "responses" / "p.json").is_symlink()
    mode.close()


def test_a_fifo_blocks_nobody(ipc: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    os.mkfifo(ipc / "heartbeat")
    start = time.monotonic()
    assert mode.heartbeat() is None
    assert time.monotonic() - start < 1
    mode.close()


def test_a_folder_in_place_of_a_file(ipc: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    (ipc / "heartbeat").mkdir()
    assert mode.heartbeat() is None
    (ipc / "responses" / "p.json").mkdir()
    with pytest.raises(ShareError, match="a folder is where a file must be"):
        mode.permission("p", {})
    assert _names(ipc / "responses") == ["p.json"]
    mode.close()


def test_a_full_or_vanished_share_is_the_hosts_error(ipc: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    for name in ("requests", "streams", "responses", "inputs"):
        (ipc / name).rmdir()
    ipc.rmdir()
    with pytest.raises(HostError, match="cannot be written into the share"):
        mode.submit("id", {})
    mode.close()


def test_an_enormous_heartbeat_is_none(ipc: Path) -> None:
    mode = FileTransport(SharedFolder(ipc))
    (ipc / "heartbeat").write_text('{"timestamp": 1000, "x": "' + "y" * protocol.MAX_HEARTBEAT + '"}')
    assert mode.heartbeat() is None
    mode.close()


def test_an_old_heartbeat_is_removed(ipc: Path) -> None:
    (ipc / "heartbeat").write_text('{"timestamp": 1000}')
    mode = FileTransport(SharedFolder(ipc))
    assert mode.heartbeat() is None
    mode.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "", "a//b", ".", "a/.", "a\0", "a\\b"])
def test_paths_that_leave(ipc: Path, path: str) -> None:
    folder = SharedFolder(ipc)
    with pytest.raises(ShareError):
        folder.write(path, b"")
    with pytest.raises(ShareError):
        folder.read(path, limit=1)
    folder.close()
    assert _names(ipc) == []


@pytest.mark.slow
@given(path=st.text(st.sampled_from("ab./\\\0"), max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_path_reaches_outside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    top = tmp_path_factory.mktemp("outer")
    (top / "in").mkdir()
    folder = SharedFolder(top / "in")
    with suppress(ShareError, OSError):
        folder.write(path, b"x")
    folder.close()
    assert _names(top) == ["in"]


def test_folder_round_trip(ipc: Path) -> None:
    folder = SharedFolder(ipc)
    folder.write("a/b/c.txt", b"hello")
    assert folder.read("a/b/c.txt", limit=100) == b"hello"
    assert folder.read("a/b/c.txt", offset=3, limit=1) == b"l"
    assert folder.size("a/b/c.txt") == 5
    assert folder.read("a/b/none", limit=1) is None
    assert folder.read("none/none", limit=1) is None
    folder.remove("a/b/c.txt")
    folder.remove("a/b/c.txt")
    assert folder.size("a/b/c.txt") is None
    folder.close()
    folder.close()


def test_the_longest_path(ipc: Path) -> None:
    folder = SharedFolder(ipc)
    assert folder.read("a/" * 2047 + "bc", limit=1) is None
    with pytest.raises(ShareError, match="is not a path inside the share") as raised:
        folder.read("a/" * 2048 + "b", limit=1)
    assert repr("a/" * 100) in raised.value.message
    folder.close()


def test_only_regular_files_have_a_size(ipc: Path, secret: Path) -> None:
    folder = SharedFolder(ipc)
    (ipc / "folder").mkdir()
    (ipc / "link").symlink_to(secret)
    os.mkfifo(ipc / "fifo")
    (ipc / "file").write_bytes(b"12345")
    assert [folder.size(name) for name in ("folder", "link", "fifo", "none", "file")] == [None, None, None, None, 5]
    for name in ("folder", "link", "fifo"):
        with pytest.raises(ShareError, match=f"{name}: not a regular file"):
            folder.read(name, limit=9)
    (ipc / "away").symlink_to(secret.parent)
    with pytest.raises(ShareError, match="away/secret: a link or file is where a folder must be"):
        folder.size("away/secret")
    folder.close()


def test_modes_of_files_and_folders(ipc: Path) -> None:
    previous = os.umask(0o022)
    try:
        folder = SharedFolder(ipc)
        folder.write("a/plain", b"x")
        folder.write("a/private", b"x", mode=0o600)
        folder.mkdir("b/c")
    finally:
        os.umask(previous)
    modes = {str(path.relative_to(ipc)): path.stat().st_mode & 0o777 for path in ipc.rglob("*")}
    assert modes == {"a": 0o755, "a/plain": 0o644, "a/private": 0o600, "b": 0o755, "b/c": 0o755}
    folder.close()


def test_nothing_is_left_of_a_write_that_failed(ipc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SharedFolder(ipc)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space left on device"):
        folder.write("file", b"x")
    assert _names(ipc) == []
    folder.close()


def test_the_temporary_name_is_no_request(ipc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """agentd takes every ``*.json`` in the folder for a request."""
    names: list[str] = []
    rename = os.rename

    def record(source: str, target: str, **folders: int) -> None:
        names.append(source)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", record)
    folder = SharedFolder(ipc)
    folder.write("requests/r.json", b"{}")
    folder.write("requests/r.json", b"{}")
    assert len(set(names)) == 2
    assert all(name.startswith(".") and name.endswith(".tmp") for name in names)
    folder.close()


def test_what_root_makes_belongs_to_the_owner_of_the_share(ipc: Path) -> None:
    """QEMU runs as that user, and could not read the requests of root. What is there already keeps its owner."""
    need("root", os.geteuid() == 0)
    (ipc / "old").mkdir()
    os.chown(ipc, 4711, 4712)
    folder = SharedFolder(ipc)
    folder.write("old/file", b"x", mode=0o600)
    folder.write("new/file", b"x")
    owners = {str(path.relative_to(ipc)): (path.stat().st_uid, path.stat().st_gid) for path in ipc.rglob("*")}
    given = (4711, 4712)
    assert owners == {"old": (0, 0), "old/file": given, "new": given, "new/file": given}
    folder.close()


@pytest.mark.parametrize(("uid", "given"), [(0, None), (1, (1, 7)), (4711, (4711, 7))])
@pytest.mark.parametrize("user", [0, 1, 4711])
def test_only_root_gives_files_away_and_only_to_others(
    user: int, uid: int, given: tuple[int, int] | None, ipc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.stat_result((0o40755, 0, 0, 1, uid, 7, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "fstat", lambda _: owner)
    folder = SharedFolder(ipc)
    assert folder._owner == (given if user == 0 else None)
    folder.close()


def test_a_root_that_may_not_give_files_away_writes_them_all_the_same(
    ipc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers whose root lacks the capability."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    folder = SharedFolder(ipc)
    folder._owner = (4711, 4712)
    folder.write("new/file", b"x")
    assert folder.read("new/file", limit=9) == b"x"
    folder.close()


@pytest.mark.parametrize("mask", [0, 0o027, 0o077])
def test_new_folders_have_the_modes_that_the_user_gives_to_folders(mask: int, ipc: Path) -> None:
    previous = os.umask(mask)
    try:
        folder = SharedFolder(ipc)
        folder.mkdir("a")
        folder.write("b/file", b"")
    finally:
        os.umask(previous)
    assert {path.name: path.stat().st_mode & 0o777 for path in ipc.iterdir()} == dict.fromkeys("ab", 0o777 & ~mask)
    folder.close()


def test_a_fifo_in_place_of_a_folder_blocks_nobody(ipc: Path) -> None:
    folder = SharedFolder(ipc)
    os.mkfifo(ipc / "streams")
    with pytest.raises(ShareError, match="a link or file is where a folder must be"):
        folder.read("streams/x", limit=1)
    with pytest.raises(ShareError, match="a link or file is where a folder must be"):
        folder.mkdir("streams")
    folder.close()
    with pytest.raises(HostError, match="streams: cannot be shared: Not a directory"):
        SharedFolder(ipc / "streams")


def test_a_folder_is_made_where_there_is_none_and_kept_where_there_is_one(ipc: Path) -> None:
    folder = SharedFolder(ipc)
    folder.mkdir("a")
    (ipc / "a/file").touch()
    folder.mkdir("a/b")
    folder.mkdir("a")
    assert (_names(ipc), _names(ipc / "a")) == (["a"], ["b", "file"])
    folder.close()


def test_the_first_bytes_are_read_unless_others_are_asked_for(ipc: Path) -> None:
    folder = SharedFolder(ipc)
    folder.write("file", b"0123456789")
    assert folder.read("file", limit=4) == b"0123"
    assert folder.read("file", offset=8, limit=4) == b"89"
    assert folder.read("file", offset=10, limit=4) == b""
    folder.close()


def test_a_closed_folder_stays_closed(ipc: Path, secret: Path) -> None:
    """What has the number of its descriptor afterwards is neither closed nor read."""
    folder = SharedFolder(ipc)
    number = folder._top
    folder.close()
    other = os.open(secret.parent, os.O_RDONLY)
    assert other == number, "the lowest number that is free"
    folder.close()
    os.fstat(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        folder.read("secret", limit=1)
    folder.remove("secret")
    assert secret.exists()
    os.close(other)


@pytest.mark.parametrize("failing", ["a", "file"])
def test_failures_of_the_filesystem_are_passed_on_as_they_are(
    failing: str, ipc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not mistaken for what a guest can put into the share."""
    folder = SharedFolder(ipc)
    folder.write("a/file", b"x")
    real = os.open

    def fail(path: str | Path, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if path == failing:
            raise OSError(5, "Input/output error")
        return real(path, flags, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        folder.read("a/file", limit=1)
    assert not isinstance(raised.value, ShareError)
    folder.close()


def test_no_descriptor_is_left_open(ipc: Path, secret: Path) -> None:
    """No failure leaves a descriptor open, because a machine may run for weeks."""
    need("/proc", Path("/proc/self/fd").is_dir())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    folder = SharedFolder(ipc)
    (ipc / "away").symlink_to(secret.parent)
    (ipc / "inner").mkdir()
    for _ in range(20):
        folder.write("a/b/c", b"x")
        assert folder.read("a/b/c", limit=9) == b"x"
        assert folder.size("a/b/c") == 1
        for path in ("away/secret", "inner"):
            with pytest.raises(ShareError):
                folder.read(path, limit=9)
            with pytest.raises(ShareError):
                folder.write(path, b"x")
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    folder.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_cannot_be_shared(ipc: Path) -> None:
    for path in (ipc / "none", ipc / "file"):
        (ipc / "file").touch()
        with pytest.raises(HostError, match=r"cannot be shared: (No such file|Not a directory)"):
            SharedFolder(path)
    (ipc / "link").symlink_to(ipc)
    folder = SharedFolder(ipc / "link")
    assert folder.size("file") == 0
    folder.close()


def test_a_folder_and_links_on_the_way_survive_a_removal(ipc: Path, secret: Path) -> None:
    folder = SharedFolder(ipc)
    (ipc / "folder").mkdir()
    (ipc / "away").symlink_to(secret.parent)
    folder.remove("folder")
    folder.remove("away/secret")
    folder.remove("../outside/secret")
    assert secret.exists()
    folder.remove("away")
    assert _names(ipc) == ["folder"]
    folder.close()
