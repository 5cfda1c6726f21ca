"""Guests that never stop sending: a request ends when its timeout expires, or at once if the guest floods the host."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.errors import GuestError
from imgkit.vm import VM
from imgkit.vm.agent import protocol, ratelimit, requests
from imgkit.vm.agent.completed import collect
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.protocol import AgentResult, Garbage, LineSplitter, Output
from imgkit.vm.agent.ratelimit import RateLimit
from imgkit.vm.agent.requests import AgentRequest, Transport
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.consolelog import ConsoleLog
from imgkit.vm.failures import FloodError, QemuDiedError, RequestError
from imgkit.vm.shares.sharedfolder import SharedFolder
from tests.rootport import RootPort
from tests.test_agent_client import RESULT, Recorded, output

pytestmark = pytest.mark.hostile

HANG = 60.0
"""Seconds after which an end that is due within one or two counts as a hang. A busy machine is slow."""
MIB = 1 << 20


@contextmanager
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < HANG


class Endless(Recorded):
    """A transport to a guest that sends the same for ever."""

    def __init__(self, piece: bytes) -> None:
        super().__init__([])
        self.piece = piece

    def read(self, request_id: str) -> bytes:
        return self.piece


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        json.dumps(output("x")).encode() + b"\n",
        b'{"type":"permission_request","requestId":"p","toolName":"rm"}\n',
        b'{"result":1}\n',
    ],
)
def test_a_flood_of_lines_ends_a_request_in_time(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limits of a flood out of the way, the deadline alone must do; with them, no deadline is needed."""
    piece = line * (MIB // len(line))
    monkeypatch.setattr(ratelimit, "LINES", 100_000)
    monkeypatch.setattr(ratelimit, "LINES_PER_SECOND", 1)
    with soon(), pytest.raises(FloodError, match=r"the guest floods the host: .* lines"):
        collect(AgentRequest(Endless(piece), {}))
    monkeypatch.setattr(ratelimit, "LINES", 1 << 60)
    monkeypatch.setattr(ratelimit, "BYTES", 1 << 60)
    monkeypatch.setattr(requests, "MAX_STREAM", 1 << 60)
    with soon(), pytest.raises(RequestError, match=r"no result of the request within 1 s"):
        collect(AgentRequest(Endless(piece), {}, timeout=1))


def test_a_flood_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "BYTES", 8 * MIB)
    monkeypatch.setattr(ratelimit, "BYTES_PER_SECOND", 1)
    with soon(), pytest.raises(FloodError, match=f"bytes within . s .the limit is {8 * MIB} and 1 a second"):
        collect(AgentRequest(Endless(b"x" * (MIB - 1) + b"\n"), {}))


def test_a_stream_file_of_newlines(tmp_path: Path) -> None:
    mode = FileTransport(SharedFolder(tmp_path))
    request = AgentRequest(mode, {}, timeout=HANG)
    (tmp_path / "streams" / f"{request.id}.log").write_bytes(b"\n" * (32 * MIB))
    with soon(), pytest.raises(FloodError):
        request.result()
    assert (tmp_path / "requests" / f"{request.id}.cancel").exists(), "the guest is asked to stop"
    mode.close()


def test_liveness_is_looked_at_though_the_guest_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_DRAIN_TIMEOUT", 0.5)

    def gone() -> None:
        raise QemuDiedError("QEMU was killed by SIGKILL")

    piece = json.dumps(output("x")).encode() + b"\n"
    with soon(), pytest.raises(QemuDiedError):
        collect(AgentRequest(Endless(piece), {}, alive=gone))


def test_what_a_machine_said_before_it_ended_is_not_lost() -> None:
    def gone() -> None:
        raise QemuDiedError("QEMU ended")

    pieces = [json.dumps(output(str(number))).encode() + b"\n" for number in range(100)]
    pieces.append(json.dumps(RESULT).encode() + b"\n")
    events = list(AgentRequest(Recorded(pieces), {}, alive=gone))
    assert len(events) == 101
    assert isinstance(events[-1], AgentResult)


def test_a_result_in_time_counts_though_it_is_taken_late() -> None:
    """A caller that reads slowly must not lose a result that was there before the deadline."""
    whole = (json.dumps(output("x")).encode() + b"\n") * 3 + json.dumps(RESULT).encode() + b"\n"
    request = AgentRequest(Recorded([whole]), {}, timeout=0.2)
    assert isinstance(next(request), Output)
    time.sleep(0.3)
    assert request.result().ok


def questions(kind: str) -> bytes:
    lines = (
        json.dumps({"type": kind, "requestId": f"q{number}", "toolName": "rm", "toolInput": {}})
        for number in range(100_000)
    )
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize("kind", ["permission_request", "host_tool_request"])
def test_a_hundred_thousand_questions(kind: str, tmp_path: Path) -> None:
    mode = FileTransport(SharedFolder(tmp_path))
    request = AgentRequest(mode, {}, timeout=60)
    (tmp_path / "streams" / f"{request.id}.log").write_bytes(questions(kind))
    with soon(), pytest.raises(FloodError, match="questions within"):
        request.result()
    assert len(list((tmp_path / "responses").iterdir())) < 10_000
    mode.close()


def test_a_talkative_agent_is_no_flood() -> None:
    """A command that prints 300,000 lines one by one, and one that prints 200 MiB."""
    short = (json.dumps(output("a line of output\n")).encode() + b"\n") * 10_000
    end = json.dumps(RESULT).encode() + b"\n"
    assert len(collect(AgentRequest(Recorded([short] * 30 + [end]), {})).stdout) == 30 * 10_000 * 17
    long = json.dumps(output("x" * 65_536, "stderr")).encode() + b"\n"
    request = AgentRequest(Recorded([long * 16] * 200 + [end]), {})
    assert sum(len(event.data) for event in request if isinstance(event, Output)) == 200 * MIB


