"""Contents that are read by several threads: each file is opened once, and closed in the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgkit.engines.native import sharedfiles
from imgkit.engines.native.sharedfiles import SharedFiles
from imgkit.errors import HostError
from imgkit.tree import Content, Inline, Slice


def read(files: SharedFiles, content: Content, start: int, size: int) -> bytes:
    buffer = bytearray(size)
    files.read_into(memoryview(buffer), content, start)
    return bytes(buffer)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield the descriptors that were opened and not closed."""
    descriptors: list[int] = []
    real_open, real_close = os.open, os.close

    def recording(path: Path, flags: int) -> int:
        descriptors.append(real_open(path, flags))
        return descriptors[-1]

    def closing(descriptor: int) -> None:
        descriptors.remove(descriptor)
        real_close(descriptor)

    monkeypatch.setattr(os, "open", recording)
    monkeypatch.setattr(os, "close", closing)
    yield descriptors
    monkeypatch.undo()


def test_a_file_is_opened_once(opened: list[int], tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    with SharedFiles() as files:
        assert read(files, Slice(tmp_path / "blob", 2, 5), 1, 3) == b"345"
        assert read(files, Slice(Path(str(tmp_path / "blob")), 0, 10), 0, 10) == b"0123456789"
        assert read(files, Inline(b"abcdef"), 2, 3) == b"cde"
        assert len(opened) == 1
    assert opened == []


def test_files_that_were_not_read_for_long_are_closed(
    opened: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedfiles, "_MOST_OPEN", 3)
    slices = []
    for number in range(6):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        slices.append(Slice(tmp_path / str(number), 0, 1))
    with SharedFiles() as files:
        for number in (0, 1, 2, 0, 3, 4):
            assert read(files, slices[number], 0, 1) == b"%d" % number
        assert len(opened) == 3
        before = opened[0]
        assert read(files, slices[0], 0, 1) == b"0"
        assert opened[0] == before  # it was read again, so the others were closed
    assert opened == []


def test_a_file_that_is_being_read_is_not_closed(
    opened: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedfiles, "_MOST_OPEN", 0)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    inside, go_on = threading.Event(), threading.Event()
    real = os.preadv

    def slow(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(10)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    with ThreadPoolExecutor(1) as pool, SharedFiles() as files:
        slowly = pool.submit(read, files, Slice(tmp_path / "a", 0, 1), 0, 1)
        assert inside.wait(10)
        assert read(files, Slice(tmp_path / "b", 0, 1), 0, 1) == b"b"
        assert len(opened) == 2
        go_on.set()
        assert slowly.result() == b"a"
    assert opened == []


def test_pieces_that_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: real(file, [buffers[0][:3]], offset))
    with SharedFiles() as files:
        assert read(files, Slice(tmp_path / "blob", 0, 10), 1, 8) == b"12345678"


def test_files_that_are_gone_or_shorter(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123")
    with SharedFiles() as files:
        with pytest.raises(HostError, match="blob: changed while the image was made"):
            read(files, Slice(tmp_path / "blob", 0, 5), 0, 5)
        with pytest.raises(HostError, match="gone: cannot be read: No such file or directory"):
            read(files, Slice(tmp_path / "gone", 0, 5), 0, 5)
        with pytest.raises(HostError, match="cannot be read: Is a directory"):
            read(files, Slice(tmp_path, 0, 5), 0, 5)
