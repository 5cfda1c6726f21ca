"""Run commands as root in the guest, over a port on which only images made for tests answer.

    with rootport.booted(image.disk, arch="amd64") as vm:
        assert vm.root("id -u").text == "0\\n"

The images that imgkit builds have no way to become root. A test adds a helper to its own variant of an image
(tests/guest/root-helper.js); it reads one JSON object a line from the virtio-serial port ``imgkit.root``,
``{"id", "argv", "stdin"}``, and answers ``{"id", "status", "stdout", "stderr"}`` (the streams in base64).
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from imgkit.errors import GuestError
from imgkit.vm import VM
from imgkit.vm.agent.protocol import parse_object
from imgkit.vm.qemu.argv import VmSpec
from tests import guestcoverage
from tests.vmspecs import Adapt, as_it_is

PORT = "imgkit.root"
_LIMIT = 64 << 20  # bytes of one answer
_RETRY = 1.0  # seconds between two calls while there was no answer yet: the port drops what comes before it is opened


@dataclass(frozen=True)
class RootCompleted:
    """A command that ran as root in the guest."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class Wire:
    """The two ends of the port: a pair of sockets, made anew for each QEMU that is started."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()

    def adapt(self, spec: VmSpec) -> VmSpec:
        """Give the machine the port. An earlier machine, whose emulation has failed, had another pair of sockets."""
        self.close()
        self.near, self.far = socket.socketpair()
        return replace(spec, ports=(*spec.ports, (PORT, self.far.fileno())))

    def close(self) -> None:
        """Close both ends."""
        self.near.close()
        self.far.close()


class RootedVM(VM):
    """A machine with the port."""

    port: RootPort

    def root(self, command: Sequence[str] | str, *, stdin: bytes = b"", timeout: float = 60.0) -> RootCompleted:
        """Run a command as root; a string is given to ``/bin/sh -c``.

        Raises:
            GuestError: the helper does not answer.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        return self.port.run(words, stdin=stdin, timeout=timeout)


@contextmanager
def booted(image: Any, *, adapt: Adapt = as_it_is, **options: Any) -> Iterator[RootedVM]:
    """Boot a machine with the port; the arguments are those of :meth:`VM.boot`."""
    wire = Wire()
    try:
        with RootedVM.boot(image, adapt=lambda spec: wire.adapt(adapt(spec)), **options) as vm:
            wire.far.close()  # so that the end of QEMU is the end of the stream
            vm.port = RootPort(wire.near, vm.check)
            yield vm
            guestcoverage.fetch_from(vm)
    finally:
        wire.close()


class RootPort:
    """The host's end of the port."""

    def __init__(self, connection: socket.socket, alive: Callable[[], None] = lambda: None) -> None:
        self._socket = connection
        self._alive = alive
        self._pending = bytearray()
        self._next = 0
        self._heard = False

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> RootCompleted:
        """Run ``argv`` as root and wait for its end.

        Raises:
            GuestError: no answer came in time (perhaps the image lacks the helper), or it cannot be understood.
        """
        self._next += 1
        identity = self._next
        call = {"id": identity, "argv": list(argv), "stdin": base64.b64encode(stdin).decode()}
        line = json.dumps(call).encode() + b"\n"
        deadline, again = time.monotonic() + timeout, 0.0
        while time.monotonic() < deadline:
            if time.monotonic() >= again:  # the helper runs an id once, however often it is asked
                self._send(line, deadline)
                again = float("inf") if self._heard else time.monotonic() + _RETRY
            answer = self._answer(identity)
            if answer is not None:
                return answer
            self._alive()
        raise GuestError(f"{argv[0]}: no answer from the guest's root helper within {timeout:g} s")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, line: bytes, deadline: float) -> None:
        self._socket.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            self._socket.sendall(line)
        except OSError as cause:
            raise GuestError(f"the guest's root helper does not listen: {cause}") from cause

    def _answer(self, identity: int) -> RootCompleted | None:
        """Return the answer if it comes within a tenth of a second, else None; answers to other calls are skipped."""
        self._socket.settimeout(0.1)
        try:
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            return None
        except OSError as cause:
            raise GuestError(f"the guest's root helper is gone: {cause}") from cause
        self._pending += data
        if not data or len(self._pending) > _LIMIT:
            raise GuestError("the guest's root helper is gone" if not data else "answer of the root helper is too long")
        *lines, rest = bytes(self._pending).split(b"\n") if b"\n" in data else [bytes(self._pending)]
        self._pending = bytearray(rest)
        for line in lines:
            self._heard = True
            completed = _completed(line, identity)
            if completed is not None:
                return completed
        return None


def _completed(line: bytes, identity: int) -> RootCompleted | None:
    try:
        values = parse_object(line)
        if values.get("id") != identity:
            return None
        streams = [base64.b64decode(values.get(name) or "", validate=True) for name in ("stdout", "stderr")]
        return RootCompleted(int(values["status"]), *streams)
    except (ValueError, TypeError, KeyError) as cause:
        raise GuestError(f"the guest's root helper answered nonsense: {line[:80]!r}") from cause
