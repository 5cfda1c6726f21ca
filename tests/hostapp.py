"""Implement the host side of the agentd contract as the original application does, from the contract's page alone.

It shares nothing with :mod:`imgkit.vm`, so that two implementations check the guest. Files are written slowly and not
atomically; streams are read while they grow. (:func:`tests.vmspecs.host_app` has imgkit start QEMU in the same way.)
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.quick import QUICK

READY = 180.0
POLL = 0.1
TRIES = 3
Event = dict[str, Any]
App = TypeVar("App")

BINARY = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
EMULATION = re.compile(r"Oops: int3: |IO-APIC \+ timer doesn't work")
"""Messages on the console when QEMU's emulation of two CPUs has crashed the guest's kernel, which happens rarely."""
COMMAND_LINE = f"root=/dev/vda2 rootfstype=ext4 rw console=ttyAMA0,115200 init=/sbin/init quiet {' '.join(QUICK)}"


def arguments(arch: str, image: Path, console: Path, shares: Mapping[str, Path], kernel: Sequence[Path]) -> list[str]:
    """Return QEMU's arguments, as the contract's first section lists them, for a machine with one CPU.

    The application's has two, whose emulation takes half as long again; tests/test_boots.py boots that one.
    """
    words = [BINARY[arch], "-accel", "tcg,thread=multi", "-m", "4096", "-smp", "1", "-nographic", "-snapshot"]
    if arch == "arm64":  # emulation needs a model; the application's default would be a 32-bit one
        words += ["-machine", "virt", "-cpu", "cortex-a72"]
        words += ["-kernel", str(kernel[0]), "-initrd", str(kernel[1]), "-append", COMMAND_LINE]
    words += ["-serial", f"file:{console}"]
    words += ["-drive", f"file={image},if=virtio,format=qcow2"]
    words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]
    for tag, path in shares.items():
        words += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none"]
    return words


def real_request(work: Path, prompt: str, *, skills: bool = True, **more: Any) -> Event:
    """Return a request with everything that the application sends; ``more`` replaces keys of it.

    ``skills`` adds the share that it has on macOS and Linux. ``mounts`` always names the request share itself, which is
    mounted already.
    """
    mounts = {
        "work": {"tag": "work", "guestPath": "/workspace/project"},
        "ipc": {"tag": "ipc", "guestPath": "/workspace/ipc"},
    }
    if skills:
        mounts["skillsRoot0"] = {"tag": "skills0", "guestPath": "/workspace/skills"}
    environment = {
        "TZ": "Europe/Berlin",
        "SKILLS_ROOT": "/workspace/skills",
        "LOBSTERAI_SKILLS_ROOT": "/workspace/skills",
        "WEB_SEARCH_SERVER": "http://10.0.2.2:8923",
        "NO_PROXY": "localhost,127.0.0.1,10.0.2.2",
        "ANTHROPIC_API_KEY": "a key that nobody has",
        "ANTHROPIC_BASE_URL": "http://10.0.2.2:8924",
        "ANTHROPIC_MODEL": "a model",
    }
    body: Event = {
        "prompt": prompt,
        "cwd": "/workspace/project",
        "workspaceRoot": "/workspace/project",
        "hostWorkspaceRoot": str(work),
        "memoryEnabled": True,
        "autoApprove": False,
        "confirmationMode": "modal",
        "systemPrompt": "be brief",
        "env": environment,
        "mounts": mounts,
        **more,
    }
    body["env"] = {**environment, **more.get("env", {})}
    return body


ATTACHMENT = {"name": "dot.png", "mimeType": "image/png", "base64Data": base64.b64encode(b"\x89PNG").decode()}


class EmulationError(Exception):
    """QEMU's emulation crashed the guest's kernel."""


@dataclass
class Machine:
    """QEMU, its console and what it shares."""

    child: subprocess.Popen[bytes]
    console: Path

    def tail(self) -> str:
        """Return the end of the console, which the application shows when a boot fails."""
        return self.console.read_text(errors="replace")[-3000:]

    def wait(self, what: str, look: Callable[[], Any], seconds: float) -> Any:
        """Poll until ``look`` returns something true, and return that; fail at once if QEMU has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            result = look()
            if result:
                return result
            assert self.child.poll() is None, f"QEMU ended: {self.tail()}"
            if EMULATION.search(self.console.read_text(errors="replace")):
                raise EmulationError(f"the emulation crashed the guest's kernel: {self.tail()}")
            time.sleep(POLL)
        raise AssertionError(f"waited {seconds:g} s for {what}; console: {self.tail()}")


