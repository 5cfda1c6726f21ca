"""One program on a terminal of a running machine, seen from the host.

    with vm.terminal(["vi", "notes"], columns=100, rows=30) as session:
        session.write(b"ihello")
        screen = session.read(timeout=5.0)

The terminal itself is a virtio console of the guest; a virtio-serial port beside it carries messages, one JSON object
per line: to the guest ``start`` and ``resize``, from it ``ready``, ``started``, ``exit`` and ``error``
(docs/reference/agentd.md).

Nothing makes a console of QEMU wait for its reader (:data:`imgkit.vm.qemu.hotplug.PIPE_BYTES`). So a thread reads
it all the time, and keeps up to 4 MiB, of which the oldest part is dropped if nobody takes it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imgkit.errors import GuestError
from imgkit.vm.agent.protocol import parse_object
from imgkit.vm.qemu.hotplug import ConsolePipes

MAX_KEPT = 4 << 20
"""Bytes of output that are kept for a reader that is slow."""
MAX_TYPED = 1 << 20
"""Bytes of input that are kept for a guest that reads nothing. More is dropped, as a terminal does."""
_MAX_LINE = 1 << 16  # bytes of one message of the guest
_CHUNK = 1 << 18


@dataclass(frozen=True)
class SessionEnd:
    """How the program of a session has ended.

    Attributes:
        exit_code: its exit status; None if a signal ended it.
        signal: the name of that signal, "SIGKILL"; None otherwise.
    """

    exit_code: int | None
    signal: str | None


def start_message(
    command: Sequence[str] | None,
    *,
    root: bool,
    columns: int,
    rows: int,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    mounts: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Return the message that begins a session.

    Args:
        command: the program and its arguments; None is a login shell.
        root: whether it runs as root, or as the agent's user with the rights and the environment of a request.
        columns, rows: size of the terminal, 1 to 9999.
        env: further variables, TERM for example.
        cwd: folder to start in, for the agent's user.
        mounts: shares to mount, as in a request.
    """
    message: dict[str, Any] = {"type": "start", "root": root, "columns": columns, "rows": rows}
    optional = {"command": None if command is None else list(command), "env": env, "cwd": cwd, "mounts": mounts}
    return {**message, **{name: value for name, value in optional.items() if value is not None}}


class ControlPort:
    """The messages of one session: lines of JSON over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._pending = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            GuestError: the guest does not take it.
        """
        try:
            self.connection.settimeout(5.0)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as cause:
            raise GuestError(f"the session does not listen: {cause}") from cause

    def receive(self, timeout: float) -> list[dict[str, Any]] | None:
        """Return the messages that come within ``timeout`` seconds; None if the other end has closed the connection.

        Lines that are no messages are skipped.
        """
        try:
            self.connection.settimeout(max(0.001, timeout))
            data = self.connection.recv(_CHUNK)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _MAX_LINE:
            return None
        return [message for line in lines if (message := _message(line)) is not None]


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except ValueError:
        return None


