"""The agentd contract over a virtio-serial port: one JSON object a line in both directions.

Files travel too: the guest reports what the agent changed (``file_sync``), the host pushes (``push_file``); big ones
in chunks of 512 KiB. What the guest sends is kept here until it is asked for, within bounds.
"""

from __future__ import annotations

import base64
import binascii
import json
import select
import socket
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Garbage, Heartbeat, LineSplitter, parse_heartbeat, parse_object
from imgkit.vm.agent.ratelimit import StreamRateLimit
from imgkit.vm.shares.folder import ShareError, split_path

CHUNK = 512 << 10
MAX_FILE = 100 << 20
"""Bytes of one file."""
MAX_KEPT = 256 << 20
"""Bytes of files and streams that are kept for the host to fetch, names and book-keeping included."""
_AT_ONCE = 4 << 20  # bytes taken in before whoever waits gets to look at the clock again
_TURN = 0.1  # seconds for the same
_LINES = 256  # lines between two looks at the clock
_READ = 1 << 20  # bytes of a stream that are handed out at once
_MAX_UNSENT = 64 << 20  # bytes of answers that the guest has not taken
_ENTRY = 256  # bytes that an entry takes besides what is in it
_SEND_TIMEOUT = 60.0  # seconds for the guest to take a line
PUSH_TIMEOUT = 600.0
"""Seconds for the guest to take a file."""


