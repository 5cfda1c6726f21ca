"""Ports that are plugged into a running machine, with a fake QEMU that takes the descriptors."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from imgkit.vm.qemu import hotplug
from imgkit.vm.qemu.hotplug import MAX_PORTS, PluggedPorts
from imgkit.vm.qemu.qmp import Qmp, QmpError
from tests.sessions import open_descriptors


class FakeQemu:
    """Answers commands as QEMU does. ``refuse`` maps commands to errors, ``busy`` is how often a backend is busy."""

    def __init__(self) -> None:
        near, self._socket = socket.socketpair()
        self.qmp = Qmp(near)
        self.calls: list[dict[str, Any]] = []
        self.descriptors: list[int] = []
        self.refuse: dict[str, str] = {}
        self.busy = 0
        self._sets = 7
        self._socket.sendall(b'{"QMP": {}}\n')
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.qmp.close()
        self._thread.join(5)
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def _serve(self) -> None:
        pending = b""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 4)
            self.descriptors += descriptors
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._socket.sendall(json.dumps(self._answer(json.loads(line))).encode() + b"\n")

    def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
        command = call["execute"]
        if command != "qmp_capabilities":
            self.calls.append({"execute": command, **call.get("arguments", {})})
        if command in self.refuse:
            return {"error": {"desc": self.refuse[command]}}
        if command == "chardev-remove" and self.busy:
            self.busy -= 1
            return {"error": {"desc": "Chardev 'x' is busy"}}
        if command == "add-fd":
            self._sets += 1
            return {"return": {"fdset-id": self._sets, "fd": 1}}
        return {"return": {}}


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    fake = FakeQemu()
    yield fake
    fake.close()


def test_a_port_is_a_socket_of_which_qemu_has_the_other_end(qemu: FakeQemu) -> None:
    ports = PluggedPorts(qemu.qmp)
    with ports.plug_port("p.1") as near:
        backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "p.1"}}, "server": False}}
        device = {"driver": "virtserialport", "bus": "serial0.0", "chardev": "p.1", "id": "device.p.1", "name": "p.1"}
        assert qemu.calls == [
            {"execute": "getfd", "fdname": "p.1"},
            {"execute": "chardev-add", "id": "p.1", "backend": backend},
            {"execute": "device_add", **device, "nr": 30},
        ]
        (far,) = qemu.descriptors
        near.sendall(b"hello")
        assert os.read(far, 100) == b"hello"


def test_a_console_is_two_pipes(qemu: FakeQemu) -> None:
    pipes = PluggedPorts(qemu.qmp).plug_console("c.1")
    backend = {"type": "file", "data": {"in": "/dev/fdset/8", "out": "/dev/fdset/9", "append": True}}
    device = {"driver": "virtconsole", "bus": "serial0.0", "chardev": "c.1", "id": "device.c.1", "name": "c.1"}
    assert qemu.calls == [
        {"execute": "add-fd"},
        {"execute": "add-fd"},
        {"execute": "chardev-add", "id": "c.1", "backend": backend},
        {"execute": "device_add", **device, "nr": 30},
        {"execute": "remove-fd", "fdset-id": 8},
        {"execute": "remove-fd", "fdset-id": 9},
    ]
    guest_in, guest_out = qemu.descriptors
    os.write(pipes.writing, b"typed")
    assert os.read(guest_in, 100) == b"typed"
    os.write(guest_out, b"shown")
    assert os.read(pipes.reading, 100) == b"shown"
    with pytest.raises(BlockingIOError):
        os.read(pipes.reading, 100)
    if sys.platform == "linux":
        assert fcntl.fcntl(pipes.reading, fcntl.F_GETPIPE_SZ) == hotplug.PIPE_BYTES
    pipes.close()
    pipes.close()


def test_ports_get_numbers_of_their_own_and_give_them_back(qemu: FakeQemu) -> None:
    ports = PluggedPorts(qemu.qmp)
    sockets = [ports.plug_port(f"p.{number}") for number in range(MAX_PORTS)]
    numbers = [call["nr"] for call in qemu.calls if call["execute"] == "device_add"]
    assert numbers == list(range(30, 14, -1))
    with pytest.raises(QmpError, match=r"^16 ports are in use$"):
        ports.plug_port("one.more")
    qemu.calls.clear()
    ports.unplug("p.3")
    assert qemu.calls == [
        {"execute": "device_del", "id": "device.p.3"},
        {"execute": "chardev-remove", "id": "p.3"},
    ]
    ports.unplug("p.3")
    assert len(qemu.calls) == 2, "what is not there is not unplugged"
    sockets.append(ports.plug_port("new"))
    assert qemu.calls[-1]["nr"] == 27
    for near in sockets:
        near.close()


def test_a_backend_that_is_busy_is_removed_a_moment_later(qemu: FakeQemu) -> None:
    ports = PluggedPorts(qemu.qmp)
    ports.plug_port("p").close()
    qemu.busy = 3
    ports.unplug("p")
    assert [call["execute"] for call in qemu.calls[-4:]] == ["chardev-remove"] * 4


def test_a_backend_that_stays_busy_is_an_error(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "_REMOVAL_TIMEOUT", 0.1)
    ports = PluggedPorts(qemu.qmp)
    ports.plug_port("p").close()
    qemu.busy = 10_000
    with pytest.raises(QmpError, match="busy"):
        ports.unplug("p")


@pytest.mark.parametrize("refused", ["getfd", "chardev-add", "device_add"])
def test_a_refusal_leaves_nothing(qemu: FakeQemu, refused: str) -> None:
    ports = PluggedPorts(qemu.qmp)
    qemu.refuse = {refused: "not now"}
    with pytest.raises(QmpError, match="not now"):
        ports.plug_port("p")
    removed = [call for call in qemu.calls if call["execute"] == "chardev-remove"]
    assert removed == ([{"execute": "chardev-remove", "id": "p"}] if refused == "device_add" else [])
    assert ports._numbers == {}


@pytest.mark.parametrize("refused", ["add-fd", "chardev-add", "device_add"])
def test_a_console_that_is_refused_leaves_no_descriptors(qemu: FakeQemu, refused: str) -> None:
    before = open_descriptors()
    qemu.refuse = {refused: "not now"}
    with pytest.raises(QmpError, match="not now"):
        PluggedPorts(qemu.qmp).plug_console("c")
    for descriptor in qemu.descriptors:
        os.close(descriptor)
    qemu.descriptors.clear()
    assert open_descriptors() == before
    sets = [call["fdset-id"] for call in qemu.calls if call["execute"] == "remove-fd"]
    assert sets == ([] if refused == "add-fd" else [8, 9])
