"""Carry the agentd contract over files in the request share, whose tag is ``ipc``.

The host writes ``requests/ID.json``, and the guest appends events to ``streams/ID.log``, one JSON object a line. The
host answers the agent's questions in ``responses/``. The file ``heartbeat`` is the guest's sign of life.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imgkit.errors import GuestError, HostError, UsageError
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Heartbeat, parse_heartbeat
from imgkit.vm.shares.sharedfolder import SharedFolder, ShareError

FOLDERS = ("requests", "streams", "responses")
_CHUNK = 1 << 20


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

    def cancel(self, request_id: str) -> None:
        """Write an empty file beside the request, by which the guest stops it and removes both files."""
        self._offsets.pop(request_id, None)
        with suppress(OSError, ShareError):
            self._folder.write(f"requests/{request_id}.cancel", b"", mode=0o600)

    def forget(self, request_id: str) -> None:
        """Remove the request and its stream.

        The request is removed first, because a guest that restarts takes a request without a stream for a new one.
        """
        self._offsets.pop(request_id, None)
        self._folder.remove(f"requests/{request_id}.json")
        self._folder.remove(f"streams/{request_id}.log")

    def close(self) -> None:
        """Close the share."""
        self._folder.close()

    def _write(self, path: str, value: Mapping[str, Any]) -> None:
        try:
            self._folder.write(path, json.dumps(value).encode(), mode=0o600)
        except (TypeError, ValueError, RecursionError) as cause:
            raise UsageError(f"message to the guest cannot be written as JSON: {cause}") from cause
        except OSError as cause:
            raise HostError(f"{path}: cannot be written into the share: {cause.strerror}") from cause
