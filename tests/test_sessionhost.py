"""Sessions on a machine, in steps: the port, the guest's readiness, the console, the end."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from imgkit.errors import GuestError
from imgkit.vm.failures import QemuDiedError
from imgkit.vm.sessions import sessionhost
from imgkit.vm.sessions.guestsession import start_message
from imgkit.vm.sessions.sessionhost import SessionHost
from tests.test_hotplug import FakeQemu

START = start_message(None, root=False, columns=80, rows=24)


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    fake = FakeQemu()
    yield fake
    fake.close()


def answer(qemu: FakeQemu, messages: Sequence[dict[str, Any]], heard: list[Any]) -> threading.Thread:
    """Answer as agentd does, on the port that is plugged in next."""

    def run() -> None:
        while not qemu.descriptors:
            pass
        with socket.socket(fileno=os.dup(qemu.descriptors[0])) as port:
            heard.append(json.loads(port.recv(65536)))
            for message in messages:
                port.sendall(json.dumps(message).encode() + b"\n")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_the_console_is_plugged_in_when_the_guest_is_ready(qemu: FakeQemu) -> None:
    heard: list[Any] = []
    thread = answer(qemu, [{"type": "other"}, {"type": "ready"}], heard)
    host = SessionHost(qemu.qmp, lambda: None)
    opened = host.open(START)
    thread.join(5)
    assert heard == [START]
    assert opened.name == "1"
    added = [call["name"] for call in qemu.calls if call["execute"] == "device_add"]
    assert added == ["imgkit.session.1", "imgkit.console.1"]
    host.close("1")
    host.close("1")
    removed = [call["id"] for call in qemu.calls if call["execute"] == "device_del"]
    assert removed == ["device.imgkit.console.1", "device.imgkit.session.1"], "agentd expects this order"
    with closing(opened.control.connection):
        opened.console.close()


def test_names_are_never_used_again(qemu: FakeQemu) -> None:
    host = SessionHost(qemu.qmp, lambda: None)
    qemu.refuse = {"chardev-add": "no"}
    for _ in range(2):
        with pytest.raises(GuestError, match=r"^no terminal can be opened: chardev-add: \{'desc': 'no'\}$"):
            host.open(START)
    assert [call["fdname"] for call in qemu.calls if call["execute"] == "getfd"] == [
        "imgkit.session.1",
        "imgkit.session.2",
    ]


def test_a_guest_that_refuses(qemu: FakeQemu) -> None:
    answer(qemu, [{"type": "error", "message": "AGENT_USER x does not exist in this image"}], [])
    with pytest.raises(GuestError, match=r"^AGENT_USER x does not exist in this image$"):
        SessionHost(qemu.qmp, lambda: None).open(START)
    assert [call["execute"] for call in qemu.calls][-2:] == ["device_del", "chardev-remove"]
    assert "add-fd" not in [call["execute"] for call in qemu.calls]


def test_a_guest_that_does_not_answer(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessionhost, "_READY_TIMEOUT", 0.3)
    with pytest.raises(GuestError, match=r"^the guest opens no terminal: no answer within 0\.3 s$"):
        SessionHost(qemu.qmp, lambda: None).open(START)
    assert qemu.calls[-1]["execute"] == "chardev-remove"


def test_a_machine_that_fails_meanwhile(qemu: FakeQemu) -> None:
    def dead() -> None:
        raise QemuDiedError("QEMU ended")

    with pytest.raises(QemuDiedError):
        SessionHost(qemu.qmp, dead).open(START)
    assert qemu.calls[-1]["execute"] == "chardev-remove"


def test_a_port_that_is_closed(qemu: FakeQemu) -> None:
    def hang_up() -> None:
        for descriptor in qemu.descriptors:
            with socket.socket(fileno=os.dup(descriptor)) as port:
                port.shutdown(socket.SHUT_RDWR)

    with pytest.raises(GuestError, match=r"^the machine is gone$"):
        SessionHost(qemu.qmp, hang_up).open(START)


def test_a_console_that_qemu_refuses(qemu: FakeQemu) -> None:
    answer(qemu, [{"type": "ready"}], [])
    qemu.refuse = {"add-fd": "no more"}
    with pytest.raises(GuestError, match=r"^no terminal can be opened: add-fd"):
        SessionHost(qemu.qmp, lambda: None).open(START)
    assert [call["execute"] for call in qemu.calls][-2:] == ["device_del", "chardev-remove"]


def test_ending_a_session_of_a_machine_that_is_gone_is_no_failure(qemu: FakeQemu) -> None:
    answer(qemu, [{"type": "ready"}], [])
    host = SessionHost(qemu.qmp, lambda: None)
    opened = host.open(START)
    qemu.refuse = {"device_del": "gone"}
    host.close(opened.name)
    opened.control.connection.close()
    opened.console.close()
