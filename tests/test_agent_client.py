"""The host's side of the agentd contract against fake guests: a thread over a folder, a thread over a socket."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import GuestError, HostError, UsageError
from imgkit.vm import agent, protocol, serialmode
from imgkit.vm.agent import HostToolAnswer, Permission, Request, Transport, compose
from imgkit.vm.failures import QemuDiedError, RequestError
from imgkit.vm.filemode import FileMode
from imgkit.vm.protocol import AgentEvent, Garbage, HostToolRequest, Lines, Output, PermissionRequest, Result
from imgkit.vm.rootport import RootPort
from imgkit.vm.serialmode import SerialMode
from imgkit.vm.shares import Folder, ShareError

RESULT = {"type": "sdk_event", "event": {"type": "result", "subtype": "success", "exitCode": 0, "result": "done"}}


def output(text: str, stream: str = "stdout") -> dict[str, Any]:
    return {"type": "sdk_event", "event": {"type": "output", "stream": stream, "data": text}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class FileGuest:
    """Plays agentd over a folder; ``play`` gets the request and writes what it likes."""

    def __init__(self, ipc: Path, play: Callable[[FileGuest, dict[str, Any]], None]) -> None:
        self.ipc = ipc
        self.play = play
        self.id = ""
        self.requests: list[dict[str, Any]] = []
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def say(self, *events: dict[str, Any] | bytes) -> None:
        with (self.ipc / "streams" / f"{self.id}.log").open("ab", buffering=0) as sink:
            for event in events:
                sink.write(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")

    def answer(self, name: str) -> Any:
        path = self.ipc / "responses" / name
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        value = json.loads(path.read_text())
        path.unlink()
        return value

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            for path in (self.ipc / "requests").glob("*.json"):
                self.id = path.stem
                request = json.loads(path.read_text())
                self.requests.append(request)
                try:
                    self.play(self, request)
                except BaseException as cause:  # noqa: BLE001 - handed to the test
                    self.failure = cause
                path.unlink(missing_ok=True)

    @contextmanager
    def running(self) -> Iterator[FileMode]:
        mode = FileMode(Folder(self.ipc))
        self._thread.start()
        try:
            yield mode
        finally:
            self._stop.set()
            self._thread.join()
            mode.close()
            if self.failure is not None:
                raise self.failure


def ask(mode: Transport, **options: Any) -> Request:
    return Request(mode, compose(command=["true"]), timeout=options.pop("timeout", 10), **options)


# ---- file mode ---------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_end_with_the_result(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        assert request["command"] == ["true"]
        guest.say(output("one\n"), {"type": "sdk_event", "event": {"type": "started"}}, output("two", "stderr"))
        whole = json.dumps(output("three")).encode() + b"\n" + json.dumps(RESULT).encode() + b"\n"
        for at in range(0, len(whole), 7):  # lines come in pieces
            guest.say(whole[at : at + 7])

    with FileGuest(tmp_path, play).running() as mode:
        events = list(ask(mode))
    assert events[0] == Output("stdout", b"one\n")
    assert isinstance(events[1], AgentEvent)
    assert events[2:4] == [Output("stderr", b"two"), Output("stdout", b"three")]
    assert isinstance(events[4], Result)
    assert (events[4].ok, events[4].exit_code, events[4].text) == (True, 0, "done")
    assert len(events) == 5
    assert [path.name for path in (tmp_path / "streams").iterdir()] == []


def test_nothing_after_the_result(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say(RESULT, output("late"), RESULT)

    with FileGuest(tmp_path, play).running() as mode:
        request = ask(mode)
        assert [type(event) for event in request] == [Result]
        assert list(request) == []


def test_permission_and_host_tool_round_trips(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        question = {"type": "permission_request", "requestId": "p1", "toolName": "rm", "toolInput": {"path": "/"}}
        guest.say(question)
        assert guest.answer("p1.json") == {"behavior": "allow", "updatedInput": {"path": "/tmp"}}
        guest.say({**question, "requestId": "p2"})
        assert guest.answer("p2.json") == {"behavior": "deny"}
        guest.say({"type": "host_tool_request", "requestId": "h1", "toolName": "open", "toolInput": "url"})
        assert guest.answer("h1.host-tool.json") == {"type": "host_tool_response", "success": True, "text": "url"}
        guest.say(RESULT)

    def permission(question: PermissionRequest) -> Permission | bool:
        return question.request_id == "p1" and Permission(True, updated_input={"path": "/tmp"})

    def tool(question: HostToolRequest) -> HostToolAnswer:
        return HostToolAnswer(True, question.tool_input)

    with FileGuest(tmp_path, play).running() as mode:
        events = list(ask(mode, on_permission=permission, on_host_tool=tool))
    assert [type(event) for event in events] == [PermissionRequest, PermissionRequest, HostToolRequest, Result]


def test_without_callbacks_questions_are_refused(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say({"type": "permission_request", "requestId": "p", "toolName": "rm", "toolInput": None})
        assert guest.answer("p.json")["behavior"] == "deny"
        guest.say({"type": "host_tool_request", "requestId": "h", "toolName": "x", "toolInput": None})
        assert guest.answer("h.host-tool.json")["success"] is False
        guest.say(RESULT)

    with FileGuest(tmp_path, play).running() as mode:
        assert ask(mode).result().ok


def test_a_question_is_answered_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        question = {"type": "permission_request", "requestId": "p", "toolName": "rm", "toolInput": None}
        guest.say(question, question, question, RESULT)

    def permission(question: PermissionRequest) -> bool:
        asked.append(question.request_id)
        return True

    with FileGuest(tmp_path, play).running() as mode:
        list(ask(mode, on_permission=permission))
    assert asked == ["p"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "", ".hidden", "x" * 200, "a\0b", 7, None, ["p"]])
def test_ids_that_leave_the_folder_are_garbage(tmp_path: Path, name: object) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say({"type": "permission_request", "requestId": name, "toolName": "rm", "toolInput": None}, RESULT)

    ipc = tmp_path / "deep" / "ipc"
    ipc.mkdir(parents=True)
    with FileGuest(ipc, play).running() as mode:
        events = list(ask(mode, on_permission=lambda _: pytest.fail("was asked")))
    assert isinstance(events[0], Garbage)
    assert events[0].reason == "unusable requestId"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "ipc", "requests", "responses", "streams"]


def test_garbage_is_reported_and_overcome(tmp_path: Path) -> None:
    lines = [
        b"not json\n",
        b"[1]\n",
        b"\n",
        b"\xff\xfe\n",
        b'{"type":"sdk_event"}\n',
        b'{"type":"sdk_event","event":{}}\n',
        b'{"type":"strange"}\n',
        b'{"type":"sdk_event","event":{"type":"output","stream":"x","data":"y"}}\n',
        b'{"type":"sdk_event","event":{"type":"output","stream":"stdout","data":"*","encoding":"base64"}}\n',
        b"[" * 100_000 + b"\n",
        b'{"n":' + b"9" * 1_000_000 + b"}\n",
    ]

    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say(*lines, RESULT)

    with FileGuest(tmp_path, play).running() as mode:
        events = list(ask(mode))
    assert len(events) == len(lines)  # the empty line is nothing at all
    assert all(isinstance(event, Garbage) for event in events[:-1])
    assert isinstance(events[-1], Result)


def test_deadline(tmp_path: Path) -> None:
    with FileGuest(tmp_path, lambda guest, request: guest.say(output("x"))).running() as mode:
        request = ask(mode, timeout=0.2)
        with pytest.raises(RequestError, match=r"no result of the request within 0\.2 s"):
            list(request)
        assert (tmp_path / "requests" / f"{request.id}.cancel").exists()
        assert list(request) == []


def test_a_dead_machine_ends_the_wait(tmp_path: Path) -> None:
    def alive() -> None:
        raise QemuDiedError("QEMU was killed by SIGKILL")

    with (
        FileGuest(tmp_path, lambda guest, request: None).running() as mode,
        pytest.raises(QemuDiedError),
    ):
        list(ask(mode, alive=alive))


def test_leaving_early_cancels(tmp_path: Path) -> None:
    with FileGuest(tmp_path, lambda guest, request: guest.say(output("x"))).running() as mode:
        with ask(mode) as request:
            assert next(request) == Output("stdout", b"x")
        assert (tmp_path / "requests" / f"{request.id}.cancel").read_bytes() == b""
        with pytest.raises(RequestError):
            request.result()


def test_a_stream_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_STREAM", 1 << 20)

    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say(*[b"x" * 65535 + b"\n"] * 32)

    with FileGuest(tmp_path, play).running() as mode, pytest.raises(RequestError, match="grew over 1 MiB"):
        list(ask(mode))


def test_a_stream_that_shrinks_is_an_error(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say(output("x"))

    with FileGuest(tmp_path, play).running() as mode:
        request = ask(mode)
        next(request)
        (tmp_path / "streams" / f"{request.id}.log").write_bytes(b"")
        with pytest.raises(GuestError, match="shortened its own stream"):
            next(request)


def test_collect(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        binary = {"type": "output", "stream": "stdout", "data": base64.b64encode(b"\xff\0").decode()}
        guest.say(
            output("out"), {"type": "sdk_event", "event": {**binary, "encoding": "base64"}}, output("e", "stderr")
        )
        guest.say({"type": "sdk_event", "event": {"type": "result", "subtype": "error", "exitCode": 3}})

    with FileGuest(tmp_path, play).running() as mode:
        done = agent.collect(ask(mode))
    assert (done.status, done.stdout, done.stderr) == (3, b"out\xff\0", b"e")
    with pytest.raises(GuestError, match="failed with status 3: e"):
        done.check()


def test_collect_keeps_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_OUTPUT", 10)
    with (
        FileGuest(tmp_path, lambda guest, request: guest.say(output("x" * 11), RESULT)).running() as mode,
        pytest.raises(RequestError, match="wrote more than"),
    ):
        agent.collect(ask(mode))


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"subtype": "success"}, 0),
        ({"subtype": "error"}, 1),
        ({"subtype": "error", "exitCode": None, "signal": "SIGKILL"}, 137),
        ({"subtype": "error", "exitCode": 5}, 5),
        ({"subtype": "nonsense"}, 1),
        ({}, 1),
        ({"subtype": "success", "exitCode": True}, 0),
    ],
)
def test_status(event: dict[str, Any], status: int) -> None:
    line = json.dumps({"type": "sdk_event", "event": {"type": "result", **event}}).encode()
    result = protocol.parse_event(line)
    assert isinstance(result, Result)
    assert agent.status(result) == status


@pytest.mark.parametrize(
    "options", [{}, {"prompt": "a", "command": ["b"]}, {"command": []}, {"command": "ls"}, {"command": [1]}]
)
def test_requests_without_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        compose(**options)


def test_request_fields() -> None:
    mounts = {"work": {"tag": "work", "guestPath": "/workspace/project"}}
    body = compose(prompt="hi", env={"A": "b"}, cwd="/w", mounts=mounts, extra={"systemPrompt": "s"})
    assert body == {
        "systemPrompt": "s",
        "prompt": "hi",
        "cwd": "/w",
        "env": {"A": "b"},
        "mounts": mounts,
        "autoApprove": False,
    }


# ---- the share as hostile ground ---------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_text('{"timestamp": 1, "secret": true}')
    return path


@pytest.fixture
def ipc(tmp_path: Path) -> Path:
    path = tmp_path / "ipc"
    path.mkdir()
    return path


def test_links_are_not_read(ipc: Path, secret: Path) -> None:
    mode = FileMode(Folder(ipc))
    (ipc / "heartbeat").symlink_to(secret)
    assert mode.heartbeat() is None
    mode.submit("id", {})
    (ipc / "streams" / "id.log").symlink_to(secret)
    with pytest.raises(ShareError, match="not a regular file"):
        mode.read("id")
    mode.close()


@pytest.mark.parametrize("name", ["requests", "streams", "responses"])
def test_a_folder_that_became_a_link_is_refused(ipc: Path, secret: Path, name: str) -> None:
    mode = FileMode(Folder(ipc))
    (ipc / name).rmdir()
    (ipc / name).symlink_to(secret.parent)
    if name == "streams":
        mode.submit("id", {})
    touch: dict[str, Callable[[], object]] = {
        "requests": lambda: mode.submit("id", {}),
        "responses": lambda: mode.permission("id", {}),
        "streams": lambda: mode.read("id"),
    }
    with pytest.raises(ShareError, match="a link or file is where a folder must be"):
        touch[name]()
    with pytest.raises(ShareError):
        FileMode(Folder(ipc))
    mode.close()
    assert names(secret.parent) == ["secret"]


def test_a_planted_link_is_replaced_not_followed(ipc: Path, secret: Path) -> None:
    mode = FileMode(Folder(ipc))
    (ipc / "responses" / "p.json").symlink_to(secret)
    mode.permission("p", {"behavior": "deny"})
    assert "secret" in secret.read_text()
    assert not (ipc / "responses" / "p.json").is_symlink()
    mode.close()


def test_a_fifo_blocks_nobody(ipc: Path) -> None:
    mode = FileMode(Folder(ipc))
    os.mkfifo(ipc / "heartbeat")
    start = time.monotonic()
    assert mode.heartbeat() is None
    assert time.monotonic() - start < 1
    mode.close()


def test_a_folder_in_place_of_a_file(ipc: Path) -> None:
    mode = FileMode(Folder(ipc))
    (ipc / "heartbeat").mkdir()
    assert mode.heartbeat() is None
    (ipc / "responses" / "p.json").mkdir()
    with pytest.raises(ShareError, match="a folder is where a file must be"):
        mode.permission("p", {})
    assert names(ipc / "responses") == ["p.json"]
    mode.close()


def test_a_full_or_vanished_share_is_the_hosts_error(ipc: Path) -> None:
    mode = FileMode(Folder(ipc))
    for name in ("requests", "streams", "responses"):
        (ipc / name).rmdir()
    ipc.rmdir()
    with pytest.raises(HostError, match="cannot be written into the share"):
        mode.submit("id", {})
    mode.close()


def test_an_enormous_heartbeat_is_none(ipc: Path) -> None:
    mode = FileMode(Folder(ipc))
    (ipc / "heartbeat").write_text('{"timestamp": 1000, "x": "' + "y" * protocol.MAX_HEARTBEAT + '"}')
    assert mode.heartbeat() is None
    mode.close()


def test_an_old_heartbeat_is_removed(ipc: Path) -> None:
    (ipc / "heartbeat").write_text('{"timestamp": 1000}')
    mode = FileMode(Folder(ipc))
    assert mode.heartbeat() is None
    mode.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "", "a//b", ".", "a/.", "a\0", "a\\b"])
def test_paths_that_leave(ipc: Path, path: str) -> None:
    folder = Folder(ipc)
    with pytest.raises(ShareError):
        folder.write(path, b"")
    with pytest.raises(ShareError):
        folder.read(path, limit=1)
    folder.close()
    assert names(ipc) == []


@given(path=st.text(st.sampled_from("ab./\\\0"), max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_path_reaches_outside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    top = tmp_path_factory.mktemp("outer")
    (top / "in").mkdir()
    folder = Folder(top / "in")
    with suppress(ShareError, OSError):
        folder.write(path, b"x")
    folder.close()
    assert names(top) == ["in"]


def test_folder_round_trip(ipc: Path) -> None:
    folder = Folder(ipc)
    folder.write("a/b/c.txt", b"hello")
    assert folder.read("a/b/c.txt", limit=100) == b"hello"
    assert folder.read("a/b/c.txt", offset=3, limit=1) == b"l"
    assert folder.size("a/b/c.txt") == 5
    assert folder.read("a/b/none", limit=1) is None
    assert folder.read("none/none", limit=1) is None
    folder.remove("a/b/c.txt")
    folder.remove("a/b/c.txt")
    assert folder.size("a/b/c.txt") is None
    folder.close()
    folder.close()


# ---- heartbeats --------------------------------------------------------------------------------------------------


def test_heartbeat_fields() -> None:
    beat = protocol.parse_heartbeat(
        b'{"timestamp": 5000, "pid": 7, "uptime": 1.5, "ipcMode": "file", "ipcMounted": true, "buildId": "b"}'
    )
    assert beat is not None
    assert (beat.timestamp, beat.pid, beat.uptime, beat.ipc_mode, beat.extra) == (5.0, 7, 1.5, "file", {"buildId": "b"})
    assert beat.trouble(14.9) == ""
    assert beat.trouble(0.0) == ""  # a guest's clock may be ahead
    assert beat.trouble(15.0) == "its heartbeat is 10 s old"


def test_heartbeat_without_the_share() -> None:
    beat = protocol.parse_heartbeat(b'{"timestamp": 5000, "ipcMounted": false}')
    assert beat is not None
    assert "ipcMounted is false" in beat.trouble(5.0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"timestamp":"now"}',
        b'{"timestamp":NaN}',
        b'{"timestamp":1e99}',
        b'{"timestamp":true}',
    ],
)
def test_no_heartbeat(data: bytes) -> None:
    assert protocol.parse_heartbeat(data) is None


# ---- properties of the parsers -----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["type", "event", "requestId", "toolName", "subtype", "exitCode", "signal", "data", "stream", "encoding", "result"]
)
VALUES = st.sampled_from(["sdk_event", "result", "output", "success", "stdout", "base64", "permission_request"]) | JSON
NEARLY = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=5), max_size=6)


@given(st.binary() | NEARLY.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=500)
def test_no_line_makes_the_parser_raise(line: bytes) -> None:
    event = protocol.parse_event(line)
    if isinstance(event, (PermissionRequest, HostToolRequest)):
        assert "/" not in event.request_id
    protocol.parse_heartbeat(line)


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=8), st.data())
@settings(max_examples=300)
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines) + data.draw(st.binary(max_size=10)).replace(b"\n", b"")
    cutter, got, at = Lines(limit=16), [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, 20))
        got += list(cutter.feed(whole[at : at + size]))
        at += size
    assert len(got) == len(lines)
    for line, taken in zip(lines, got, strict=True):
        if len(line) > 16:
            assert isinstance(taken, Garbage)
            assert line.startswith(taken.line[:16])
        else:
            assert taken == line


class Recorded:
    """A transport that plays back a stream in given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.said: list[str] = []

    def heartbeat(self) -> None:
        return None

    def submit(self, request_id: str, request: object) -> None:
        pass

    def read(self, request_id: str) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def permission(self, question_id: str, answer: object) -> None:
        self.said.append(question_id)

    def host_tool(self, question_id: str, answer: object) -> None:
        self.said.append(question_id)

    def cancel(self, request_id: str) -> None:
        pass

    def forget(self, request_id: str) -> None:
        pass

    def close(self) -> None:
        pass


