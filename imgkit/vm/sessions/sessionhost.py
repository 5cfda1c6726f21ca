"""Open sessions on a machine that this process runs: plug in their ports, and unplug them when they are over.

    host = SessionHost(running.qmp, alive=vm.check)
    session = host.open(start_message(None, root=False, columns=80, rows=24))
    ...
    host.close(session.name)

:mod:`imgkit.vm.sessions.guestsession` talks to what was opened.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imgkit.errors import GuestError
from imgkit.vm.qemu.hotplug import ConsolePipes, PluggedPorts
from imgkit.vm.qemu.qmp import Qmp, QmpError
from imgkit.vm.sessions.guestsession import ControlPort

PROTOCOL = 3
"""The version of agentd's protocol that has sessions."""
_READY_TIMEOUT = 90.0  # seconds; agentd itself waits up to 30 s for the rest of the system
_POLL = 0.2  # seconds between two looks at the machine


@dataclass(frozen=True)
class OpenedSession:
    """The host's ends of a session.

    Attributes:
        name: for :meth:`SessionHost.close`.
        control: its messages, of which ``ready`` has been read.
        console: its terminal.
    """

    name: str
    control: ControlPort
    console: ConsolePipes


class SessionHost:
    """Opens sessions on one machine, for several threads.

    Args:
        qmp: QEMU's control connection.
        alive: raises if the machine has failed.
    """

    def __init__(self, qmp: Qmp, alive: Callable[[], None]) -> None:
        self._ports = PluggedPorts(qmp)
        self._alive = alive
        self._lock = threading.Lock()
        self._count = itertools.count(1)

    def open(self, start: Mapping[str, Any]) -> OpenedSession:
        """Open a session.

        Raises:
            GuestError: the guest refuses, or does not answer, or QEMU has no more ports.
            BootError: the machine has failed.
        """
        name = str(next(self._count))
        try:
            with self._lock:
                control = ControlPort(self._ports.plug_port(_port(name)))
            try:
                control.send(start)
                self._wait_ready(control)
                with self._lock:
                    return OpenedSession(name, control, self._ports.plug_console(_console(name)))
            except BaseException:
                self.close(name)
                control.connection.close()
                raise
        except QmpError as cause:
            raise GuestError(f"no terminal can be opened: {cause}") from cause

    def _wait_ready(self, control: ControlPort) -> None:
        """Wait until the guest expects the console.

        Raises:
            GuestError: it refuses, or does not answer.
        """
        deadline = time.monotonic() + _READY_TIMEOUT
        while time.monotonic() < deadline:
            messages = control.receive(_POLL)
            if messages is None:
                raise GuestError("the machine is gone")
            for message in messages:
                if message.get("type") == "ready":
                    return
                if message.get("type") == "error":
                    raise GuestError(str(message.get("message")))
            self._alive()
        raise GuestError(f"the guest opens no terminal: no answer within {_READY_TIMEOUT:g} s")

    def close(self, name: str) -> None:
        """End a session: its programs get SIGHUP, if they still run.

        The console goes first, as agentd expects it, and no other port is plugged in between.
        """
        with self._lock:
            for port in (_console(name), _port(name)):
                with suppress(QmpError):  # the machine has ended
                    self._ports.unplug(port)


def _port(name: str) -> str:
    return f"imgkit.session.{name}"


def _console(name: str) -> str:
    return f"imgkit.console.{name}"
