"""The bounds of the parsers of what a guest sends: each limit, and the first value beyond it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgkit.vm.agent import protocol
from imgkit.vm.agent.protocol import (
    AgentEvent,
    AgentResult,
    Garbage,
    Heartbeat,
    HostToolRequest,
    LineSplitter,
    Output,
    PermissionRequest,
    parse_event,
    parse_heartbeat,
    parse_object,
    usable_name,
)

# ---- lines -------------------------------------------------------------------------------------------------------


def test_a_line_of_the_maximum_length_is_kept() -> None:
    splitter = LineSplitter(limit=8)
    assert list(splitter.feed(b"12345678\nabc\n")) == [b"12345678", b"abc"]


@pytest.mark.parametrize("pieces", [[b"123456789\nnext\n"], [b"1234", b"56789", b"0", b"\nnext\n"]])
def test_a_longer_line_is_skipped_and_the_next_is_not(pieces: list[bytes]) -> None:
    splitter = LineSplitter(limit=8)
    garbage, line = [line for piece in pieces for line in splitter.feed(piece)]
    assert garbage == Garbage(b"123456789", "longer than 8 bytes")
    assert line == b"next"


def test_of_a_long_line_the_beginning_is_shown_and_no_more_is_kept() -> None:
    splitter = LineSplitter(limit=300)
    for _ in range(10):
        assert list(splitter.feed(b"x" * 299)) == []
    assert len(splitter._pending) == 200
    assert list(splitter.feed(b"\n")) == [Garbage(b"x" * 200, "longer than 300 bytes")]


def test_a_line_may_have_sixteen_mebibytes() -> None:
    splitter = LineSplitter()
    assert [len(line) for line in splitter.feed(b"x" * (16 << 20) + b"\n") if isinstance(line, bytes)] == [16 << 20]
    assert [type(line) for line in splitter.feed(b"x" * ((16 << 20) + 1) + b"\n")] == [Garbage]


# ---- objects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separators", "line"),
    [
        (1_000_000, b"[" + b"," * 999_998 + b"]"),
        (1_000_000, b"{" * 1_000_000),
        (1_000_000, b"[" * 400_000 + b"," * 600_000),
    ],
)
def test_the_number_of_values_is_bounded(separators: int, line: bytes) -> None:
    """The limit is on commas and brackets of any kind; a line at the limit is refused for another reason."""
    with pytest.raises(ValueError, match="too many values"):
        parse_object(line + b",[")
    with pytest.raises(ValueError, match=r"Expecting|too deep|double quotes"):
        parse_object(line + b" ")


def test_digits_are_bounded() -> None:
    assert parse_object(b'{"n": %s}' % (b"9" * 400)) == {"n": int("9" * 400)}
    with pytest.raises(ValueError, match="number too long"):
        parse_object(b'{"n": %s}' % (b"9" * 401))


def test_other_values_are_no_object() -> None:
    with pytest.raises(ValueError, match="not an object"):
        parse_object(b"[1]")
    with pytest.raises(ValueError, match="nested too deep"):
        parse_object(b"[" * 100_000)


@pytest.mark.parametrize(
    ("name", "usable"),
    [("a", True), ("_.-9", True), ("x" * 128, True), ("x" * 129, False), (".a", False), ("-a", False), ("", False)],
)
def test_names_in_the_share(name: str, usable: bool) -> None:
    assert usable_name(name) is usable


# ---- heartbeats --------------------------------------------------------------------------------------------------


def beat(**fields: Any) -> Heartbeat | None:
    return parse_heartbeat(json.dumps({"timestamp": 5000, **fields}).encode())


def test_a_heartbeat_with_defaults() -> None:
    assert beat() == Heartbeat(5.0, 0, 0.0, "file", True, {})


@pytest.mark.parametrize(("mounted", "expected"), [(False, False), (True, True), (None, True), (0, True), ("no", True)])
def test_only_false_says_that_the_share_is_not_mounted(mounted: object, expected: bool) -> None:
    heartbeat = beat(ipcMounted=mounted)
    assert heartbeat is not None
    assert heartbeat.ipc_mounted is expected


def test_the_size_of_a_heartbeat() -> None:
    """docs/reference/limits.md."""
    assert protocol.MAX_HEARTBEAT == 65536


def test_fields_of_other_types_and_lengths() -> None:
    heartbeat = beat(pid="x", uptime=[1], ipcMode="m" * 50)
    assert heartbeat is not None
    assert (heartbeat.pid, heartbeat.uptime, heartbeat.ipc_mode) == (0, 0, "m" * 40)


@pytest.mark.parametrize(("number", "good"), [(1e15, False), (-1e15, False), (999999999999999, True), (-1, True)])
def test_times_are_bounded(number: float, good: bool) -> None:
    assert (parse_heartbeat(json.dumps({"timestamp": number}).encode()) is not None) is good


def test_the_age_at_which_a_heartbeat_is_old() -> None:
    heartbeat = beat()
    assert heartbeat is not None
    assert heartbeat.trouble(14.999) == ""
    assert heartbeat.trouble(15.0) == "its heartbeat is 10 s old"
    assert heartbeat.trouble(17.0) == "its heartbeat is 12 s old"


def test_missing_parts_are_named_up_to_eight() -> None:
    names = [f"part{letter}" for letter in "abcdefghij"]
    heartbeat = beat(system={"x" * 41: False, "y" * 40: False, **dict.fromkeys(names, False)})
    assert heartbeat is not None
    assert heartbeat.missing() == ("y" * 40, *names[:7])


# ---- events ------------------------------------------------------------------------------------------------------


def event(**fields: Any) -> bytes:
    return json.dumps({"type": "sdk_event", "event": fields}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "not a JSON object: not an object"),
        (b'{"n": %s}' % (b"9" * 401), "not a JSON object: number too long"),
        (b'{"type": "sdk_event", "event": 1}', "sdk_event without an event"),
        (b'{"type": "%s"}' % (b"x" * 50), "unknown type 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"),
        (b'{"type": "permission_request", "requestId": "/", "toolName": "x"}', "unusable requestId"),
        (b'{"type": "permission_request", "requestId": ["a"], "toolName": "x"}', "unusable requestId"),
        (b'{"type": "host_tool_request", "requestId": "a", "toolName": 1}', "toolName is no text"),
        (event(type=1), "event without a type"),
        (event(type="output", stream="stdin", data="x"), "output without stream and data"),
        (event(type="output", stream="stdout", data=1), "output without stream and data"),
        (event(type="output", stream="stdout", data="a", encoding="base64"), "output is not base64"),
        (event(type="output", stream="stdout", data="YQ==\n", encoding="base64"), "output is not base64"),
    ],
)
def test_garbage_says_what_is_wrong(line: bytes, reason: str) -> None:
    assert parse_event(line) == Garbage(line[:200], reason)


def test_of_garbage_the_beginning_is_shown() -> None:
    line = b"x" * 300
    garbage = parse_event(line)
    assert isinstance(garbage, Garbage)
    assert garbage.line == b"x" * 200
    assert garbage.reason.startswith("not a JSON object: Expecting value")


def test_questions_of_either_kind() -> None:
    fields = b'"requestId": "id", "toolName": "rm", "toolInput": {"a": 1}}'
    assert parse_event(b'{"type": "permission_request", ' + fields) == PermissionRequest("id", "rm", {"a": 1})
    assert parse_event(b'{"type": "host_tool_request", ' + fields) == HostToolRequest("id", "rm", {"a": 1})


def test_output_in_either_encoding() -> None:
    assert parse_event(event(type="output", stream="stderr", data="é\ud800")) == Output("stderr", b"\xc3\xa9?")
    assert parse_event(event(type="output", stream="stdout", data="/w==", encoding="base64")) == Output(
        "stdout", b"\xff"
    )


def test_other_events_are_handed_on() -> None:
    assert parse_event(event(type="started", x=1)) == AgentEvent("started", {"type": "started", "x": 1})


def test_a_result_with_fields_of_other_types() -> None:
    body = {"type": "result", "subtype": "success", "exitCode": "0", "signal": "S" * 50, "result": 1}
    assert parse_event(event(**body)) == AgentResult("success", "", None, "S" * 40, body)
    body = {"type": "result", "subtype": "done", "exitCode": False, "signal": 9, "result": "text"}
    assert parse_event(event(**body)) == AgentResult("error", "text", None, None, body)
    assert not AgentResult("error").ok


@pytest.mark.slow
def test_a_line_of_many_values_is_still_an_event() -> None:
    """A little below the limit nothing is refused."""
    values = [0] * (protocol.MAX_VALUES - 10)
    assert isinstance(parse_event(event(type="big", values=values)), AgentEvent)