@given(st.lists(st.binary(max_size=60) | NEARLY.map(lambda value: json.dumps(value).encode()), max_size=10), st.data())
@settings(max_examples=300, deadline=None)
def test_the_result_is_never_lost(noise: list[bytes], data: st.DataObject) -> None:
    """Whatever comes before it: a request ends, and its last event is a result."""
    whole = b"\n".join(noise) + b"\n" + json.dumps(RESULT).encode() + b"\n"
    pieces, at = [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, 64))
        pieces.append(whole[at : at + size])
        at += size
    events = list(Request(Recorded(pieces), {}, timeout=5))
    assert isinstance(events[-1], Result)
    assert not any(isinstance(event, Result) for event in events[:-1])


# ---- serial mode -------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[tuple[SerialMode, socket.socket]]:
    host, guest = socket.socketpair()
    mode = SerialMode(host)
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


def test_serial_heartbeat(port: tuple[SerialMode, socket.socket]) -> None:
    mode, guest = port
    assert mode.heartbeat() is None
    tell(guest, b'{"type":"heartbeat","timest')
    assert mode.heartbeat() is None
    tell(guest, b'amp":5000,"ipcMode":"serial"}\n')
    beat = mode.heartbeat()
    assert beat is not None
    assert (beat.timestamp, beat.ipc_mode) == (5.0, "serial")