@dataclass
class _Transfer:
    path: str
    total: int
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of memory, more or less."""
        return sum(map(len, self.chunks.values())) + len(self.path) + _ENTRY * (1 + len(self.chunks))


class SerialTransport:
    """A transport (:class:`imgkit.vm.agent.requests.Transport`) over a connected socket.

    ``files`` has the files that the guest reported as changed, by their path relative to the project folder; who
    takes one out frees its place. ``refused`` has what the guest said about pushes that it did not take (path, error),
    ``garbage`` the last lines that meant nothing.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._lines = LineSplitter()
        self._flow = StreamRateLimit()
        self._backlog: deque[bytes | Garbage] = deque()  # lines that were received and not looked at yet
        self._unsent = bytearray()
        self._stuck: float | None = None  # since when the guest takes nothing
        self._heartbeat: Heartbeat | None = None
        self._streams: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._known: set[str] = set()
        self._unchecked = 0  # bytes received since the last count of what is kept
        self._transfers: dict[str, _Transfer] = {}
        self.files: dict[str, bytes] = {}
        self.refused: list[tuple[str, str]] = []
        self.garbage: list[Garbage] = []

    # ---- requests ------------------------------------------------------------------------------------------------

    def heartbeat(self) -> Heartbeat | None:
        self.pump()
        return self._heartbeat

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        self._known.add(request_id)
        self._post({"type": "request", "requestId": request_id, "data": dict(request)})

    def read(self, request_id: str) -> bytes:
        if len(self._streams[request_id]) < _READ:  # else the guest waits until this is taken
            self.pump()
        stream = self._streams[request_id]
        data = bytes(stream[:_READ])
        del stream[:_READ]
        return data

    def permission(self, question_id: str, answer: Mapping[str, Any]) -> None:
        self._post({"type": "permission_response", "requestId": question_id, "result": dict(answer)})

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        self._post({**answer, "type": "host_tool_response", "requestId": question_id})

    def cancel(self, request_id: str) -> None:
        self.forget(request_id)
        try:
            self._send({"type": "cancel", "requestId": request_id}, timeout=1.0)
        except GuestError:
            return  # gone, or too busy to listen: there is nothing more to be done

    def forget(self, request_id: str) -> None:
        self._known.discard(request_id)
        self._streams.pop(request_id, None)

    def close(self) -> None:
        self._socket.close()

    # ---- files ---------------------------------------------------------------------------------------------------

    def push_file(self, base: str, path: str, data: bytes, *, timeout: float = PUSH_TIMEOUT) -> None:
        """Write a file in the guest.

        Args:
            base: folder in the guest, such as /workspace/project.
            path: relative to it.
            data: at most 100 MiB.
            timeout: seconds for the guest to take all of it.

        Raises:
            ShareError: the path leaves its folder. UsageError: too much data. GuestError: the guest does not listen.
        """
        split_path(path)
        if len(data) > MAX_FILE:
            raise UsageError(f"{path}: files of more than {MAX_FILE >> 20} MiB cannot be pushed")
        where = {"basePath": base, "path": path}
        deadline = time.monotonic() + timeout
        for message in _pushes(where, data):
            self._send(message, min(_SEND_TIMEOUT, deadline - time.monotonic()))

    # ---- lines ---------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Take what has come in; never blocks, and comes back soon even if the guest never stops.

        Raises:
            GuestError: the guest sends more than :data:`MAX_KEPT` that nobody fetches, more than
                :mod:`imgkit.vm.agent.ratelimit` allows, or takes no answers.
        """
        self._flush()
        until, taken = time.monotonic() + _TURN, 0
        while self._sort(until) and taken < _AT_ONCE and time.monotonic() < until:
            data = self._receive()
            if not data:
                return
            taken += len(data)
            self._flow.count(data)
            self._backlog.extend(line for line in self._lines.feed(data) if line)
            self._unchecked += len(data)

    def _sort(self, until: float) -> bool:
        """Look at the lines that wait, until a time on the monotonic clock; whether that was all."""
        number = 0
        while self._backlog:
            self._take(self._backlog.popleft())
            number += 1
            if number % _LINES == 0 and time.monotonic() >= until:
                break
        if self._unchecked > MAX_KEPT >> 4:
            self._check()
        return not self._backlog

    def _receive(self) -> bytes:
        """What the socket has; empty if nothing, or if QEMU has ended (the liveness check says why)."""
        try:
            return self._socket.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            return b""
        except OSError as cause:
            raise GuestError(f"the serial port of the guest is gone: {cause.strerror}") from cause

    def _check(self) -> None:
        """Counting takes time, so it is done once for so many bytes received."""
        self._unchecked = 0
        kept = sum(transfer.size for transfer in self._transfers.values()) + sum(map(len, self._streams.values()))
        if kept + sum(len(path) + len(data) + _ENTRY for path, data in self.files.items()) > MAX_KEPT:
            raise GuestError(f"the guest sent more than {MAX_KEPT >> 20} MiB that nobody asked for")

    def _take(self, line: bytes | Garbage) -> None:
        if isinstance(line, Garbage):
            self._note(line)
            return
        if not line.strip():
            return
        try:
            message = parse_object(line)
            self._dispatch(message, line)
        except (ValueError, ShareError, binascii.Error) as cause:
            self._note(Garbage(line[:200], str(cause)[:200]))

    def _dispatch(self, message: dict[str, Any], line: bytes) -> None:
        kind = message.get("type")
        if kind == "heartbeat" and len(line) <= MAX_HEARTBEAT:
            message.pop("type")
            self._heartbeat = parse_heartbeat(json.dumps(message).encode()) or self._heartbeat
        elif kind == "stream":
            self._stream(message)
        elif kind in ("file_sync", "file_sync_chunk", "file_sync_complete"):
            self._file(kind, message)
        elif kind == "push_error":
            self.refused.append((str(message.get("path"))[:4096], str(message.get("error"))[:1000]))
            del self.refused[:-100]
        else:
            self._note(Garbage(line[:200], f"unknown type {str(kind)[:40]!r}"))

    def _stream(self, message: Mapping[str, Any]) -> None:
        identity, text = message.get("requestId"), message.get("line")
        if not isinstance(identity, str) or not isinstance(text, str):
            raise ValueError("stream without requestId and line")
        if identity in self._known:  # what a cancelled request still says is of no interest
            self._streams[identity] += text.rstrip("\n").replace("\n", " ").encode(errors="replace") + b"\n"

    def _file(self, kind: str, message: Mapping[str, Any]) -> None:
        path = message.get("path")
        if kind == "file_sync":
            self._keep(path, _data(message))
            return
        identity = message.get("transferId")
        if not isinstance(identity, str) or len(identity) > 128:
            raise ValueError("transfer without an id")
        if kind == "file_sync_chunk":
            self._chunk(identity, message)
            return
        transfer = self._transfers.pop(identity, None)
        if transfer is None or len(transfer.chunks) != transfer.total:
            raise ValueError("transfer is not complete")
        self._keep(transfer.path, b"".join(transfer.chunks[index] for index in range(transfer.total)))

    def _chunk(self, identity: str, message: Mapping[str, Any]) -> None:
        path, index, total = message.get("path"), message.get("chunkIndex"), message.get("totalChunks")
        if not isinstance(path, str) or not isinstance(index, int) or not isinstance(total, int):
            raise ValueError("chunk without path and numbers")
        if not 0 <= index < total <= MAX_FILE // CHUNK + 1:
            raise ValueError("chunk out of range")
        transfer = self._transfers.setdefault(identity, _Transfer(path, total))
        if (transfer.path, transfer.total) != (path, total):
            raise ValueError("chunks of one transfer disagree")
        transfer.chunks[index] = _data(message, CHUNK)

    def _keep(self, path: object, data: bytes) -> None:
        if not isinstance(path, str):
            raise ValueError("file without a path")
        split_path(path)
        self.files[path] = data

    def _note(self, garbage: Garbage) -> None:
        self.garbage.append(garbage)
        del self.garbage[:-100]

    def _post(self, message: Mapping[str, Any]) -> None:
        """Send one line as the guest takes it; nobody waits for that."""
        if len(self._unsent) > _MAX_UNSENT:
            raise GuestError(f"the guest has not taken {_MAX_UNSENT >> 20} MiB of answers")
        self._unsent += _line(message)
        self._flush()

    def _send(self, message: Mapping[str, Any], timeout: float = _SEND_TIMEOUT) -> None:
        """Send one line, taking in what comes meanwhile: two ends that only write would wait for each other."""
        deadline = time.monotonic() + timeout
        self._unsent += _line(message)
        while not self._flush():
            if time.monotonic() > deadline:
                raise GuestError(f"the guest took no message for {timeout:g} s")
            self.pump()
            select.select([] if self._backlog else [self._socket], [self._socket], [], 0.2)

    def _flush(self) -> bool:
        """Send what the guest takes now of what is unsent; whether that was all.

        Raises:
            GuestError: QEMU is gone, or the guest has taken nothing for long.
        """
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(memoryview(self._unsent)[:_READ])]
                self._stuck = None
        except BlockingIOError:
            now = time.monotonic()
            self._stuck = now if self._stuck is None else self._stuck
            if now - self._stuck > _SEND_TIMEOUT:
                raise GuestError(f"the guest took no message for {_SEND_TIMEOUT:g} s") from None
        except OSError as cause:
            self._unsent.clear()
            raise GuestError(f"the serial port of the guest is gone: {cause.strerror}") from cause
        return not self._unsent


def _line(message: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(message).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as cause:
        raise UsageError(f"message to the guest cannot be written as JSON: {cause}") from cause


def _pushes(where: dict[str, str], data: bytes) -> Iterator[dict[str, Any]]:
    """The messages that carry a file: one, or a piece each and an end."""
    if len(data) <= CHUNK:
        yield {"type": "push_file", **where, "data": base64.b64encode(data).decode()}
        return
    total = -(-len(data) // CHUNK)
    where = {**where, "transferId": str(uuid.uuid4())}
    for index in range(total):
        piece = base64.b64encode(data[index * CHUNK : (index + 1) * CHUNK]).decode()
        yield {"type": "push_file_chunk", **where, "chunkIndex": index, "totalChunks": total, "data": piece}
    yield {"type": "push_file_complete", **where, "totalChunks": total}


def _data(message: Mapping[str, Any], limit: int = MAX_FILE) -> bytes:
    text = message.get("data")
    if not isinstance(text, str):
        raise ValueError("no data")
    data = base64.b64decode(text, validate=True)
    if len(data) > limit:
        raise ValueError("too much data")
    return data
