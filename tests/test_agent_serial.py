"""The agentd contract over a virtio-serial port, and commands as root, against a guest that is a socket."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent import serialtransport
from imgkit.vm.agent.callbacks import HostToolAnswer
from imgkit.vm.agent.filesync import CHUNK, MAX_FILE
from imgkit.vm.agent.protocol import MAX_HEARTBEAT, Output, PermissionRequest
from imgkit.vm.agent.requests import compose
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.shares.sharedfolder import ShareError
from tests.files import noise
from tests.rootport import RootPort
from tests.test_agent_client import NEARLY, RESULT, ask, output

# ---- serial mode -------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[tuple[SerialTransport, socket.socket]]:
    host, guest = socket.socketpair()
    mode = SerialTransport(host)
    guest.settimeout(5)
    yield mode, guest
    mode.close()
    guest.close()


def tell(guest: socket.socket, *messages: dict[str, Any] | bytes) -> None:
    for message in messages:
        guest.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")


def hear(guest: socket.socket) -> Any:
    line = b""
    while not line.endswith(b"\n"):
        line += guest.recv(1)
    return json.loads(line)


def test_serial_heartbeat(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    assert mode.heartbeat() is None
    tell(guest, b'{"type":"heartbeat","timest')
    assert mode.heartbeat() is None
    tell(guest, b'amp":5000,"ipcMode":"serial"}\n')
    beat = mode.heartbeat()
    assert beat is not None
    assert (beat.timestamp, beat.ipc_mode) == (5.0, "serial")


def test_serial_request(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    request = ask(mode, on_permission=lambda question: question.tool_name == "rm")
    said = hear(guest)
    assert said == {"type": "request", "requestId": request.id, "data": compose(command=["true"])}
    question = {"type": "permission_request", "requestId": "p", "toolName": "rm", "toolInput": {}}
    for event in (output("x"), question):
        tell(guest, {"type": "stream", "requestId": request.id, "line": json.dumps(event)})
    tell(guest, {"type": "stream", "requestId": "another", "line": json.dumps(RESULT)})
    assert next(request) == Output("stdout", b"x")
    assert isinstance(next(request), PermissionRequest)
    assert hear(guest) == {"type": "permission_response", "requestId": "p", "result": {"behavior": "allow"}}
    tell(guest, {"type": "stream", "requestId": request.id, "line": json.dumps(RESULT)})
    assert request.result().ok


def test_serial_host_tool_and_cancel(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    mode.host_tool("h", HostToolAnswer(False, error="no").body())
    assert hear(guest) == {
        "type": "host_tool_response",
        "requestId": "h",
        "success": False,
        "text": "",
        "error": "no",
    }
    with ask(mode) as request:
        hear(guest)
    assert hear(guest) == {"type": "cancel", "requestId": request.id}


def test_serial_push(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    mode.push_file("/workspace/project", "a/b", b"\0small")
    said = hear(guest)
    assert (said["type"], said["basePath"], said["path"]) == ("push_file", "/workspace/project", "a/b")
    assert base64.b64decode(said["data"]) == b"\0small"
    big = noise(CHUNK * 2 + 5)
    sender = threading.Thread(target=mode.push_file, args=("/w", "big", big))
    sender.start()
    reader = guest.makefile("rb")
    messages = [json.loads(reader.readline()) for _ in range(4)]
    sender.join()
    assert [message["type"] for message in messages] == ["push_file_chunk"] * 3 + ["push_file_complete"]
    assert [message.get("chunkIndex") for message in messages[:3]] == [0, 1, 2]
    assert {message["transferId"] for message in messages} == {messages[0]["transferId"]}
    assert b"".join(base64.b64decode(message["data"]) for message in messages[:3]) == big
    for path in ("../x", "/x", ""):
        with pytest.raises(ShareError):
            mode.push_file("/w", path, b"")
    with pytest.raises(UsageError):
        mode.push_file("/w", "x", bytes(MAX_FILE + 1))


def sync(kind: str, **fields: Any) -> dict[str, Any]:
    data = fields.pop("data", None)
    return {"type": kind, **fields, **({} if data is None else {"data": base64.b64encode(data).decode()})}


def test_serial_file_sync(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    tell(guest, sync("file_sync", path="a/b.txt", data=b"one"))
    chunk = {"path": "c", "transferId": "t", "totalChunks": 2}
    tell(guest, sync("file_sync_chunk", **chunk, chunkIndex=1, data=b"ree"))
    tell(guest, sync("file_sync_chunk", **chunk, chunkIndex=0, data=b"th"))
    mode.pump()
    assert "c" not in mode.files
    tell(guest, sync("file_sync_complete", path="c", transferId="t", totalChunks=2))
    mode.pump()
    assert mode.files == {"a/b.txt": b"one", "c": b"three"}
    assert mode.garbage == []


def test_serial_push_that_is_refused(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    tell(guest, {"type": "push_error", "path": "a", "error": "no space left"})
    mode.pump()
    assert mode.refused == [("a", "no space left")]


def test_serial_notes_have_bounds(port: tuple[SerialTransport, socket.socket]) -> None:
    """The last hundred refused pushes, and the last hundred lines that are not understood, are kept."""
    mode, guest = port
    for number in range(101):
        tell(
            guest,
            {"type": "push_error", "path": "p" * 5000, "error": f"{number}" + "e" * 2000},
            b"garbage %d\n" % number,
        )
        mode.pump()
    assert len(mode.refused) == len(mode.garbage) == 100
    assert mode.refused[0] == ("p" * 4096, "1" + "e" * 999)
    assert mode.refused[-1][1].startswith("100e")
    assert (mode.garbage[0].line, mode.garbage[-1].line) == (b"garbage 1", b"garbage 100")


def test_serial_garbage_says_what_is_wrong(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    tell(guest, {"type": "x" * 50}, b"y" * 300 + b"\n", sync("file_sync", path="/" + "z" * 300, data=b""))
    tell(guest, {"type": "stream", "requestId": "r"}, {"type": "stream", "line": "x"}, b"  \n", b"\n")
    mode.pump()
    reasons = [garbage.reason for garbage in mode.garbage]
    assert reasons[0] == "unknown type '" + "x" * 40 + "'"
    assert reasons[1].startswith("Expecting value")
    assert mode.garbage[1].line == b"y" * 200
    assert reasons[2] == repr("/" + "z" * 199)[:200]
    assert reasons[3:] == ["stream without requestId and line"] * 2


def test_serial_heartbeats_that_are_none_change_nothing(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    tell(guest, {"type": "heartbeat", "timestamp": 1000})
    assert mode.heartbeat() is not None
    tell(guest, {"type": "heartbeat"}, {"type": "heartbeat", "timestamp": 2000, "x": "y" * MAX_HEARTBEAT})
    beat = mode.heartbeat()
    while mode._splitter._pending:
        beat = mode.heartbeat()
    assert beat is not None
    assert beat.timestamp == 1.0
    assert [garbage.reason for garbage in mode.garbage] == ["unknown type 'heartbeat'"]


def test_serial_lines_of_a_stream(port: tuple[SerialTransport, socket.socket]) -> None:
    """A line stays a single line, and a request that is over gets no lines."""
    mode, guest = port
    mode.submit("r", {})
    tell(
        guest,
        {"type": "stream", "requestId": "r", "line": "a\nb\n\n"},
        {"type": "stream", "requestId": "r", "line": "é"},
    )
    assert mode.read("r") == b"a b\n" + "é\n".encode()
    assert mode.read("r") == b""
    tell(guest, {"type": "stream", "requestId": "r", "line": "more"})
    mode.pump()
    mode.forget("r")
    tell(guest, {"type": "stream", "requestId": "r", "line": "late"})
    mode.pump()
    assert mode.read("r") == b""


def test_serial_messages_that_are_no_json(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, _ = port
    with pytest.raises(UsageError, match="message to the guest cannot be written as JSON"):
        mode.submit("r", {"x": {1, 2}})


def test_serial_cancel_of_a_guest_that_is_gone(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    guest.close()
    mode.cancel("r")


@pytest.mark.parametrize(
    "message",
    [
        sync("file_sync", path="../x", data=b""),
        sync("file_sync", path="/etc/passwd", data=b""),
        sync("file_sync", path="x"),
        {"type": "file_sync", "path": "x", "data": "*"},
        sync("file_sync_chunk", path="x", transferId="t", chunkIndex=2, totalChunks=2, data=b""),
        sync("file_sync_chunk", path="x", transferId="t", chunkIndex=0, totalChunks=10**9, data=b""),
        sync("file_sync_chunk", path="x", transferId="t", chunkIndex=0, totalChunks=1, data=bytes(CHUNK + 1)),
        sync("file_sync_complete", path="x", transferId="unknown", totalChunks=1),
        {"type": "stream", "requestId": 1, "line": "x"},
        {"type": "strange"},
        b"garbage\n",
    ],
)
def test_serial_nonsense(port: tuple[SerialTransport, socket.socket], message: dict[str, Any] | bytes) -> None:
    mode, guest = port
    teller = threading.Thread(target=tell, args=(guest, message, {"type": "heartbeat", "timestamp": 1000}))
    teller.start()
    while mode.heartbeat() is None:
        time.sleep(0.005)
    teller.join()
    assert mode.files == {}
    assert len(mode.garbage) == 1


def test_serial_keeps_within_bounds(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, guest = port
    monkeypatch.setattr(serialtransport, "MAX_KEPT", 100)
    tell(guest, sync("file_sync", path="x", data=bytes(101)))
    with pytest.raises(GuestError, match="nobody asked for"):
        mode.pump()


def test_serial_counts_names_and_unfinished_transfers(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, guest = port
    monkeypatch.setattr(serialtransport, "MAX_KEPT", 20_000)
    chunk: dict[str, Any] = {"chunkIndex": 0, "totalChunks": 9, "data": b""}

    def flood() -> None:
        for number in range(100):
            tell(guest, sync("file_sync_chunk", path="p" * 200, transferId=str(number), **chunk))
            mode.pump()

    with pytest.raises(GuestError, match="nobody asked for"):
        flood()


def test_serial_comes_back_from_a_guest_that_never_stops(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, _ = port
    received = 0

    class Flood:
        def recv(self, _: int) -> bytes:
            nonlocal received
            received += 1
            assert received < 1000, "it goes on for ever"
            return b"x" * 65535 + b"\n"

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(mode, "_socket", Flood())
    mode.pump()
    assert received > 1


def test_serial_does_not_wait_for_a_deaf_guest(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, _ = port
    with pytest.raises(GuestError, match=r"took no message for 0\.1 s"):
        mode._send({"type": "x", "data": "y" * (8 << 20)}, timeout=0.1)


def test_serial_end_of_qemu(port: tuple[SerialTransport, socket.socket]) -> None:
    mode, guest = port
    guest.close()
    assert mode.heartbeat() is None
    with pytest.raises(GuestError, match="gone"):
        mode.submit("id", {})


@given(st.lists(st.binary(max_size=60) | NEARLY.map(lambda value: json.dumps(value).encode()), max_size=10))
@settings(max_examples=200, deadline=None)
def test_serial_survives_anything(lines: list[bytes]) -> None:
    host, guest = socket.socketpair()
    mode = SerialTransport(host)
    tell(guest, *(line + b"\n" for line in lines), {"type": "heartbeat", "timestamp": 1000})
    beat = mode.heartbeat()
    assert beat is not None
    assert beat.timestamp == 1, "the last one, in seconds"
    mode.close()
    guest.close()


# ---- commands as root --------------------------------------------------------------------------------------------


def test_root_port() -> None:
    host, guest = socket.socketpair()
    root = RootPort(host)

    def answer() -> None:
        call = hear(guest)
        assert base64.b64decode(call["stdin"]) == b"in"
        tell(guest, {"id": 0, "status": 9})  # of an earlier machine
        tell(guest, {"id": call["id"], "status": 3, "stdout": base64.b64encode(b"o\n").decode(), "stderr": ""})

    thread = threading.Thread(target=answer)
    thread.start()
    done = root.run(["id"], stdin=b"in", timeout=5)
    thread.join()
    assert (done.status, done.text, done.stderr) == (3, "o\n", b"")
    with pytest.raises(GuestError, match=r"no answer from the guest's root helper within 0\.2 s"):
        root.run(["id"], timeout=0.2)
    tell(guest, b"nonsense\n")
    with pytest.raises(GuestError, match="answered nonsense"):
        root.run(["id"], timeout=1)
    guest.close()
    with pytest.raises(GuestError):
        root.run(["id"], timeout=1)
    root.close()