class GuestSession:
    """A session that the guest is ready for. It ends when it is closed, by which its programs get SIGHUP."""

    def __init__(self, control: ControlPort, console: ConsolePipes) -> None:
        self._control = control
        self._console = console
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._typed = b""
        self._started = False  # whether a program has the terminal: what comes before it, the kernel throws away
        self._typing = threading.Lock()
        self._end: SessionEnd | None = None
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._wake, self._awaken = os.pipe()  # has a byte when there is something to read, or the session is over
        self._stopped, self._stop = os.pipe()
        for descriptor in (self._wake, self._awaken):
            os.set_blocking(descriptor, False)
        self._thread = threading.Thread(target=self._follow, name="imgkit-session", daemon=True)
        self._thread.start()

    # ---- the terminal --------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is output, or the session is over; see :meth:`take`."""
        return self._wake

    def take(self) -> bytes:
        """Return the output that has come since the last call; perhaps none."""
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with self._lock:
            data, dropped = b"".join(self._kept), self._dropped
            self._kept.clear()
            self._size = self._dropped = 0
        if self._over.is_set():
            self._notify()
        return b"\r\n[imgkit: %d bytes of output were dropped here]\r\n" % dropped + data if dropped else data

    def read(self, timeout: float) -> bytes:
        """Wait for output, at most ``timeout`` seconds, and return it; empty if none came, or the session is over."""
        if not self._kept and not self._over.is_set():
            select.select([self._wake], [], [], timeout)
        return self.take()

    def write(self, data: bytes) -> None:
        """Type ``data``. A control character does what it does on a terminal: ``b"\\x03"`` interrupts a program.

        What is typed before the guest has started the program is kept until then.
        """
        with self._typing:
            self._typed = (self._typed + data)[:MAX_TYPED]
            self._pass_on()

    def _pass_on(self) -> None:
        """Write as much of the input as the console takes at once."""
        with suppress(BlockingIOError, OSError):
            while self._started and self._typed:
                self._typed = self._typed[os.write(self._console.writing, self._typed) :]

    def _begin(self) -> None:
        with self._typing:
            self._started = True
            self._pass_on()

    @property
    def holds_input(self) -> bool:
        """Whether the guest has not taken all input yet; :meth:`write` sends the rest."""
        return bool(self._typed)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of the terminal, upon which its programs get SIGWINCH."""
        with suppress(GuestError):  # the session is over
            self._control.send({"type": "resize", "columns": columns, "rows": rows})

    # ---- the end -------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the session has ended, and all of its output was taken."""
        return self._over.is_set() and not self._kept

    def wait(self, timeout: float | None = None) -> SessionEnd:
        """Wait until the program has ended.

        Raises:
            GuestError: it could not be started, it does not end in time, or the machine is gone.
        """
        if not self._over.wait(timeout):
            raise GuestError(f"the program on the terminal did not end within {timeout:g} s")
        if self._end is None:
            raise GuestError(self._failure or "the terminal is gone, and the machine with it")
        return self._end

    def close(self) -> None:
        """Close the host's ends of the terminal."""
        os.close(self._stop)
        self._thread.join(10.0)
        self._control.connection.close()
        self._console.close()
        for descriptor in (self._stopped, self._wake, self._awaken):
            os.close(descriptor)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Read output and messages until the session is over."""
        poll = select.poll()
        for descriptor in (self._console.reading, self._control.connection.fileno(), self._stopped):
            poll.register(descriptor, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if self._stopped in ready:
                    return
                open_end = self._read_console() if self._console.reading in ready else True
                if not open_end or (self._control.connection.fileno() in ready and not self._read_messages()):
                    return
        finally:
            self._read_console()  # what the program wrote before it ended
            self._over.set()
            self._notify()

    def _read_console(self) -> bool:
        """Read all output that is there. Returns False at its end."""
        while True:
            try:
                data = os.read(self._console.reading, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self._kept.append(data)
            self._size += len(data)
            while self._size > MAX_KEPT:
                oldest = self._kept.popleft()
                self._size -= len(oldest)
                self._dropped += len(oldest)
        self._notify()

    def _notify(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._awaken, b".")

    def _read_messages(self) -> bool:
        """Read the messages that are there. Returns False at the end of the session."""
        messages = self._control.receive(0.0)
        for message in messages or ():
            if message.get("type") == "started":
                self._begin()
            if message.get("type") == "exit":
                self._end = _end_of(message)
            if message.get("type") == "error":
                self._failure = str(message.get("message"))
        return messages is not None and self._end is None and self._failure is None


def _end_of(message: Mapping[str, Any]) -> SessionEnd:
    """Return how a program ended, as the guest says; a guest that says something else gets status 1."""
    code, name = message.get("exitCode"), message.get("signal")
    if isinstance(name, str) and name:
        return SessionEnd(None, name)
    return SessionEnd(code if type(code) is int and 0 <= code <= 255 else 1, None)
