"""The agentd contract over a virtio-serial port, and commands as root, against a guest that is a socket."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

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

MIB = 1 << 20

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


@pytest.mark.slow
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


# ---- serial mode, without a guest at the other end -------------------------------------------------------------------


class Line:
    """A socket that takes so many bytes at a time, and then none, and has so much to say."""

    def __init__(self, *takes: int, says: Sequence[bytes | OSError] = ()) -> None:
        self.takes, self.says = list(takes), list(says)
        self.heard = bytearray()

    def send(self, data: Any) -> int:
        if not self.takes:
            raise BlockingIOError
        taken = min(self.takes.pop(0), len(data))
        self.heard += bytes(data[:taken])
        return taken

    def recv(self, _: int) -> bytes:
        if not self.says:
            raise BlockingIOError
        said = self.says.pop(0)
        if isinstance(said, OSError):
            raise said
        return said

    def close(self) -> None:
        """Nothing is open."""


def on(port: tuple[SerialTransport, socket.socket], line: Line) -> SerialTransport:
    """Return the transport on another line."""
    mode, _ = port
    mode._socket.close()
    mode._socket = cast("socket.socket", line)
    return mode


def test_serial_never_blocks_on_its_socket(port: tuple[SerialTransport, socket.socket]) -> None:
    assert port[0]._socket.getblocking() is False


def test_serial_streams_are_read_a_mebibyte_at_a_time(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is received only when less than that is there, so that the guest waits for whoever reads."""
    mode, _ = port
    mode.submit("r", {})
    mode._streams["r"] += b"a" * MIB + b"b" * MIB + b"c"
    pumps: list[int] = []
    monkeypatch.setattr(mode, "pump", lambda: pumps.append(len(mode._streams["r"])))
    assert [mode.read("r") for _ in range(4)] == [b"a" * MIB, b"b" * MIB, b"c", b""]
    assert pumps == [1, 0]
    mode._streams["r"] += b"d" * MIB
    mode.read("r")
    assert pumps == [1, 0]


@pytest.mark.slow
def test_serial_answers_wait_for_the_guest_up_to_a_limit(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = on(port, Line())
    mode._unsent += bytes(64 * MIB)
    mode.permission("p", {})
    with pytest.raises(GuestError, match="the guest has not taken 64 MiB of answers"):
        mode.permission("p", {})


def test_serial_sends_what_the_guest_takes(port: tuple[SerialTransport, socket.socket]) -> None:
    line = Line(5, 3)
    mode = on(port, line)
    message = b'{"type": "permission_response", "requestId": "p", "result": {}}\n'
    mode.permission("p", {})
    assert bytes(mode._unsent) == message[8:]
    assert mode._flush() is False
    line.takes = [4, 1000]
    assert mode._flush() is True
    assert line.heard == message


def test_serial_a_guest_that_takes_nothing_is_given_up_after_a_minute(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute since it last took anything."""
    line, now = Line(1), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    mode = on(port, line)
    mode.permission("p", {})
    for now[0], takes in ((1060.0, 0), (1060.0, 1), (1100.0, 0), (1120.0, 0)):
        line.takes = [1] * takes
        mode.pump()
    now[0] = 1120.1
    with pytest.raises(GuestError, match="the guest took no message for 60 s"):
        mode.pump()


@pytest.mark.parametrize(
    ("says", "gone"),
    [(BlockingIOError(), False), (ConnectionResetError(), False), (OSError(9, "Bad descriptor"), True)],
)
def test_serial_a_port_that_says_nothing_or_is_gone(
    says: OSError, gone: bool, port: tuple[SerialTransport, socket.socket]
) -> None:
    mode = on(port, Line(says=[says]))
    if gone:
        with pytest.raises(GuestError, match=r"^the serial port of the guest is gone: Bad descriptor$"):
            mode.pump()
    else:
        mode.pump()


def test_serial_what_waits_is_dropped_with_the_port(port: tuple[SerialTransport, socket.socket]) -> None:
    class Broken(Line):
        def send(self, data: Any) -> int:
            del data
            raise BrokenPipeError(32, "Broken pipe")

    mode = on(port, Broken())
    with pytest.raises(GuestError, match=r"^the serial port of the guest is gone: Broken pipe$"):
        mode.permission("p", {})
    assert mode._unsent == b""
    mode.pump()


@pytest.mark.parametrize(("timeout", "least", "most"), [(600.0, 59.0, 60.0), (5.0, 4.0, 5.0), (-1.0, -9.0, -1.0)])
def test_serial_a_file_has_its_time_and_each_message_a_minute(
    timeout: float,
    least: float,
    most: float,
    port: tuple[SerialTransport, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode, _ = port
    sent: list[float] = []
    monkeypatch.setattr(mode, "_send", lambda _, seconds: sent.append(seconds))
    mode.push_file("/w", "x", bytes(CHUNK + 1), timeout=timeout)
    assert len(sent) == 3
    assert all(least <= seconds <= most for seconds in sent)


def test_serial_the_largest_file(port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    mode, _ = port
    monkeypatch.setattr(serialtransport, "MAX_FILE", 3 * MIB)
    with pytest.raises(UsageError, match=r"^x: files of more than 3 MiB cannot be pushed$"):
        mode.push_file("/w", "x", bytes(3 * MIB + 1))
    sent: list[object] = []
    monkeypatch.setattr(mode, "_send", lambda *words: sent.append(words))
    mode.push_file("/w", "x", bytes(3 * MIB))
    assert len(sent) == 7


def test_serial_a_request_that_is_cancelled_is_forgotten_at_once(
    port: tuple[SerialTransport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest has a second to take the message."""
    mode, _ = port
    mode.submit("r", {})
    mode._streams["r"] += b"text"
    sent: list[tuple[object, float]] = []
    monkeypatch.setattr(mode, "_send", lambda message, timeout: sent.append((message, timeout)))
    mode.cancel("r")
    assert sent == [({"type": "cancel", "requestId": "r"}, 1.0)]
    assert ("r" in mode._known, "r" in mode._streams) == (False, False)


@pytest.mark.slow
def test_serial_memory_is_counted_now_and_then_and_names_its_limit(
    port: tuple[SerialTransport, socket.socket],
) -> None:
    mode, _ = port
    mode._streams["r"] += bytes(256 * MIB)
    mode._check_memory()
    mode._unchecked = 16 * MIB
    mode._process_backlog(float("inf"))
    assert mode._unchecked == 16 * MIB, "not yet"
    mode._streams["q"] += b"x"
    mode._unchecked += 1
    with pytest.raises(GuestError, match="the guest sent more than 256 MiB that nobody asked for"):
        mode._process_backlog(float("inf"))
    assert mode._unchecked == 0
