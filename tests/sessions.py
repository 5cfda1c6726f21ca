"""The guest's side of sessions for tests: what agentd and the kernel do with the ends that QEMU has."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imgkit.errors import GuestError
from imgkit.vm.qemu.hotplug import ConsolePipes
from imgkit.vm.sessions.guestsession import ControlPort, GuestSession
from imgkit.vm.sessions.sessionhost import OpenedSession


def open_descriptors() -> int:
    """Return how many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class FakeSession:
    """Both sides of a session. ``session`` is the host's; :meth:`shows`, :meth:`says` and :meth:`heard` the guest's."""

    def __init__(self, *, started: bool = True) -> None:
        near, self.port = socket.socketpair()
        self.guest_in, writing = os.pipe()
        reading, self.guest_out = os.pipe()
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        self.control, self.console = ControlPort(near), ConsolePipes(reading, writing)
        self._open = {self.guest_in, self.guest_out}
        if started:
            self.says(type="started")

    def session(self) -> GuestSession:
        return GuestSession(self.control, self.console)

    def shows(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.guest_out, data) :]

    def says(self, **message: Any) -> None:
        self.port.sendall(json.dumps(message).encode() + b"\n")

    def typed(self, count: int = 4096) -> bytes:
        return os.read(self.guest_in, count)

    def heard(self) -> list[dict[str, Any]]:
        self.port.settimeout(5)
        return [json.loads(line) for line in self.port.recv(65536).splitlines()]

    def unplug(self) -> None:
        """Take both ports out of the machine, or end it."""
        self.port.close()
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def close(self) -> None:
        self.unplug()


class FakeOpener:
    """Opens sessions without a machine: ``sessions`` are those that were opened, ``closed`` names those that ended."""

    def __init__(
        self, behave: Callable[[FakeSession, Mapping[str, Any]], None] = lambda _session, _wanted: None
    ) -> None:
        self.sessions: list[FakeSession] = []
        self.wanted: list[Mapping[str, Any]] = []
        self.closed: list[str] = []
        self.refusal: GuestError | None = None
        self.over = threading.Event()
        self._behave = behave

    def open(self, wanted: Mapping[str, Any]) -> OpenedSession:
        self.wanted.append(wanted)
        if self.refusal is not None:
            raise self.refusal
        session = FakeSession()
        self.sessions.append(session)
        self._behave(session, wanted)
        return OpenedSession(str(len(self.sessions)), session.control, session.console)

    def close(self, name: str) -> None:
        self.sessions[int(name) - 1].unplug()
        self.closed.append(name)
        self.over.set()