def test_serial_request(port: tuple[SerialMode, socket.socket]) -> None:
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


def test_serial_host_tool_and_cancel(port: tuple[SerialMode, socket.socket]) -> None:
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


def test_serial_push(port: tuple[SerialMode, socket.socket]) -> None:
    mode, guest = port
    mode.push_file("/workspace/project", "a/b", b"\0small")
    said = hear(guest)
    assert (said["type"], said["basePath"], said["path"]) == ("push_file", "/workspace/project", "a/b")
    assert base64.b64decode(said["data"]) == b"\0small"
    big = os.urandom(serialmode.CHUNK * 2 + 5)
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
        mode.push_file("/w", "x", bytes(serialmode.MAX_FILE + 1))


def sync(kind: str, **fields: Any) -> dict[str, Any]:
    data = fields.pop("data", None)
    return {"type": kind, **fields, **({} if data is None else {"data": base64.b64encode(data).decode()})}


def test_serial_file_sync(port: tuple[SerialMode, socket.socket]) -> None:
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


@pytest.mark.parametrize(
    "message",
    [
        sync("file_sync", path="../x", data=b""),
        sync("file_sync", path="/etc/passwd", data=b""),
        sync("file_sync", path="x"),
        {"type": "file_sync", "path": "x", "data": "*"},
        sync("file_sync_chunk", path="x", transferId="t", chunkIndex=2, totalChunks=2, data=b""),
        sync("file_sync_chunk", path="x", transferId="t", chunkIndex=0, totalChunks=10**9, data=b""),
        sync(
            "file_sync_chunk", path="x", transferId="t", chunkIndex=0, totalChunks=1, data=bytes(serialmode.CHUNK + 1)
        ),
        sync("file_sync_complete", path="x", transferId="unknown", totalChunks=1),
        {"type": "stream", "requestId": 1, "line": "x"},
        {"type": "strange"},
        b"garbage\n",
    ],
)
def test_serial_nonsense(port: tuple[SerialMode, socket.socket], message: dict[str, Any] | bytes) -> None:
    mode, guest = port
    teller = threading.Thread(target=tell, args=(guest, message, {"type": "heartbeat", "timestamp": 1000}))
    teller.start()
    while mode.heartbeat() is None:
        time.sleep(0.005)
    teller.join()
    assert mode.files == {}
    assert len(mode.garbage) == 1


