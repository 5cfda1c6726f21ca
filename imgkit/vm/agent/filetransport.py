"""The agentd contract over files in the ``ipc`` share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imgkit.errors import GuestError, HostError, UsageError
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Heartbeat, parse_heartbeat
from imgkit.vm.shares.folder import SharedFolder, ShareError

FOLDERS = ("requests", "streams", "responses")
_CHUNK = 1 << 20


class FileTransport:
    """A transport (:class:`imgkit.vm.agent.requests.Transport`) over a folder that is the guest's
    ``/workspace/ipc``."""

    def __init__(self, folder: SharedFolder) -> None:
        """Make the folder tree; a heartbeat of an earlier machine is removed, so that none can be taken for new."""
        self._folder = folder
        self._offsets: dict[str, int] = {}
        folder.remove("heartbeat")
        for name in FOLDERS:
            folder.mkdir(name)

    def heartbeat(self) -> Heartbeat | None:
        """What the file says, if it is there and whole."""
        with suppress(ShareError, OSError):  # a link or a folder in its place is no heartbeat
            data = self._folder.read("heartbeat", limit=MAX_HEARTBEAT)
            return parse_heartbeat(data) if data else None
        return None

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Raises HostError or ShareError if the request cannot be written."""
        self._offsets[request_id] = 0
        self._write(f"requests/{request_id}.json", request)

    def read(self, request_id: str) -> bytes:
        """Raises GuestError when the guest shortened the stream or put something else in its place."""
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
        self._write(f"responses/{question_id}.json", answer)

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        self._write(f"responses/{question_id}.host-tool.json", answer)

    def cancel(self, request_id: str) -> None:
        """An empty file beside the request; the guest removes both."""
        self._offsets.pop(request_id, None)
        with suppress(OSError, ShareError):
            self._folder.write(f"requests/{request_id}.cancel", b"", mode=0o600)

    def forget(self, request_id: str) -> None:
        """The request goes before its stream: a guest that restarts between the two must not take it for a new one."""
        self._offsets.pop(request_id, None)
        self._folder.remove(f"requests/{request_id}.json")
        self._folder.remove(f"streams/{request_id}.log")

    def close(self) -> None:
        self._folder.close()

    def _write(self, path: str, value: Mapping[str, Any]) -> None:
        try:
            self._folder.write(path, json.dumps(value).encode(), mode=0o600)
        except (TypeError, ValueError, RecursionError) as cause:
            raise UsageError(f"message to the guest cannot be written as JSON: {cause}") from cause
        except OSError as cause:
            raise HostError(f"{path}: cannot be written into the share: {cause.strerror}") from cause