def test_an_allowance_grows_with_time() -> None:
    rate = RateLimit("lines", 10, 100)
    rate.count(10)
    with pytest.raises(FloodError, match=r"11 lines within 0 s \(the limit is 10 and 100 a second\)"):
        rate.count(1)
    rate = RateLimit("lines", 10, 100, started=time.monotonic() - 1)
    rate.count(110)
    with pytest.raises(FloodError):
        rate.count(1_000)


def test_a_line_that_comes_in_very_many_pieces() -> None:
    lines = LineSplitter()
    with soon():
        for _ in range(200_000):
            assert list(lines.feed(b"x" * 64)) == []
        assert [len(line) for line in lines.feed(b"\n") if isinstance(line, bytes)] == [200_000 * 64]


def test_a_line_of_very_many_values_is_not_parsed() -> None:
    line = b'{"type":"sdk_event","event":{"type":"x","data":[' + b"[]," * 2_000_000 + b"0]}}"
    event = protocol.parse_event(line)
    assert isinstance(event, Garbage)
    assert "too many values" in event.reason
    text = json.dumps(output("a, b" * 100_000)).encode()
    assert isinstance(protocol.parse_event(text), Output)


def test_a_console_that_never_stops_growing() -> None:
    vm = VM.__new__(VM)
    vm._log = cast("ConsoleLog", SimpleNamespace(refresh=lambda: True, text="text"))
    with soon():
        assert vm.console() == "text"


# ---- the serial port ---------------------------------------------------------------------------------------------


@contextmanager
def flooding(*pieces: bytes) -> Iterator[SerialTransport]:
    """Yield a port whose guest says ``pieces`` for ever and listens to nothing."""
    host, guest = socket.socketpair()
    stop = threading.Event()
    guest.settimeout(0.2)

    def flood() -> None:
        while not stop.is_set():
            for piece in pieces:
                try:
                    guest.sendall(piece)
                except TimeoutError:
                    continue
                except OSError:
                    return

    thread = threading.Thread(target=flood)
    thread.start()
    mode = SerialTransport(host)
    try:
        yield mode
    finally:
        stop.set()
        mode.close()
        thread.join()
        guest.close()


def heartbeats() -> bytes:
    return b'{"type":"heartbeat","timestamp":1000}\n' * 2_000


SAYS = {
    "newlines": b"\n" * MIB,
    "objects": b"{}\n" * (MIB // 3),
    "heartbeats": heartbeats(),
    "files": b'{"type":"file_sync","path":"x","data":""}\n' * 2_000,
}


def waits_for_a_result(mode: SerialTransport) -> None:
    transport: Transport = mode
    AgentRequest(transport, {}, timeout=1).result()


def waits_for_a_heartbeat(mode: SerialTransport) -> None:
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        mode.heartbeat()
    raise RequestError("over")


def pushes(mode: SerialTransport) -> None:
    mode.push_file("/w", "big", bytes(16 * MIB), timeout=1)


@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize("does", [waits_for_a_result, waits_for_a_heartbeat, pushes])
def test_a_port_that_is_flooded(
    says: str, does: Callable[[SerialTransport], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "LINES", 1 << 60)
    with flooding(SAYS[says]) as mode, soon(), pytest.raises(GuestError):
        does(mode)


def test_the_rate_of_a_port_is_limited_too() -> None:
    def read(mode: SerialTransport) -> None:
        while True:
            mode.heartbeat()

    with flooding(b"\n" * MIB) as mode, soon(), pytest.raises(FloodError, match="lines"):
        read(mode)


def test_a_guest_that_takes_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions are answered without waiting for it, and what it does not take is limited."""
    host, guest = socket.socketpair()
    mode = SerialTransport(host)
    monkeypatch.setattr("imgkit.vm.agent.serialtransport._MAX_UNSENT", 4 * MIB)
    answer: dict[str, Any] = {"behavior": "allow", "updatedInput": "x" * MIB}

    def answers() -> None:
        for number in range(10):
            mode.permission(f"q{number}", answer)

    with soon(), pytest.raises(GuestError, match="has not taken 4 MiB of answers"):
        answers()
    monkeypatch.setattr("imgkit.vm.agent.serialtransport._SEND_TIMEOUT", 0.1)
    time.sleep(0.2)
    with pytest.raises(GuestError, match=r"took no message for 0\.1 s"):
        mode.pump()
    mode.close()
    guest.close()


def test_a_stream_is_handed_out_in_pieces() -> None:
    host, guest = socket.socketpair()
    mode = SerialTransport(host)
    request = AgentRequest(mode, {}, timeout=30)
    line = json.dumps({"type": "stream", "requestId": request.id, "line": json.dumps(output("x" * 60_000))}).encode()
    sender = threading.Thread(target=guest.sendall, args=((line + b"\n") * 100,))
    sender.start()
    sizes = [1]
    while sum(sizes) < 6_000_000:
        sizes.append(len(mode.read(request.id)))
    sender.join()
    assert max(sizes) <= MIB
    mode.close()
    guest.close()


def test_a_flood_of_roots_answers() -> None:
    host, guest = socket.socketpair()
    root = RootPort(host)
    stop = threading.Event()
    guest.settimeout(0.2)

    def flood() -> None:
        while not stop.is_set():
            try:
                guest.sendall(b"{}\n" * 100_000)
            except TimeoutError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    with soon(), pytest.raises(GuestError):
        root.run(["id"], timeout=1)
    stop.set()
    root.close()
    thread.join()
    guest.close()
