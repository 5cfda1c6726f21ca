"""The host's side of the agentd contract against fake guests: a thread over a folder, a thread over a socket."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent import completed, protocol, requests
from imgkit.vm.agent.callbacks import HostToolAnswer, Permission
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.protocol import (
    AgentEvent,
    AgentResult,
    Garbage,
    HostToolRequest,
    LineSplitter,
    Output,
    PermissionRequest,
)
from imgkit.vm.agent.requests import AgentRequest, Transport, compose
from imgkit.vm.failures import QemuDiedError, RequestError
from imgkit.vm.shares.sharedfolder import SharedFolder

RESULT = {"type": "sdk_event", "event": {"type": "result", "subtype": "success", "exitCode": 0, "result": "done"}}


def output(text: str, stream: str = "stdout") -> dict[str, Any]:
    return {"type": "sdk_event", "event": {"type": "output", "stream": stream, "data": text}}


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
    def running(self) -> Iterator[FileTransport]:
        mode = FileTransport(SharedFolder(self.ipc))
        self._thread.start()
        try:
            yield mode
        finally:
            self._stop.set()
            self._thread.join()
            mode.close()
            if self.failure is not None:
                raise self.failure


def ask(mode: Transport, **options: Any) -> AgentRequest:
    return AgentRequest(mode, compose(command=["true"]), timeout=options.pop("timeout", 10), **options)


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
    assert isinstance(events[4], AgentResult)
    assert (events[4].ok, events[4].exit_code, events[4].text) == (True, 0, "done")
    assert len(events) == 5
    assert [path.name for path in (tmp_path / "streams").iterdir()] == []


def test_nothing_after_the_result(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        guest.say(RESULT, output("late"), RESULT)

    with FileGuest(tmp_path, play).running() as mode:
        request = ask(mode)
        assert [type(event) for event in request] == [AgentResult]
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
    assert [type(event) for event in events] == [PermissionRequest, PermissionRequest, HostToolRequest, AgentResult]


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
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "deep",
        "inputs",
        "ipc",
        "requests",
        "responses",
        "streams",
    ]


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
    assert isinstance(events[-1], AgentResult)


def test_deadline(tmp_path: Path) -> None:
    with FileGuest(tmp_path, lambda guest, request: guest.say(output("x"))).running() as mode:
        request = ask(mode, timeout=0.2)
        with pytest.raises(RequestError, match=r"no result of the request within 0\.2 s"):
            list(request)
        assert (tmp_path / "requests" / f"{request.id}.cancel").exists()
        assert list(request) == []


class Talkative(FileGuest):
    """A transport to a guest that never stops sending."""

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Take anything."""

    def read(self, request_id: str) -> bytes:
        return json.dumps(output("x")).encode() + b"\n"

    def cancel(self, request_id: str) -> None:
        self.requests.append({"cancelled": request_id})


def test_a_deadline_holds_for_a_guest_that_never_stops_talking(tmp_path: Path) -> None:
    guest = Talkative(tmp_path, lambda guest, request: None)
    request = ask(cast("Transport", guest), timeout=0.2)
    with pytest.raises(RequestError, match=r"no result of the request within 0\.2 s"):
        list(request)
    assert guest.requests == [{"cancelled": request.id}]


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
    monkeypatch.setattr(requests, "MAX_STREAM", 1 << 20)

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