@contextmanager
def started(
    argv: Sequence[str], console: Path, descriptors: Sequence[int] = (), user: tuple[int, int] | None = None
) -> Iterator[Machine]:
    """Run QEMU for the length of the block; as ``user`` (uid and gid) if it is not None."""
    console.touch()
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "pass_fds": descriptors}
    if user is not None:
        os.chown(console, *user)
        how.update(user=user[0], group=user[1], extra_groups=[])
    child = subprocess.Popen(argv, **how)
    try:
        yield Machine(child, console)
    finally:
        child.kill()
        child.wait()


@contextmanager
def booted(
    argv: Sequence[str], console: Path, attach: Callable[[Machine, ExitStack], App], **how: Any
) -> Iterator[App]:
    """Run QEMU for the length of the block, and ``attach`` to it. If the emulation failed, it is tried again."""
    for attempt in range(1, TRIES + 1):
        with ExitStack() as stack:
            machine = stack.enter_context(started(argv, console, **how))
            try:
                app = attach(machine, stack)
            except EmulationError:
                if attempt == TRIES:
                    raise
                console.unlink()
                continue
            yield app
            return


@dataclass
class FileMode:
    """Requests over the ``ipc`` share."""

    ipc: Path
    machine: Machine
    answered: set[str] = field(default_factory=set)

    def heartbeat(self) -> Event | None:
        """Return the heartbeat, or None while there is none. It is never seen half-written."""
        path = self.ipc / "heartbeat"
        return json.loads(path.read_text()) if path.exists() else None

    def ready(self) -> bool:
        """Return True if the heartbeat means readiness: it is less than 10 s old, and ipcMounted is not false."""
        beat = self.heartbeat()
        if beat is None or beat["ipcMounted"] is False:
            return False
        return bool(time.time() * 1000 - beat["timestamp"] < 10_000)

    def send(self, body: Event | str, *, identity: str | None = None, pause: float = 0.0) -> str:
        """Write a request, with ``pause`` seconds in the middle of it, and return its id."""
        identity = identity or str(uuid.uuid4())
        text = body if isinstance(body, str) else json.dumps(body)
        write_slowly(self.ipc / "requests" / f"{identity}.json", text, pause)
        return identity

    def stream(self, identity: str) -> list[Event]:
        """Return the complete lines of a stream so far; each must be an object."""
        path = self.ipc / "streams" / f"{identity}.log"
        text = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in text.split(b"\n")[:-1]]

    def results(self, identity: str) -> list[Event]:
        """Return the ``result`` events of a stream."""
        return [line["event"] for line in self.stream(identity) if is_result(line)]

    def finish(self, identity: str, seconds: float = 120) -> Event:
        """Wait for the result and for the request's file to go; there is exactly one result, and it is the last."""
        request = self.ipc / "requests" / f"{identity}.json"
        self.machine.wait(f"the result of {identity}", lambda: self.results(identity), seconds)
        self.machine.wait(f"{request} to go", lambda: not request.exists(), 60)
        lines = self.stream(identity)
        assert [is_result(line) for line in lines].count(True) == 1, lines
        assert is_result(lines[-1]), lines
        assert lines[-1]["event"]["subtype"] in ("success", "error")
        result: Event = lines[-1]["event"]
        return result

    def run(self, body: Event, seconds: float = 120, **how: Any) -> tuple[Event, bytes]:
        """Send a request and wait for its end. Return the result and what was written to standard output."""
        identity = self.send(body, **how)
        return self.finish(identity, seconds), output(self.stream(identity))

    def question(self, identity: str, kind: str) -> Event:
        """Wait for a question of this kind in the stream that has not been answered yet."""
        asked: Event = self.machine.wait(f"a {kind}", lambda: self._open(identity, kind), 60)
        self.answered.add(asked["requestId"])
        return asked

    def _open(self, identity: str, kind: str) -> Event | None:
        asked = [line for line in self.stream(identity) if line["type"] == kind]
        return next((line for line in asked if line["requestId"] not in self.answered), None)

    def answer(self, question: Event, body: Event, *, suffix: str = "", pause: float = 0.5) -> Path:
        """Write the answer in two halves, and return the file."""
        path = self.ipc / "responses" / f"{question['requestId']}{suffix}.json"
        write_slowly(path, json.dumps(body), pause)
        return path


