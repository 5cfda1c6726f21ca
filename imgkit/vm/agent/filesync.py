"""Transfer files over the serial port: what the guest reports, and the messages that push a file into the guest.

The guest reports files that the agent changed (``file_sync``), the host pushes files (``push_file``). A file of more
than :data:`CHUNK` bytes travels in chunks, which carry the id of their transfer and are followed by a message that
completes it. The names of the messages and of their fields are those of the agentd contract.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imgkit.vm.shares.sharedfolder import split_path

CHUNK = 512 << 10
"""Bytes of a file that one message carries at most, in either direction."""
MAX_FILE = 100 << 20
"""Maximum size of a file in bytes."""
ENTRY = 256
"""Bytes of memory that are counted for each entry of a table, besides its contents."""
_MAX_ID = 128  # characters


@dataclass
class _Transfer:
    """A file whose chunks are arriving. ``total`` is the number of its chunks, ``chunks`` those that are here."""

    path: str
    total: int
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Approximate number of bytes of memory."""
        return sum(map(len, self.chunks.values())) + len(self.path) + ENTRY * (1 + len(self.chunks))


class IncomingFiles:
    """Files that the guest reported. The contents of ``files`` are theirs, by path relative to the project folder."""

    def __init__(self) -> None:
        """Begin with no files."""
        self.files: dict[str, bytes] = {}
        self._transfers: dict[str, _Transfer] = {}

    @property
    def size(self) -> int:
        """Approximate number of bytes of memory that the files and the unfinished transfers take."""
        finished = sum(len(path) + len(data) + ENTRY for path, data in self.files.items())
        return finished + sum(transfer.size for transfer in self._transfers.values())

    def receive(self, kind: str, message: Mapping[str, Any]) -> None:
        """Take in a message of the guest whose type is ``file_sync``, ``file_sync_chunk`` or ``file_sync_complete``.

        Raises:
            ValueError: a field is missing or wrong, the data is not base64, or the transfer is not complete.
            ShareError: the path leaves its folder.
        """
        if kind == "file_sync":
            self._keep(message.get("path"), _data(message, MAX_FILE))
            return
        identity = message.get("transferId")
        if not isinstance(identity, str) or len(identity) > _MAX_ID:
            raise ValueError("transfer without an id")
        if kind == "file_sync_chunk":
            self._add_chunk(identity, message)
        else:
            self._complete(identity)

    def _add_chunk(self, identity: str, message: Mapping[str, Any]) -> None:
        path, index, total = message.get("path"), message.get("chunkIndex"), message.get("totalChunks")
        if not isinstance(path, str) or not isinstance(index, int) or not isinstance(total, int):
            raise ValueError("chunk without path and numbers")
        if not 0 <= index < total <= MAX_FILE // CHUNK + 1:
            raise ValueError("chunk out of range")
        transfer = self._transfers.setdefault(identity, _Transfer(path, total))
        if (transfer.path, transfer.total) != (path, total):
            raise ValueError("chunks of one transfer disagree")
        transfer.chunks[index] = _data(message, CHUNK)

    def _complete(self, identity: str) -> None:
        transfer = self._transfers.pop(identity, None)
        if transfer is None or len(transfer.chunks) != transfer.total:
            raise ValueError("transfer is not complete")
        self._keep(transfer.path, b"".join(transfer.chunks[index] for index in range(transfer.total)))

    def _keep(self, path: object, data: bytes) -> None:
        if not isinstance(path, str):
            raise ValueError("file without a path")
        split_path(path)
        self.files[path] = data


def push_messages(base: str, path: str, data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the messages that write a file in the guest: a single one, or one for each chunk and a last one.

    Args:
        base: folder in the guest.
        path: path of the file relative to ``base``.
        data: contents of the file.
    """
    target = {"basePath": base, "path": path}
    if len(data) <= CHUNK:
        yield {"type": "push_file", **target, "data": base64.b64encode(data).decode()}
        return
    total = -(-len(data) // CHUNK)
    target["transferId"] = str(uuid.uuid4())
    for index in range(total):
        chunk = base64.b64encode(data[index * CHUNK : (index + 1) * CHUNK]).decode()
        yield {"type": "push_file_chunk", **target, "chunkIndex": index, "totalChunks": total, "data": chunk}
    yield {"type": "push_file_complete", **target, "totalChunks": total}


def _data(message: Mapping[str, Any], limit: int) -> bytes:
    text = message.get("data")
    if not isinstance(text, str):
        raise ValueError("no data")
    data = base64.b64decode(text, validate=True)  # binascii.Error is a ValueError
    if len(data) > limit:
        raise ValueError("too much data")
    return data
