"""Shares as hostile ground: what a guest plants there leads the host nowhere."""

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
from imgkit.vm.shares.folder import SharedFolder, ShareError

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
    for name in ("requests", "streams", "responses"):
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
