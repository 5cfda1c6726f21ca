"""Carry the agentd contract over a virtio-serial port: one JSON object a line in both directions.

Requests, streams, questions and answers share the port with files, which the guest reports and the host pushes
(:mod:`imgkit.vm.agent.filesync`). Files and streams that the guest sends are kept in memory until they are fetched; a
guest that sends more than :data:`MAX_KEPT` bytes that nobody fetches is an error.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent.filesync import MAX_FILE, IncomingFiles, push_messages
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Garbage, Heartbeat, LineSplitter, parse_heartbeat, parse_object
from imgkit.vm.agent.ratelimit import StreamRateLimit
from imgkit.vm.shares.sharedfolder import ShareError, split_path

MAX_KEPT = 256 << 20
"""Bytes of files and streams that are kept until they are fetched, with names and tables included."""
PUSH_TIMEOUT = 600.0
"""Seconds for the guest to take a file."""
_PUMP_BYTES = 4 << 20  # bytes received by one call of `pump`
_PUMP_TIME = 0.1  # seconds that one call of `pump` takes
_CLOCK_LINES = 250  # lines between two looks at the clock
_READ = 1 << 20  # bytes of a stream that one call of `read` returns, and of the socket that are read or sent at once
_MAX_UNSENT = 64 << 20  # bytes of answers that the guest has not taken
_SEND_TIMEOUT = 60.0  # seconds for the guest to take a line
_CANCEL_TIMEOUT = 1.0  # seconds for the guest to take a cancellation
_AHEAD = 8  # pieces of standard input that the guest may not have taken yet
_SHOWN = 200  # bytes of a line that Garbage keeps
_MAX_NOTES = 100  # entries of `refused` and of `garbage`


class SerialTransport:
    """A :class:`imgkit.vm.agent.requests.Transport` over a connected socket.

    Attributes:
        files: contents of the files that the guest reported as changed, by path relative to the project folder.
            Removing an entry frees its memory.
        refused: (path, error) of the last 100 pushes that the guest refused.
        garbage: the last 100 lines that could not be understood.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Take over the host's end of the port."""
        self._socket = connection
        self._socket.setblocking(False)
        self._splitter = LineSplitter()
        self._rate_limit = StreamRateLimit()
        self._backlog: deque[bytes | Garbage] = deque()  # lines that were received but not looked at
        self._unsent = bytearray()
        self._blocked_since: float | None = None  # monotonic time since which the guest takes no bytes
        self._heartbeat: Heartbeat | None = None
        self._streams: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._known: set[str] = set()  # ids of the requests that are not over
        self._sent_inputs: dict[str, int] = {}  # pieces of standard input that were sent, by request
        self._taken_inputs: dict[str, int] = {}  # and that the guest has taken
        self._unchecked = 0  # bytes received since the memory that is kept was last counted
        self._incoming = IncomingFiles()
        self.files = self._incoming.files
        self.refused: list[tuple[str, str]] = []
        self.garbage: list[Garbage] = []

    # ---- requests ------------------------------------------------------------------------------------------------

    def heartbeat(self) -> Heartbeat | None:
        """Return the newest heartbeat, or None if there was none yet. Raises as :meth:`pump` does."""
        self.pump()
        return self._heartbeat

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Send the request as fast as the guest takes it, without waiting for that.

        Raises:
            UsageError: the request cannot be written as JSON.
            GuestError: the port is gone, or the guest takes no messages.
        """
        self._known.add(request_id)
        self._post({"type": "request", "requestId": request_id, "data": dict(request)})

    def read(self, request_id: str) -> bytes:
        """Return up to 1 MiB of the stream that was not returned yet; empty if there is nothing new.

        Raises:
            GuestError: as :meth:`pump`.
        """
        if len(self._streams[request_id]) < _READ:  # otherwise the guest has to wait until this is fetched
            self.pump()
        stream = self._streams[request_id]
        data = bytes(stream[:_READ])
        del stream[:_READ]
        return data

    def permission(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a permission request. Raises as :meth:`submit` does."""
        self._post({"type": "permission_response", "requestId": question_id, "result": dict(answer)})

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a host tool request. Raises as :meth:`submit` does."""
        self._post({**answer, "type": "host_tool_response", "requestId": question_id})

    def input_room(self, request_id: str) -> bool:
        """Return whether the guest has taken all but seven pieces of the input that were sent."""
        return self._sent_inputs.get(request_id, 0) - self._taken_inputs.get(request_id, 0) < _AHEAD

    def send_input(self, request_id: str, data: bytes) -> None:
        """Send a piece of input. Raises as :meth:`submit` does."""
        self._sent_inputs[request_id] = self._sent_inputs.get(request_id, 0) + 1
        self._post({"type": "input", "requestId": request_id, "data": base64.b64encode(data).decode()})

    def cancel(self, request_id: str) -> None:
        """Stop the request, and drop what the guest still sends about it."""
        self.forget(request_id)
        self.stop(request_id)

    def stop(self, request_id: str) -> None:
        """Ask the guest to stop working on the request. A guest that is gone or takes no messages is ignored."""
        try:
            self._send({"type": "cancel", "requestId": request_id}, timeout=_CANCEL_TIMEOUT)
        except GuestError:
            return  # the request ends with the machine, or when the guest listens again

    def forget(self, request_id: str) -> None:
        """Drop what is kept of the request, and whatever the guest still sends about it."""
        self._known.discard(request_id)
        self._streams.pop(request_id, None)
        self._sent_inputs.pop(request_id, None)
        self._taken_inputs.pop(request_id, None)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # ---- files ---------------------------------------------------------------------------------------------------

    def push_file(self, base: str, path: str, data: bytes, *, timeout: float = PUSH_TIMEOUT) -> None:
        """Write a file in the guest.

        Args:
            base: folder in the guest, such as /workspace/project.
            path: path of the file relative to ``base``.
            data: at most 100 MiB.
            timeout: seconds for the guest to take all of it.

        Raises:
            ShareError: the path leaves its folder.
            UsageError: ``data`` is larger than 100 MiB.
            GuestError: the guest does not take the messages in time, or the port is gone.
        """
        split_path(path)
        if len(data) > MAX_FILE:
            raise UsageError(f"{path}: files of more than {MAX_FILE >> 20} MiB cannot be pushed")
        deadline = time.monotonic() + timeout
        for message in push_messages(base, path, data):
            self._send(message, min(_SEND_TIMEOUT, deadline - time.monotonic()))

    # ---- receiving -----------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Receive what the guest has sent. This never blocks, and returns soon even if the guest never stops sending.

        Raises:
            GuestError: the guest sent more than :data:`MAX_KEPT` bytes that nobody fetches, takes no answers, or the
                port is gone.
            FloodError: the guest sends faster than :mod:`imgkit.vm.agent.ratelimit` allows.
        """
        self._flush()
        deadline, received = time.monotonic() + _PUMP_TIME, 0
        while self._process_backlog(deadline) and received < _PUMP_BYTES and time.monotonic() < deadline:
            data = self._receive()
            if not data:
                return
            received += len(data)
            self._unchecked += len(data)
            self._rate_limit.count(data)
            self._backlog.extend(line for line in self._splitter.feed(data) if line)

    def _process_backlog(self, deadline: float) -> bool:
        """Process the lines that were received until ``deadline`` (monotonic clock). Return whether none is left."""
        number = 0
        while self._backlog:
            self._process(self._backlog.popleft())
            number += 1
            if number % _CLOCK_LINES == 0 and time.monotonic() >= deadline:
                break
        if self._unchecked > MAX_KEPT >> 4:  # counting takes time, so it is not done for every line
            self._check_memory()
        return not self._backlog

    def _receive(self) -> bytes:
        """Return what the socket holds; empty if nothing, or if QEMU has ended, which :meth:`VM.check` reports."""
        try:
            return self._socket.recv(_READ)
        except (BlockingIOError, ConnectionResetError):
            return b""
        except OSError as cause:
            raise GuestError(f"the serial port of the guest is gone: {cause.strerror}") from cause

    def _check_memory(self) -> None:
        self._unchecked = 0
        if self._incoming.size + sum(map(len, self._streams.values())) > MAX_KEPT:
            raise GuestError(f"the guest sent more than {MAX_KEPT >> 20} MiB that nobody asked for")

    def _process(self, line: bytes | Garbage) -> None:
        if isinstance(line, Garbage):
            self._note(line)
            return
        if not line.strip():
            return
        try:
            self._dispatch(parse_object(line), line)
        except (ValueError, ShareError) as cause:
            self._note(Garbage(line[:_SHOWN], str(cause)[:_SHOWN]))

    def _dispatch(self, message: dict[str, Any], line: bytes) -> None:
        kind = message.get("type")
        if kind == "heartbeat" and len(line) <= MAX_HEARTBEAT:
            message.pop("type")
            self._heartbeat = parse_heartbeat(json.dumps(message).encode()) or self._heartbeat
        elif kind == "stream":
            self._append(message)
        elif kind in ("file_sync", "file_sync_chunk", "file_sync_complete"):
            self._incoming.receive(kind, message)
        elif kind == "input_taken":
            self._note_taken(message)
        elif kind == "push_error":
            self.refused.append((str(message.get("path"))[:4096], str(message.get("error"))[:1000]))
            del self.refused[:-_MAX_NOTES]
        else:
            self._note(Garbage(line[:_SHOWN], f"unknown type {str(kind)[:40]!r}"))

    def _append(self, message: Mapping[str, Any]) -> None:
        identity, text = message.get("requestId"), message.get("line")
        if not isinstance(identity, str) or not isinstance(text, str):
            raise ValueError("stream without requestId and line")
        if identity in self._known:  # a request that was cancelled may still send lines
            self._streams[identity] += text.rstrip("\n").replace("\n", " ").encode(errors="replace") + b"\n"

    def _note_taken(self, message: Mapping[str, Any]) -> None:
        identity, index = message.get("requestId"), message.get("index")
        if not isinstance(identity, str) or type(index) is not int:
            raise ValueError("input_taken without requestId and index")
        if identity in self._known:
            taken = max(self._taken_inputs.get(identity, 0), index + 1)
            self._taken_inputs[identity] = min(taken, self._sent_inputs.get(identity, 0))

    def _note(self, garbage: Garbage) -> None:
        self.garbage.append(garbage)
        del self.garbage[:-_MAX_NOTES]

    # ---- sending -------------------------------------------------------------------------------------------------

    def _post(self, message: Mapping[str, Any]) -> None:
        """Queue one line, and send what the guest takes now."""
        if len(self._unsent) > _MAX_UNSENT:
            raise GuestError(f"the guest has not taken {_MAX_UNSENT >> 20} MiB of answers")
        self._unsent += _line(message)
        self._flush()

    def _send(self, message: Mapping[str, Any], timeout: float = _SEND_TIMEOUT) -> None:
        """Send one line and wait until the guest has taken it.

        What arrives meanwhile is received, because two ends that only write would wait for each other.
        """
        deadline = time.monotonic() + timeout
        self._unsent += _line(message)
        while not self._flush():
            if time.monotonic() > deadline:
                raise GuestError(f"the guest took no message for {timeout:g} s")
            self.pump()
            select.select([] if self._backlog else [self._socket], [self._socket], [], 0.2)

    def _flush(self) -> bool:
        """Send what the guest takes now of the bytes that are queued. Return whether none is left.

        Raises:
            GuestError: the port is gone, or the guest has taken nothing for :data:`_SEND_TIMEOUT` seconds.
        """
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(memoryview(self._unsent)[:_READ])]
                self._blocked_since = None
        except BlockingIOError:
            now = time.monotonic()
            self._blocked_since = now if self._blocked_since is None else self._blocked_since
            if now - self._blocked_since > _SEND_TIMEOUT:
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