def test_a_request_goes_before_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that restarts between the two takes a request without a stream for a new one."""
    folder = SharedFolder(tmp_path)
    transport = FileTransport(folder)
    transport.submit("r", {})
    (tmp_path / "streams/r.log").write_bytes(b"x\n")
    assert transport.read("r") == b"x\n"
    removed: list[str] = []
    remove = folder.remove

    def record(path: str) -> None:
        removed.append(path)
        remove(path)

    monkeypatch.setattr(folder, "remove", record)
    transport.forget("r")
    assert removed == ["requests/r.json", "streams/r.log"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    transport.close()


def test_files_in_the_share_are_for_the_owner_alone(tmp_path: Path) -> None:
    transport = FileTransport(SharedFolder(tmp_path))
    transport.submit("r", {"prompt": "p"})
    transport.permission("p", {"behavior": "deny"})
    transport.host_tool("h", {"success": True})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {"r.json": 0o600, "p.json": 0o600, "h.host-tool.json": 0o600}
    transport.cancel("r")
    assert (tmp_path / "requests/r.cancel").stat().st_mode & 0o777 == 0o600
    transport.close()


def test_a_stream_is_read_in_pieces_of_a_mebibyte(tmp_path: Path) -> None:
    transport = FileTransport(SharedFolder(tmp_path))
    transport.submit("r", {})
    assert transport.read("r") == b""
    contents = bytes(index % 251 for index in range((1 << 20) + 10))
    (tmp_path / "streams/r.log").write_bytes(contents)
    pieces = [transport.read("r") for _ in range(3)]
    assert [len(piece) for piece in pieces] == [1 << 20, 10, 0]
    assert b"".join(pieces) == contents
    transport.close()


def test_a_message_that_is_no_json_is_the_callers_error(tmp_path: Path) -> None:
    transport = FileTransport(SharedFolder(tmp_path))
    with pytest.raises(UsageError, match="message to the guest cannot be written as JSON"):
        transport.submit("r", {"x": {1}})
    transport.close()


def test_collect(tmp_path: Path) -> None:
    def play(guest: FileGuest, request: dict[str, Any]) -> None:
        binary = {"type": "output", "stream": "stdout", "data": base64.b64encode(b"\xff\0").decode()}
        guest.say(
            output("out"), {"type": "sdk_event", "event": {**binary, "encoding": "base64"}}, output("e", "stderr")
        )
        guest.say({"type": "sdk_event", "event": {"type": "result", "subtype": "error", "exitCode": 3}})

    with FileGuest(tmp_path, play).running() as mode:
        done = completed.collect(ask(mode))
    assert (done.status, done.stdout, done.stderr) == (3, b"out\xff\0", b"e")
    with pytest.raises(GuestError, match="failed with status 3: e"):
        done.check()


def test_collect_keeps_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completed, "MAX_OUTPUT", 10)
    with (
        FileGuest(tmp_path, lambda guest, request: guest.say(output("x" * 11), RESULT)).running() as mode,
        pytest.raises(RequestError, match="wrote more than"),
    ):
        completed.collect(ask(mode))


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
        ({"subtype": "error", "exitCode": 256}, 1),
        ({"subtype": "error", "exitCode": -256}, 1),
        ({"subtype": "error", "signal": "SIGSYS"}, 159),
        ({"subtype": "error", "signal": "SIGNONSENSE"}, 128),
    ],
)
def test_status(event: dict[str, Any], status: int) -> None:
    line = json.dumps({"type": "sdk_event", "event": {"type": "result", **event}}).encode()
    result = protocol.parse_event(line)
    assert isinstance(result, AgentResult)
    assert completed.exit_status(result) == status


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "a", "command": ["b"]},
        {"command": []},
        {"command": "ls"},
        {"command": [1]},
        {"prompt": "a", "auto_approve": "no"},
        {"prompt": "a", "auto_approve": 0},
    ],
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


@pytest.mark.parametrize(
    ("system", "missing"),
    [
        ("{}", ()),
        ('{"hostname": true, "loopback": true, "network": null}', ()),
        ('{"hostname": true, "loopback": false, "network": false}', ("loopback", "network")),
        ('{"\\u001b[2J": false, "": false, "later": false, "n": 0}', ("later",)),
        ("[false]", ()),
        ("null", ()),
    ],
)
def test_what_a_system_still_lacks(system: str, missing: tuple[str, ...]) -> None:
    beat = protocol.parse_heartbeat(b'{"timestamp": 5000, "system": %s}' % system.encode())
    assert beat is not None
    assert beat.missing() == missing
    assert beat.trouble(5.0) == "", "agentd is ready all the same"


def test_a_heartbeat_that_says_nothing_of_the_system() -> None:
    beat = protocol.parse_heartbeat(b'{"timestamp": 5000}')
    assert beat is not None
    assert beat.missing() == ()


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


@pytest.mark.slow
@given(st.binary() | NEARLY.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=500, deadline=None)
def test_no_line_makes_the_parser_raise(line: bytes) -> None:
    event = protocol.parse_event(line)
    if isinstance(event, (PermissionRequest, HostToolRequest)):
        assert "/" not in event.request_id
    protocol.parse_heartbeat(line)


@pytest.mark.slow
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=8), st.data())
@settings(max_examples=300)
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines) + data.draw(st.binary(max_size=10)).replace(b"\n", b"")
    cutter, got, at = LineSplitter(limit=16), [], 0
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

    def input_room(self, request_id: str) -> bool:
        return True

    def send_input(self, request_id: str, data: bytes) -> None:
        pass

    def stop(self, request_id: str) -> None:
        pass

    def cancel(self, request_id: str) -> None:
        pass

    def forget(self, request_id: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.slow
@given(st.lists(st.binary(max_size=60) | NEARLY.map(lambda value: json.dumps(value).encode()), max_size=10), st.data())
@settings(max_examples=300, deadline=None)
def test_the_result_is_never_lost(noise: list[bytes], data: st.DataObject) -> None:
    """A request ends, and its last event is a result, whatever was sent before it."""
    whole = b"\n".join(noise) + b"\n" + json.dumps(RESULT).encode() + b"\n"
    pieces, at = [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, 64))
        pieces.append(whole[at : at + size])
        at += size
    events = list(AgentRequest(Recorded(pieces), {}, timeout=5))
    assert isinstance(events[-1], AgentResult)
    assert not any(isinstance(event, AgentResult) for event in events[:-1])


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_the_limits_of_a_request() -> None:
    """docs/reference/limits.md: the very last byte and question are allowed."""
    request = AgentRequest(Recorded([]), {})
    request._received = (1 << 30) - 5
    request._receive(b"12345")
    with pytest.raises(RequestError, match=r"^the stream of the request grew over 1024 MiB$"):
        request._receive(b"6")
    request._answered = {str(number) for number in range(99_999)}
    request._answer(protocol.PermissionRequest("last", "rm", {}))
    request._answer(protocol.PermissionRequest("last", "rm", {}))
    with pytest.raises(RequestError, match=r"^the agent asked more than 100000 questions$"):
        request._answer(protocol.PermissionRequest("more", "rm", {}))


def test_the_limits_of_a_commands_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """So much of either stream, and an error that names the stream."""
    monkeypatch.setattr(completed, "MAX_OUTPUT", 3 << 20)

    class Request(list[Any]):
        def __enter__(self) -> Request:
            return self

        def __exit__(self, *_: object) -> None:
            """It is over."""

    for stream, other in (("stdout", "stderr"), ("stderr", "stdout")):
        full = Request([Output(stream, bytes(3 << 20)), Output(other, b"more"), AgentResult("success")])
        done = completed.collect(cast("AgentRequest", full))
        assert (len(getattr(done, stream)), getattr(done, other)) == (3 << 20, b"more")
        full.insert(2, Output(stream, b"x"))
        with pytest.raises(RequestError, match=f"^the command wrote more than 3 MiB to {stream}$"):
            completed.collect(cast("AgentRequest", full))


def test_a_request_without_a_result_is_over() -> None:
    request = AgentRequest(Recorded([]), {})
    request.cancel()
    for read in (request.result, lambda: completed.collect(request)):
        with pytest.raises(RequestError, match=r"^the request is over already$"):
            read()
    assert list(request) == []


def test_a_silent_guest_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times a second, and as often it is looked at whether the machine still runs."""
    now, looks = [1000.0], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def alive() -> None:
        looks[0] += 1

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(RequestError, match=r"^no result of the request within 10 s$") as raised:
        AgentRequest(Recorded([]), {}, timeout=10, alive=alive, timeout_hint="more time").result()
    assert raised.value.hint == "more time"
    assert 190 <= looks[0] <= 210
    assert now[0] == pytest.approx(1010.0, abs=0.1)