class SerialMode:
    """The same over the virtio-serial port ``ipc.0``."""

    def __init__(self, connection: socket.socket, machine: Machine) -> None:
        self.connection, self.machine = connection, machine
        self.messages: list[Event] = []
        self._rest = b""
        connection.setblocking(False)

    def pump(self) -> None:
        """Read what has come; every line must be an object."""
        try:
            data = self.connection.recv(1 << 20)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.messages += [json.loads(line) for line in lines if line]

    def wait(self, what: str, fits: Callable[[Event], bool], seconds: float = 120) -> Event:
        """Wait for a message that ``fits``, and return it."""

        def look() -> Event | None:
            self.pump()
            return next((message for message in self.messages if fits(message)), None)

        message: Event = self.machine.wait(what, look, seconds)
        return message

    def send(self, message: Event) -> None:
        """Send one line, in two halves."""
        data = json.dumps(message).encode() + b"\n"
        self.connection.setblocking(True)
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.connection.sendall(half)
            time.sleep(0.05)
        self.connection.setblocking(False)

    def request(self, body: Event) -> str:
        """Send a request, and return its id."""
        identity = str(uuid.uuid4())
        self.send({"type": "request", "requestId": identity, "data": body})
        return identity

    def stream(self, identity: str) -> list[Event]:
        """Return the stream events of a request so far."""
        self.pump()
        lines = [message["line"] for message in self.messages if of(message, "stream", identity)]
        return [json.loads(line) for line in lines]

    def finish(self, identity: str, seconds: float = 120) -> Event:
        """Wait for the one result."""
        done = lambda: [line for line in self.stream(identity) if is_result(line)]  # noqa: E731
        (line,) = self.machine.wait(f"the result of {identity}", done, seconds)
        result: Event = line["event"]
        return result


def of(message: Event, kind: str, identity: str) -> bool:
    """Return True if a message is of this kind and request."""
    return bool(message["type"] == kind and message.get("requestId") == identity)


def write_slowly(path: Path, text: str, pause: float) -> None:
    """Write a file as a program does that knows nothing of renaming: one half, a pause, the other half."""
    data = text.encode()
    with path.open("wb", buffering=0) as sink:
        sink.write(data[: len(data) // 2])
        time.sleep(pause)
        sink.write(data[len(data) // 2 :])


def is_result(line: Event) -> bool:
    """Return True if a stream line is the result of its request."""
    return bool(line["type"] == "sdk_event" and line["event"]["type"] == "result")


def output(lines: Sequence[Event], stream: str = "stdout") -> bytes:
    """Return what the agent wrote, from the events of its stream."""
    events = [line["event"] for line in lines if line["type"] == "sdk_event" and line["event"]["type"] == "output"]
    pieces = [event for event in events if event["stream"] == stream]
    return b"".join(
        base64.b64decode(piece["data"]) if piece.get("encoding") == "base64" else piece["data"].encode()
        for piece in pieces
    )


@contextmanager
def file_mode(
    arch: str,
    image: Path,
    folder: Path,
    shares: Mapping[str, Path],
    *,
    kernel: Sequence[Path] = (),
    extra: Sequence[str] = (),
    descriptors: Sequence[int] = (),
    user: tuple[int, int] | None = None,
    timeout: float = READY,
) -> Iterator[FileMode]:
    """Create the folder tree, start the machine and wait until it is ready. ``user`` owns the tree and runs QEMU."""
    ipc = folder / "ipc"
    for name in ("requests", "streams", "responses"):
        (ipc / name).mkdir(parents=True)
    if user is not None:
        for path in (ipc, *ipc.iterdir()):
            os.chown(path, *user)
    argv = arguments(arch, image, folder / "console.log", {"ipc": ipc, **shares}, kernel)

    def attach(machine: Machine, _: ExitStack) -> FileMode:
        app = FileMode(ipc, machine)
        machine.wait("a heartbeat", app.ready, timeout)
        return app

    with booted([*argv, *extra], folder / "console.log", attach, descriptors=descriptors, user=user) as app:
        yield app


@contextmanager
def serial_mode(
    arch: str, image: Path, folder: Path, *, kernel: Sequence[Path] = (), timeout: float = READY
) -> Iterator[SerialMode]:
    """Start the machine as on a host without 9p, and wait for a heartbeat on the port."""
    with tempfile.TemporaryDirectory() as short:  # the name of a socket has 107 bytes at most
        path = Path(short) / "ipc"
        extra = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=ipc,path={path},server=on,wait=off"]
        extra += ["-device", "virtserialport,chardev=ipc,name=ipc.0"]
        argv = [*arguments(arch, image, folder / "console.log", {}, kernel), *extra]

        def attach(machine: Machine, stack: ExitStack) -> SerialMode:
            machine.wait("the socket", path.exists, 60)
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(os.fspath(path))
            app = SerialMode(connection, machine)
            app.wait("a heartbeat", lambda message: message["type"] == "heartbeat", timeout)
            return app

        with booted(argv, folder / "console.log", attach) as app:
            yield app