def test_serial_keeps_within_bounds(port: tuple[SerialMode, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    mode, guest = port
    monkeypatch.setattr(serialmode, "MAX_KEPT", 100)
    tell(guest, sync("file_sync", path="x", data=bytes(101)))
    with pytest.raises(GuestError, match="nobody asked for"):
        mode.pump()


def test_serial_does_not_wait_for_a_deaf_guest(
    port: tuple[SerialMode, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, _ = port
    with pytest.raises(GuestError, match=r"took no message for 0\.1 s"):
        mode._send({"type": "x", "data": "y" * (8 << 20)}, timeout=0.1)


def test_serial_end_of_qemu(port: tuple[SerialMode, socket.socket]) -> None:
    mode, guest = port
    guest.close()
    assert mode.heartbeat() is None
    with pytest.raises(GuestError, match="gone"):
        mode.submit("id", {})


@given(st.lists(st.binary(max_size=60) | NEARLY.map(lambda value: json.dumps(value).encode()), max_size=10))
@settings(max_examples=200, deadline=None)
def test_serial_survives_anything(lines: list[bytes]) -> None:
    host, guest = socket.socketpair()
    mode = SerialMode(host)
    tell(guest, *(line + b"\n" for line in lines), {"type": "heartbeat", "timestamp": 1000})
    assert mode.heartbeat() is not None
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
