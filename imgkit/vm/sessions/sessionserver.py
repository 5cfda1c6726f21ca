"""Sessions for other processes of the same user: the process of the machine opens them and hands over their ends.

    with announced(image) as listener, serving(listener, opener): ...        # in the machine's process
    with attached(machine, {"root": False, "columns": 80, "rows": 24}) as session: ...      # in the other one

A client connects to the machine's socket, sends one line of JSON, and gets one line back, with three descriptors: the
session's messages, and the two ends of its terminal. It then talks to QEMU directly. The session ends with the
connection.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, Protocol

from imgkit.errors import GuestError, HostError, ImgkitError
from imgkit.vm.agent.protocol import parse_object
from imgkit.vm.qemu.hotplug import ConsolePipes
from imgkit.vm.sessions.guestsession import ControlPort, GuestSession
from imgkit.vm.sessions.runningmachines import RunningMachine
from imgkit.vm.sessions.sessionhost import OpenedSession

log = logging.getLogger("imgkit.vm")

_MAX_LINE = 1 << 20  # bytes of a request or an answer
_POLL = 0.2  # seconds between two looks whether the server is to end
_REQUEST_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 120.0  # more than the machine's process waits for the guest


class Opener(Protocol):
    """Opens and ends the sessions of one machine."""

    def open(self, wanted: Mapping[str, Any]) -> OpenedSession:
        """Open a session with these arguments of :meth:`imgkit.vm.running.VM.terminal`."""

    def close(self, name: str) -> None:
        """End a session."""


@contextmanager
def serving(listener: socket.socket, opener: Opener) -> Iterator[None]:
    """Open sessions for those who connect to ``listener``, for the length of the block, in threads."""
    server = _Server(listener, opener)
    thread = threading.Thread(target=server.accept, name="imgkit-sessions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


class _Server:
    def __init__(self, listener: socket.socket, opener: Opener) -> None:
        self._listener = listener
        self._opener = opener
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def accept(self) -> None:
        """Accept connections until the server is stopped."""
        self._listener.settimeout(_POLL)
        while not self._stopping.is_set():
            try:
                connection = self._listener.accept()[0]
            except OSError:  # also a timeout
                continue
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="imgkit-client", daemon=True)
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]
            thread.start()

    def stop(self) -> None:
        """End all sessions and accept no more."""
        self._stopping.set()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_REQUEST_TIMEOUT)

    def _serve(self, connection: socket.socket) -> None:
        """Serve one client: open a session, and end it when the client closes its connection."""
        opened: OpenedSession | None = None
        try:
            with connection:
                opened = self._open(connection)
                if opened is not None:
                    connection.settimeout(None)
                    connection.recv(1)  # the client sends nothing more: this is the end
        except OSError as cause:
            log.debug("a client of the machine has failed: %s", cause)
        finally:
            if opened is not None:
                self._opener.close(opened.name)
            self._connections.discard(connection)

    def _open(self, connection: socket.socket) -> OpenedSession | None:
        connection.settimeout(_REQUEST_TIMEOUT)
        if not _is_own(connection):
            return None
        try:
            opened = self._opener.open(parse_object(_receive_line(connection)))
        except ImgkitError as error:
            _send_line(connection, {"error": error.message, "hint": error.hint})
            return None
        except (TypeError, ValueError) as cause:
            _send_line(connection, {"error": f"the request is not understood: {cause}", "hint": None})
            return None
        try:
            ends = [opened.control.connection.fileno(), opened.console.reading, opened.console.writing]
            socket.send_fds(connection, [b"{}\n"], ends)
        finally:  # from here on they belong to the client
            opened.control.connection.close()
            opened.console.close()
        return opened


def _is_own(connection: socket.socket) -> bool:
    """Return whether the other end belongs to this user or root, which the folder of the socket ensures as well."""
    if sys.platform == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return struct.unpack("3i", credentials)[1] in (0, os.geteuid())
    else:  # noqa: RET505 - mypy knows this to be the other platforms
        return True


@contextmanager
def attached(machine: RunningMachine, wanted: Mapping[str, Any]) -> Iterator[GuestSession]:
    """Open a session on a machine of another process, for the length of the block.

    Args:
        machine: the machine.
        wanted: the arguments of :meth:`imgkit.vm.running.VM.terminal`.

    Raises:
        HostError: the process does not answer.
        GuestError: the guest opens no terminal.
    """
    with machine.connect() as connection:
        control, console = _ask(connection, machine, wanted)
        with closing(GuestSession(control, console)) as session:
            yield session


def _ask(
    connection: socket.socket, machine: RunningMachine, wanted: Mapping[str, Any]
) -> tuple[ControlPort, ConsolePipes]:
    """Ask for a session, and return its ends.

    Raises:
        HostError: the process does not answer.
        GuestError: it refuses.
    """
    try:
        connection.settimeout(_ANSWER_TIMEOUT)
        _send_line(connection, wanted)
        data, descriptors, _, _ = socket.recv_fds(connection, _MAX_LINE, 3)
        answer = parse_object(data)
    except (OSError, ValueError) as cause:
        raise HostError(f"the machine of process {machine.pid} does not answer: {cause}") from cause
    if len(descriptors) == 3:
        control = socket.socket(fileno=descriptors[0])
        connection.settimeout(None)
        return ControlPort(control), ConsolePipes(*descriptors[1:])
    for descriptor in descriptors:
        os.close(descriptor)
    hint = answer.get("hint")
    message = str(answer.get("error", "no terminal was opened"))
    raise GuestError(message, hint=hint if isinstance(hint, str) else None)


def _send_line(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive_line(connection: socket.socket) -> bytes:
    """Receive one line.

    Raises:
        ValueError: it is too long, or does not end.
        OSError: nothing comes in time.
    """
    data = b""
    while not data.endswith(b"\n"):
        received = connection.recv(65536)
        data += received
        if not received or len(data) > _MAX_LINE:
            raise ValueError("no whole line")
    return data
