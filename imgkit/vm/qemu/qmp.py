"""A small client of QEMU's control protocol (QMP: one JSON object per line), for powering off and for liveness."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_LIMIT = 1 << 20  # bytes of one answer


class QmpError(Exception):
    """The control connection is closed or silent, QEMU refused a command, or its answer is not QMP."""


class Qmp:
    """A client of QEMU's control protocol on a connected socket. It skips events, and every command has a timeout.

    Several threads may use it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._pending = b""
        self._ready = False
        self._lock = threading.Lock()

    def execute(self, command: str, *, timeout: float = 5.0, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """Run a command and return its answer. QEMU gets copies of ``descriptors`` with it.

        Raises:
            QmpError: no answer came within ``timeout`` seconds, the connection is closed, or QEMU refused the command.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            if not self._ready:
                self._line(deadline)  # the greeting
                self._command("qmp_capabilities", {}, deadline)
                self._ready = True
            return self._command(command, arguments, deadline, descriptors)

    def _command(
        self, command: str, arguments: dict[str, Any], deadline: float, descriptors: Sequence[int] = ()
    ) -> Any:
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            data = json.dumps(message).encode() + b"\n"
            if descriptors:  # they go with the first byte (unix(7))
                socket.send_fds(self._socket, [data[:1]], list(descriptors))
                data = data[1:]
            self._socket.sendall(data)
        except OSError as cause:
            raise QmpError(f"{command}: {cause}") from cause
        while True:
            answer = self._line(deadline)
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._pending:
            try:
                self._socket.settimeout(max(0.01, deadline - time.monotonic()))
                data = self._socket.recv(65536)
            except OSError as cause:
                raise QmpError(str(cause) or "no answer in time") from cause
            if not data or len(self._pending) > _LIMIT:
                raise QmpError("connection closed" if not data else "answer too long")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as cause:
            raise QmpError("answer is not JSON") from cause
        if not isinstance(answer, dict):
            raise QmpError("answer is no object")
        return answer

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.close()
