"""What the agent does, as text: the messages of the Claude agent SDK, and those of agents of another kind."""

from __future__ import annotations

import io
from typing import Any

import pytest

from imgkit.cli.talking.transcript import GuestText, Transcript
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Event, Garbage, HostToolRequest, Output

INIT = AgentEvent("system", {"type": "system", "subtype": "init", "session_id": "s"})


class Stream(io.TextIOWrapper):
    """A stream in memory that may claim to be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="", errors="surrogateescape")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        """Return what was written and flushed."""
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(errors="surrogateescape")


def shown(*events: Event, terminal: bool = False) -> tuple[str, str]:
    """Return what is on standard output and on standard error."""
    streams = Stream(terminal=terminal), Stream(terminal=terminal)
    transcript = Transcript(*streams)
    for event in events:
        if isinstance(event, AgentResult):
            transcript.end(event)
        else:
            transcript.show(event)
    transcript.rest()
    return streams[0].text(), streams[1].text()


def delta(text: str, **more: Any) -> AgentEvent:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return AgentEvent("stream_event", {"type": "stream_event", "event": event, "parent_tool_use_id": None, **more})


def message(kind: str, *blocks: dict[str, Any], **more: Any) -> AgentEvent:
    return AgentEvent(kind, {"type": kind, "message": {"content": list(blocks)}, "parent_tool_use_id": None, **more})


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def use(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": fields}


def result(words: str, *, ok: bool = True) -> AgentResult:
    return AgentResult("success" if ok else "error", words, 0, None, {})


def test_an_answer_that_is_streamed_is_shown_once() -> None:
    events: list[Event] = [INIT, delta("Hel"), delta("lo"), message("assistant", text("Hello")), result("Hello")]
    assert shown(*events) == ("Hello\n", "")
    assert shown(*events, terminal=True) == ("Hello\n", "")


def test_an_answer_that_was_not_streamed_is_shown_from_its_message_or_from_the_result() -> None:
    assert shown(INIT, message("assistant", text("Hello\n")), result("Hello")) == ("Hello\n", "")
    assert shown(INIT, result("Hello")) == ("Hello\n", "")
    assert shown(INIT, result("it broke", ok=False)) == ("", ""), "the error is reported elsewhere"
    assert shown(result("the agent ended with status 0")) == ("", ""), "agentd's words, not the agent's"
    assert shown(Output("stdout", b"Hello\n"), result("Hello")) == ("Hello\n", "")


def test_tools_are_lines_of_their_own_between_the_parts_of_the_answer() -> None:
    events: list[Event] = [
        INIT,
        delta("I look"),
        message("assistant", text("I look")),
        message("assistant", use("Bash", command="ls -l", description="List")),
        message("user", {"type": "tool_result", "content": "a.txt", "is_error": False}),
        delta("One file"),
        message("assistant", text("One file")),
        result("One file"),
    ]
    assert shown(*events) == ("I look\nOne file\n", "Bash: ls -l\n")
    assert message("assistant").body["parent_tool_use_id"] is None


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (use("Write", content="x", file_path="/a"), "Write: /a"),
        (use("Grep", pattern="a.b", path="/x"), "Grep: a.b"),
        (use("Odd", number=7, text="é"), 'Odd: {"number": 7, "text": "é"}'),
        (use("Bash", command="é" * 200), "Bash: " + "é" * 154 + " … (46 characters more)"),
        (use("Bash", command="a\nrm -rf /\x1b[2J"), "Bash: a\\x0arm -rf /\\x1b[2J"),
        ({"type": "tool_use", "name": "Odd", "input": None}, "Odd: null"),
    ],
)
def test_the_line_of_a_tool(block: dict[str, Any], line: str) -> None:
    assert shown(INIT, message("assistant", block)) == ("", line + "\n")


def test_what_failed_and_what_is_tried_again() -> None:
    failed = {"type": "tool_result", "content": "not today", "is_error": True}
    listed = {"type": "tool_result", "content": [text("x")], "is_error": True}
    retry = {"type": "system", "subtype": "api_retry", "attempt": 2, "max_retries": 10, "error_status": 529}
    lost = {**retry, "attempt": 3, "error_status": None}
    notes = shown(
        message("user", failed), message("user", listed), AgentEvent("system", retry), AgentEvent("system", lost)
    )
    assert notes == (
        "",
        '  failed: not today\n  failed: [{"type": "text", "text": "x"}]\n'
        "the API answered 529; it is asked again, 2 of 10\nthe API answered nothing; it is asked again, 3 of 10\n",
    )


def test_on_a_terminal_a_note_begins_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Stream(terminal=True)
    transcript = Transcript(terminal, terminal)
    transcript.show(delta("I look"))
    transcript.show(message("assistant", use("Bash", command="ls")))
    transcript.show(Output("stderr", b"a warning"))
    transcript.show(message("assistant", use("Bash", command="pwd")))
    assert terminal.text() == "I look\nBash: ls\na warning\nBash: pwd\n"


def test_agents_below_the_agent_only_show_their_tools() -> None:
    below = {"parent_tool_use_id": "toolu_1"}
    events: list[Event] = [
        INIT,
        delta("thinking aloud", **below),
        message("assistant", text("thinking aloud"), use("Read", file_path="/a"), **below),
        delta("Done"),
        message("assistant", text("Done")),
    ]
    assert shown(*events) == ("Done\n", "  Read: /a\n")


def test_the_text_of_an_error_is_left_to_the_error() -> None:
    assert shown(INIT, message("assistant", text("API Error: 529"), error="server_error")) == ("", "")


def test_the_stream_of_one_message_says_nothing_of_the_next() -> None:
    events: list[Event] = [
        INIT,
        delta("A"),
        message("assistant", text("A")),
        message("assistant", text("B")),
        result("B"),
    ]
    assert shown(*events) == ("A\nB\n", "")


def test_an_agent_of_another_kind() -> None:
    events: list[Event] = [
        AgentEvent("started", {"type": "started"}),
        Output("stdout", b"out\xff\n"),
        Output("stderr", b"err\xff"),
        AgentEvent("step", {"type": "step", "n": "é\x1b"}),
        HostToolRequest("q", "clipboard", {}),
        Garbage(b"x", "y"),
        result("done"),
    ]
    assert shown(*events) == ('out\udcff\n{"type": "step", "n": "\\u00e9\\u001b"}\n', "err\udcff")
    assert shown(*events, terminal=True) == ('out\\xff\n{"type": "step", "n": "\\u00e9\\u001b"}\n', "err\\xff\n")
    assert shown(INIT, events[3]) == ("", ""), "the SDK has many messages that only programs need"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"event": None},
        {"event": {"delta": None}},
        {"event": {"delta": {"text": 7}}},
        {"event": {"delta": {"type": "thinking_delta", "thinking": "hm"}}},
    ],
)
def test_a_stream_event_without_text(body: dict[str, Any]) -> None:
    assert shown(INIT, AgentEvent("stream_event", body)) == ("", "")


OTHERS = [7, {"type": "text", "text": 7}, {"type": "tool_use", "name": 7}, {"type": "server_tool_use", "name": "x"}]


@pytest.mark.parametrize("content", [None, "text", {"content": "text"}, {"content": OTHERS}])
@pytest.mark.parametrize("kind", ["assistant", "user"])
def test_a_message_of_another_shape(kind: str, content: Any) -> None:
    assert shown(INIT, AgentEvent(kind, {"message": content})) == ("", "")


def test_a_terminal_gets_nothing_that_it_obeys() -> None:
    evil = "\x1b]0;title\x07\r\u202eAllow? "
    safe = "\\x1b]0;title\\x07\\x0d\\u202eAllow? "
    for event in (delta(evil), Output("stdout", evil.encode()), message("assistant", text(evil))):
        assert shown(event, terminal=True)[0] == safe + "\n"
        assert shown(event)[0].rstrip("\n") == evil
    assert shown(Output("stderr", evil.encode()), terminal=True)[1] == safe + "\n"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["e", "\u0301x"], "e\u0301x"),
        (["e\u0301", "\u0302"], "e\u0301\u0302"),
        (["\u0301"], "\\u0301"),
        (["e"] + ["\u0301"] * 3, "e\u0301\u0301\\u0301"),
        (["e" + "\u0301" * 20, "x"], "e\u0301\u0301" + "\\u0301" * 18 + "x"),
        (["⚠", "\ufe0f ok"], "⚠ ok"),
        (["👩\u200d", "💻"], "👩💻"),
        (["a\t", "b\n", "c"], "a b\nc"),
        (["x" * 9000], "x" * 9000),
    ],
)
def test_characters_in_several_pieces(pieces: list[str], expected: str) -> None:
    assert shown(*map(delta, pieces), terminal=True)[0] == expected + "\n"
    assert shown(*map(delta, pieces))[0] == "".join(pieces) + "\n"


def test_each_piece_is_shown_at_once_but_for_its_last_character() -> None:
    stream = Stream(terminal=True)
    writer = GuestText(stream)
    writer.write("Hello")
    assert stream.text() == "Hell"
    writer.write(" you\n")
    assert stream.text() == "Hello you\n"
    writer.end_line()
    assert stream.text() == "Hello you\n"


@pytest.mark.parametrize(
    ("environment", "dim"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_notes_are_dim_where_the_terminal_has_it(
    environment: dict[str, str], dim: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = message("assistant", use("Bash", command="ls"))
    assert shown(line, terminal=True)[1] == ("\x1b[2mBash: ls\x1b[0m\n" if dim else "Bash: ls\n")
    assert shown(line)[1] == "Bash: ls\n"
