"""Files over the serial port, message by message: what the guest reports, and what the host pushes."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from imgkit.vm.agent import filesync
from imgkit.vm.agent.filesync import CHUNK, ENTRY, MAX_FILE, IncomingFiles, push_messages
from imgkit.vm.shares.sharedfolder import ShareError


def message(data: bytes | None = None, **fields: Any) -> dict[str, Any]:
    return {**fields, **({} if data is None else {"data": base64.b64encode(data).decode()})}


def chunk(
    index: object, total: object, data: bytes = b"", *, path: object = "c", identity: object = "t"
) -> dict[str, Any]:
    return message(data, path=path, transferId=identity, chunkIndex=index, totalChunks=total)


def test_a_file_in_one_message() -> None:
    incoming = IncomingFiles()
    incoming.receive("file_sync", message(b"one", path="a/b"))
    incoming.receive("file_sync", message(b"two", path="a/b"))
    assert incoming.files == {"a/b": b"two"}


def test_chunks_in_any_order() -> None:
    incoming = IncomingFiles()
    for index, data in ((2, b"c"), (0, b"a"), (1, b"x"), (1, b"b")):
        incoming.receive("file_sync_chunk", chunk(index, 3, data))
    assert incoming.files == {}
    incoming.receive("file_sync_complete", {"transferId": "t"})
    assert incoming.files == {"c": b"abc"}


def test_two_transfers_at_a_time() -> None:
    incoming = IncomingFiles()
    for identity in ("first", "second"):
        incoming.receive("file_sync_chunk", chunk(0, 1, identity.encode(), path=identity, identity=identity))
    for identity in ("first", "second"):
        incoming.receive("file_sync_complete", {"transferId": identity})
    assert incoming.files == {"first": b"first", "second": b"second"}


@pytest.mark.parametrize("other", [chunk(2, 3), chunk(0, 1), chunk(1, 2, path="d")], ids=["more", "fewer", "path"])
def test_chunks_of_one_transfer_that_disagree(other: dict[str, Any]) -> None:
    """A chunk beyond the total would leave a gap in the file, and the path is that of the first chunk."""
    incoming = IncomingFiles()
    incoming.receive("file_sync_chunk", chunk(0, 2))
    with pytest.raises(ValueError, match="chunks of one transfer disagree"):
        incoming.receive("file_sync_chunk", other)
    with pytest.raises(ValueError, match="transfer is not complete"):
        incoming.receive("file_sync_complete", {"transferId": "t"})
    assert incoming.files == {}


def test_a_transfer_is_completed_once() -> None:
    incoming = IncomingFiles()
    incoming.receive("file_sync_chunk", chunk(0, 1))
    incoming.receive("file_sync_complete", {"transferId": "t"})
    with pytest.raises(ValueError, match="transfer is not complete"):
        incoming.receive("file_sync_complete", {"transferId": "t"})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (chunk(-1, 2), "chunk out of range"),
        (chunk(2, 2), "chunk out of range"),
        (chunk(0, 0), "chunk out of range"),
        (chunk(0, MAX_FILE // CHUNK + 2), "chunk out of range"),
        (chunk(0, 1, path=1), "chunk without path and numbers"),
        (chunk("0", 1), "chunk without path and numbers"),
        (chunk(0, 1.0), "chunk without path and numbers"),
        (chunk(0, 1, identity=None), "transfer without an id"),
        (chunk(0, 1, identity="x" * 129), "transfer without an id"),
        (chunk(0, 1, bytes(CHUNK + 1)), "too much data"),
        ({**chunk(0, 1), "data": None}, "no data"),
        ({**chunk(0, 1), "data": "a*b="}, "base64"),
    ],
)
def test_chunks_that_are_refused(wrong: dict[str, Any], reason: str) -> None:
    incoming = IncomingFiles()
    with pytest.raises(ValueError, match=reason):
        incoming.receive("file_sync_chunk", wrong)
    assert incoming.files == {}


def test_the_largest_chunk_index_and_id_are_taken() -> None:
    total = MAX_FILE // CHUNK + 1
    incoming = IncomingFiles()
    incoming.receive("file_sync_chunk", chunk(total - 1, total, bytes(CHUNK), identity="x" * 128))
    assert incoming.size == CHUNK + 1 + 2 * ENTRY


def test_files_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = IncomingFiles()
    with pytest.raises(ValueError, match="file without a path"):
        incoming.receive("file_sync", message(b"x"))
    with pytest.raises(ShareError, match="not a path inside the share"):
        incoming.receive("file_sync", message(b"x", path="../x"))
    incoming.receive("file_sync_chunk", chunk(0, 1, path="/etc/x"))
    with pytest.raises(ShareError, match="not a path inside the share"):
        incoming.receive("file_sync_complete", {"transferId": "t"})
    monkeypatch.setattr(filesync, "MAX_FILE", 3)
    with pytest.raises(ValueError, match="too much data"):
        incoming.receive("file_sync", message(b"four", path="x"))
    assert incoming.files == {}
    incoming.receive("file_sync", message(b"thr", path="x"))
    assert incoming.files == {"x": b"thr"}


def test_memory_is_counted_with_names_and_tables() -> None:
    incoming = IncomingFiles()
    assert incoming.size == 0
    incoming.receive("file_sync", message(b"12345", path="abc"))
    assert incoming.size == 5 + 3 + ENTRY
    incoming.receive("file_sync_chunk", chunk(0, 9, b"1234567", path="xy"))
    assert incoming.size == 5 + 3 + ENTRY + 7 + 2 + 2 * ENTRY
    incoming.receive("file_sync_chunk", chunk(1, 9, b"", path="xy"))
    assert incoming.size == 5 + 3 + ENTRY + 7 + 2 + 3 * ENTRY


@pytest.mark.parametrize("size", [0, 1, CHUNK])
def test_a_small_file_is_pushed_in_one_message(size: int) -> None:
    (single,) = push_messages("/base", "p", b"x" * size)
    data = base64.b64encode(b"x" * size).decode()
    assert single == {"type": "push_file", "basePath": "/base", "path": "p", "data": data}


@pytest.mark.parametrize(("size", "total"), [(CHUNK + 1, 2), (2 * CHUNK, 2), (2 * CHUNK + 1, 3)])
def test_a_large_file_is_pushed_in_chunks(size: int, total: int) -> None:
    contents = bytes(index % 251 for index in range(size))
    *chunks, last = push_messages("/base", "p", contents)
    common = {"basePath": "/base", "path": "p", "transferId": last["transferId"]}
    assert last == {"type": "push_file_complete", **common, "totalChunks": total}
    data = [base64.b64decode(part.pop("data")) for part in chunks]
    assert b"".join(data) == contents
    assert max(map(len, data)) == CHUNK
    assert chunks == [
        {"type": "push_file_chunk", **common, "chunkIndex": index, "totalChunks": total} for index in range(total)
    ]
    assert last["transferId"] != list(push_messages("/base", "p", contents))[-1]["transferId"]
