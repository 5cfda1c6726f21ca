"""Standard input of a command, and the limit of its time, over both transports to guests that play agentd."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import GuestError, HostError, UsageError
from imgkit.vm.agent import inputs, requests
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.inputs import PIECE, BytesInput, PipeInput, RefusedInput
from imgkit.vm.agent.protocol import Output
from imgkit.vm.agent.requests import AgentRequest, compose
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.failures import CommandTimeoutError, RequestError
from imgkit.vm.shares.sharedfolder import SharedFolder, ShareError
from tests.test_agent_client import RESULT, FileGuest, Recorded, output


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe, which are closed at the end unless the test has done so."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


# ---- sources -----------------------------------------------------------------------------------------------------


def test_a_pipe_is_read_without_waiting(pipe: tuple[int, int]) -> None:
    source = PipeInput(pipe[0])
    assert source.read() is None
    os.write(pipe[1], b"a\0\xff")
    assert source.read() == b"a\0\xff"
    assert source.read() is None
    os.close(pipe[1])
    assert source.read() == b""


def test_a_file_is_read_in_pieces_and_the_null_device_is_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(PIECE + 1))
    with path.open("rb") as file:
        source = PipeInput(file.fileno())
        assert [len(source.read() or b"") for _ in range(3)] == [PIECE, 1, 0]
    with Path(os.devnull).open("rb") as null:
        assert PipeInput(null.fileno()).read() == b""


def test_what_cannot_be_read_is_the_hosts_fault(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="standard input cannot be read: Is a directory"):
            PipeInput(descriptor).read()
    finally:
        os.close(descriptor)


def test_the_wait_ends_with_the_first_byte(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    PipeInput(pipe[0]).wait(600)


@given(st.binary(max_size=100), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_bytes_come_in_pieces(data: bytes, size: int) -> None:
    source, pieces = BytesInput(data), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "PIECE", size)
        while piece := source.read():
            pieces.append(piece)
    assert b"".join(pieces) == data
    assert all(len(piece) == size for piece in pieces[:-1])
    assert source.read() == b""


def test_an_old_agentd_is_an_error_once_there_is_input(pipe: tuple[int, int]) -> None:
    source = RefusedInput(PipeInput(pipe[0]), 1)
    assert source.read() is None
    os.write(pipe[1], b"x")
    source.wait(600)
    message = "agentd of this image passes no standard input on: its protocol has version 1, and standard input needs 2"
    with pytest.raises(RequestError) as caught:
        source.read()
    assert (caught.value.message, caught.value.hint) == (
        message,
        "build the image anew, or give the command none: </dev/null",
    )
    assert RefusedInput(BytesInput(b""), 0).read() == b""


def test_what_a_request_says_about_input() -> None:
    assert compose(command=["cat"], stdin=True)["stdin"] is True
    assert "stdin" not in compose(command=["cat"])
    with pytest.raises(UsageError, match="standard input is for a command"):
        compose(prompt="x", stdin=True)


# ---- files -------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "inputs").iterdir())


def test_input_goes_through_files_which_the_guest_removes(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(20 * PIECE + 5)  # more than may lie in the share at a time
    seen: list[int] = []

    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        assert request["stdin"] is True
        received, number = b"", 0
        while True:
            path = tmp_path / "inputs" / f"{guest.id}.{number}"
            if not path.exists():
                time.sleep(0.002)
                continue
            seen.append(len(names(tmp_path)))
            piece = path.read_bytes()
            path.unlink()
            received, number = received + piece, number + 1
            if not piece:
                break
        assert received == data
        guest.say(RESULT)

    with FileGuest(tmp_path, play).running() as mode:
        request = AgentRequest(mode, compose(command=["cat"], stdin=True), timeout=30, stdin=BytesInput(data))
        assert request.result().ok
    assert max(seen) <= 9, "eight pieces, and the temporary name of one more"
    assert names(tmp_path) == []


def test_input_that_nobody_takes_stays_small_and_is_removed(tmp_path: Path) -> None:
    class Endless(BytesInput):
        def read(self) -> bytes:
            self.reads = getattr(self, "reads", 0) + 1
            return b"y" * 10

    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        deadline = time.monotonic() + 10
        while len(names(tmp_path)) < 8 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.2)
        guest.say(output(str(len(names(tmp_path)))), RESULT)

    endless = Endless(b"")
    with FileGuest(tmp_path, play).running() as mode:
        request = AgentRequest(mode, compose(command=["true"], stdin=True), timeout=30, stdin=endless)
        first = next(request)
        assert request.result().ok
    assert first == Output("stdout", b"8")
    assert endless.reads == 8
    assert names(tmp_path) == []


def test_a_cancelled_request_leaves_no_input(tmp_path: Path) -> None:
    with closing(FileTransport(SharedFolder(tmp_path))) as mode:
        mode.submit("r", {})
        mode.send_input("r", b"x")
        mode.send_input("s", b"y")
        assert names(tmp_path) == ["r.0", "s.0"]
        assert (tmp_path / "inputs/r.0").stat().st_mode & 0o777 == 0o600
        mode.cancel("r")
        assert names(tmp_path) == ["s.0"]
        assert (tmp_path / "requests/r.cancel").read_bytes() == b""


def test_a_link_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ipc").mkdir()
    with closing(FileTransport(SharedFolder(tmp_path / "ipc"))) as mode:
        mode.send_input("r", b"x")
        (tmp_path / "ipc/inputs/r.0").unlink()
        (tmp_path / "ipc/inputs").rmdir()
        (tmp_path / "ipc/inputs").symlink_to(tmp_path)
        with pytest.raises(ShareError, match="a link or file is where a folder must be"):
            mode.input_room("r")
        with pytest.raises(ShareError):
            mode.send_input("r", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ipc"]


# ---- the serial port ---------------------------------------------------------------------------------------------


class SerialGuest(threading.Thread):
    """Plays agentd on a socket: it notes input, and says that it has taken the first ``take`` pieces."""

    def __init__(self, connection: socket.socket, take: int) -> None:
        super().__init__(daemon=True)
        self.connection, self.take = connection, take
        self.pieces: list[bytes] = []
        self.ended = threading.Event()

    def run(self) -> None:
        identity = ""
        for line in self.connection.makefile("rb"):
            message = json.loads(line)
            if message["type"] == "request":
                identity = message["requestId"]
            if message["type"] == "input":
                self.pieces.append(base64.b64decode(message["data"]))
                if len(self.pieces) <= self.take:
                    taken = {"type": "input_taken", "requestId": identity, "index": len(self.pieces) - 1}
                    self.tell(taken)
                if not self.pieces[-1]:
                    self.ended.set()
                    self.tell({"type": "stream", "requestId": identity, "line": json.dumps(RESULT)})

    def tell(self, message: dict[str, Any]) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")


@pytest.mark.slow
def test_input_goes_over_the_port() -> None:
    host, end = socket.socketpair()
    guest = SerialGuest(end, take=1000)
    guest.start()
    data = random.Random(3).randbytes(20 * PIECE + 5)
    with closing(SerialTransport(host)) as mode, closing(end):
        request = AgentRequest(mode, compose(command=["cat"], stdin=True), timeout=30, stdin=BytesInput(data))
        assert request.result().ok
        assert b"".join(guest.pieces) == data
        assert guest.pieces[-1] == b""
        assert mode.garbage == []


def test_no_more_than_eight_pieces_ahead() -> None:
    host, end = socket.socketpair()
    guest = SerialGuest(end, take=3)
    guest.start()
    with closing(SerialTransport(host)) as mode, closing(end):
        request = AgentRequest(mode, compose(command=["x"], stdin=True), stdin=BytesInput(bytes(99 * PIECE)))
        deadline = time.monotonic() + 30
        while len(guest.pieces) < 3 + 8 and time.monotonic() < deadline:
            request._feed()
            mode.pump()
        for _ in range(5):
            request._feed()
            mode.pump()
            time.sleep(0.02)
        assert len(guest.pieces) == 3 + 8
        assert not mode.input_room(request.id)
        request.cancel()
        mode.submit("next", {})
        assert mode.input_room("next")


@pytest.mark.parametrize(
    ("note", "room", "garbage"),
    [
        ({"index": 0}, True, 0),
        ({"index": 10**9}, True, 0),
        ({"index": -5}, False, 0),
        ({"index": 0, "requestId": "another"}, False, 0),
        ({"index": True}, False, 1),
        ({"index": "0"}, False, 1),
        ({}, False, 1),
        ({"index": 0, "requestId": 7}, False, 1),
    ],
)
def test_notes_of_a_guest_that_lies(note: dict[str, Any], room: bool, garbage: int) -> None:
    host, end = socket.socketpair()
    with closing(SerialTransport(host)) as mode, closing(end):
        mode.submit("r", {})
        for _ in range(8):
            mode.send_input("r", b"x")
        assert not mode.input_room("r")
        end.sendall(json.dumps({"type": "input_taken", "requestId": "r", **note}).encode() + b"\n")
        mode.pump()
        assert mode.input_room("r") == room
        assert len(mode.garbage) == garbage
        for _ in range(8):
            mode.send_input("r", b"x")
        assert not mode.input_room("r"), "a guest cannot take what was not sent"


# ---- a limit of time ---------------------------------------------------------------------------------------------


class Stopping(Recorded):
    """A guest that sends its result only when it is asked to stop."""

    stops = 0

    def stop(self, request_id: str) -> None:
        self.stops += 1
        cancelled = {"type": "result", "subtype": "error", "cancelled": True, "result": "cancelled by the host"}
        event = {"type": "sdk_event", "event": cancelled}
        self.pieces = [json.dumps(output("last words")).encode() + b"\n", json.dumps(event).encode() + b"\n"]


def test_the_limit_stops_the_command_and_its_output_still_comes() -> None:
    guest = Stopping([])
    request = AgentRequest(guest, compose(command=["x"]), limit=0.1)
    assert next(request) == Output("stdout", b"last words")
    assert request.result().body["cancelled"] is True
    assert (request.stopped, guest.stops) == (True, 1)


def test_a_command_that_ends_in_time_is_not_stopped() -> None:
    guest = Stopping([json.dumps(RESULT).encode() + b"\n"])
    request = AgentRequest(guest, compose(command=["x"]), limit=60)
    assert request.result().ok
    assert (request.stopped, guest.stops) == (False, 0)


def test_a_guest_that_does_not_stop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_STOP_TIMEOUT", 0.1)
    request = AgentRequest(Recorded([]), compose(command=["x"]), limit=0.1, timeout=60)
    with pytest.raises(
        CommandTimeoutError, match="asked to end after its limit of time, and the guest sends no result"
    ):
        request.result()
    assert request.stopped


def test_no_input_is_sent_to_a_machine_that_is_gone() -> None:
    class Deaf(Recorded):
        def send_input(self, request_id: str, data: bytes) -> None:
            raise AssertionError("it is gone")

    def alive() -> None:
        raise GuestError("gone")

    with pytest.raises(GuestError, match="gone"):
        AgentRequest(Deaf([]), compose(command=["x"], stdin=True), stdin=BytesInput(b"x"), alive=alive).result()
