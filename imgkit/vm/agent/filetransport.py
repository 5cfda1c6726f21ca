"""Carry the agentd contract over files in the request share, whose tag is ``ipc``.

The host writes ``requests/ID.json``, and the guest appends events to ``streams/ID.log``, one JSON object a line. The
host answers the agent's questions in ``responses/``. The standard input of a command is in ``inputs/ID.0``,
``inputs/ID.1`` …, of which the guest removes each that the command has taken, and an empty one is the end. The file
``heartbeat`` is the guest's sign of life.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imgkit.errors import GuestError, HostError, UsageError
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Heartbeat, parse_heartbeat
from imgkit.vm.shares.sharedfolder import SharedFolder, ShareError

FOLDERS = ("requests", "streams", "responses", "inputs")
_CHUNK = 1 << 20
_AHEAD = 8  # pieces of standard input that may lie in the share


class FileTransport:
    """A :class:`imgkit.vm.agent.requests.Transport` over a folder that the guest has mounted at ``/workspace/ipc``."""

    def __init__(self, folder: SharedFolder) -> None:
        """Make the folders in ``folder``, and remove a heartbeat that an earlier machine left there.

        Raises:
            ShareError: a link or a file is where a folder must be.
            OSError: the folders cannot be made.
        """
        self._folder = folder
        self._offsets: dict[str, int] = {}
        self._inputs: dict[str, deque[int]] = {}  # by request, the numbers of the pieces that the guest may have left
        self._next_input: dict[str, int] = {}
        folder.remove("heartbeat")
        for name in FOLDERS:
            folder.mkdir(name)

    def heartbeat(self) -> Heartbeat | None:
        """Return the heartbeat, or None while the file is missing or not a valid heartbeat."""
        with suppress(ShareError, OSError):  # the guest may put a link or a folder in the file's place
            data = self._folder.read("heartbeat", limit=MAX_HEARTBEAT)
            return parse_heartbeat(data) if data else None
        return None

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Write the request into the share.

        Raises:
            UsageError: the request cannot be written as JSON.
            HostError: the file cannot be written.
            ShareError: the guest put a link or a folder in the way.
        """
        self._offsets[request_id] = 0
        self._write(f"requests/{request_id}.json", request)

    def read(self, request_id: str) -> bytes:
        """Return up to 1 MiB that the guest appended to the stream since the last call; empty if there is nothing new.

        Raises:
            GuestError: the guest shortened the stream, or put something else in its place.
        """
        path = f"streams/{request_id}.log"
        offset = self._offsets[request_id]
        try:
            data = self._folder.read(path, offset=offset, limit=_CHUNK)
            if not data and offset and (self._folder.size(path) or 0) < offset:
                raise GuestError(f"{path}: the guest shortened its own stream")
        except OSError as cause:
            raise GuestError(f"{path}: {cause.strerror}") from cause
        self._offsets[request_id] = offset + len(data or b"")
        return data or b""

    def permission(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a permission request. Raises as :meth:`submit` does."""
        self._write(f"responses/{question_id}.json", answer)

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a host tool request. Raises as :meth:`submit` does."""
        self._write(f"responses/{question_id}.host-tool.json", answer)

    def input_room(self, request_id: str) -> bool:
        """Return whether fewer than eight pieces of the input lie in the share.

        Raises:
            ShareError: the guest put a link or a file in place of the folder.
            GuestError: the folder cannot be read.
        """
        waiting = self._inputs.setdefault(request_id, deque())
        try:
            while waiting and self._folder.size(f"inputs/{request_id}.{waiting[0]}") is None:
                waiting.popleft()
        except OSError as cause:
            raise GuestError(f"inputs: {cause.strerror}") from cause
        return len(waiting) < _AHEAD

    def send_input(self, request_id: str, data: bytes) -> None:
        """Write a piece of input into the share. Raises HostError and ShareError as :meth:`submit` does."""
        number = self._next_input.get(request_id, 0)
        self._next_input[request_id] = number + 1
        self._put(f"inputs/{request_id}.{number}", data)
        self._inputs.setdefault(request_id, deque()).append(number)

    def stop(self, request_id: str) -> None:
        """Write an empty file beside the request, by which the guest stops it and removes both files."""
        with suppress(OSError, ShareError):
            self._folder.write(f"requests/{request_id}.cancel", b"", mode=0o600)

    def cancel(self, request_id: str) -> None:
        """Stop the request. Its stream is not read any more."""
        self._offsets.pop(request_id, None)
        self._drop_input(request_id)
        self.stop(request_id)

    def forget(self, request_id: str) -> None:
        """Remove the request and its stream.

        The request is removed first, because a guest that restarts takes a request without a stream for a new one.
        """
        self._offsets.pop(request_id, None)
        self._drop_input(request_id)
        self._folder.remove(f"requests/{request_id}.json")
        self._folder.remove(f"streams/{request_id}.log")

    def close(self) -> None:
        """Close the share."""
        self._folder.close()

    def _drop_input(self, request_id: str) -> None:
        """Remove the pieces of input that the guest has not taken."""
        self._next_input.pop(request_id, None)
        for number in self._inputs.pop(request_id, ()):
            self._folder.remove(f"inputs/{request_id}.{number}")

    def _write(self, path: str, value: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as cause:
            raise UsageError(f"message to the guest cannot be written as JSON: {cause}") from cause
        self._put(path, text.encode())

    def _put(self, path: str, data: bytes) -> None:
        try:
            self._folder.write(path, data, mode=0o600)
        except OSError as cause:
            raise HostError(f"{path}: cannot be written into the share: {cause.strerror}") from cause
