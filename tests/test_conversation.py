"""What ``imgkit run`` shows of a request, and who answers the agent."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from imgkit.cli.talking import conversation
from imgkit.cli.talking.approval import Approver
from imgkit.cli.talking.conversation import Conversation, EventLines, RawOutput
from imgkit.cli.talking.transcript import Transcript
from imgkit.errors import GuestError
from imgkit.vm.agent.callbacks import Permission
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Event, Garbage, Output, PermissionRequest

DONE = AgentResult("success", "done", 0, None, {"type": "result", "subtype": "success", "result": "done"})
BASH = PermissionRequest("q", "Bash", {"command": "ls"})


def options(**changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "guest_command": [], "prompt": "do", **changed})


class Steps:
    """A screen that notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def show(self, event: Event) -> None:
        self.steps.append(event)

    def rest(self) -> None:
        self.steps.append("rest")

    def end(self, result: AgentResult) -> None:
        self.steps.append(("end", result))


def test_events_are_shown_until_the_result() -> None:
    screen = Steps()
    event = AgentEvent("a", {})
    assert Conversation(screen, None).follow([event, DONE, event]) is DONE
    assert screen.steps == [event, ("end", DONE), "rest"]


def test_a_request_without_a_result_is_an_error() -> None:
    screen = Steps()
    with pytest.raises(GuestError, match=r"^the request ended without a result$"):
        Conversation(screen, None).follow([AgentEvent("a", {})])
    assert screen.steps[-1] == "rest", "the error begins on a line of its own"


def test_where_nobody_is_every_tool_is_denied_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    talk = Conversation(Steps(), None)
    assert talk.extra == {"confirmationMode": "text"}, "the agent shall not ask questions with choices"
    for tool in ("Bash\x1b", "Write"):
        question = PermissionRequest("q", tool, {})
        assert talk.permission(question) == Permission(False, "nobody is there to allow it")
    assert caplog.messages == [
        "the agent asks whether it may use Bash\\x1b, and nobody is at a terminal to answer: denied, like all that it "
        "will ask (--auto-approve allows all)"
    ]


def test_somebody_is_asked_on_a_line_of_its_own() -> None:
    screen = Steps()

    class Somebody(Approver):
        def __init__(self) -> None:
            pass

        def decide(self, question: PermissionRequest) -> Permission:
            screen.steps.append(question)
            return Permission(True)

    talk = Conversation(screen, Somebody())
    assert talk.permission(BASH) == Permission(True)
    assert screen.steps == ["rest", BASH]
    assert talk.extra == {}


@pytest.mark.parametrize(
    ("given", "screen"),
    [
        ({}, Transcript),
        ({"json": True}, EventLines),
        ({"guest_command": ["ls"], "prompt": None}, RawOutput),
        ({"guest_command": ["ls"], "prompt": None, "json": True}, EventLines),
    ],
)
def test_what_shows_the_events(given: dict[str, Any], screen: type) -> None:
    assert type(conversation.start(options(**given))._screen) is screen


@pytest.mark.parametrize(
    ("keyboard", "display", "somebody"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_person_needs_a_keyboard_and_a_display(
    keyboard: bool, display: bool, somebody: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", argparse.Namespace(isatty=lambda: keyboard))
    monkeypatch.setattr("sys.stderr", argparse.Namespace(isatty=lambda: display))
    assert (conversation.start(options())._approver is not None) is somebody
    command = options(guest_command=["ls"], prompt=None)
    assert conversation.start(command)._approver is None, "the input may be the command's"


def test_without_standard_input_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert conversation.start(options())._approver is None


def test_lines_of_json_are_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    screen = EventLines()
    events: list[Event] = [
        AgentEvent("started", {"type": "started"}), AgentEvent("system", {"type": "system", "text": "é\x1b\x7f"}),
        Output("stderr", b"a\xff\n"), BASH, Garbage(b"x", "y"),
    ]  # fmt: skip
    assert Conversation(screen, None).follow([*events, DONE]) is DONE
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [
        {"type": "system", "text": "é\x1b\x7f"},
        {"type": "output", "stream": "stderr", "data": "a\ufffd\n"},
        {"type": "permission_request", "toolName": "Bash", "toolInput": {"command": "ls"}},
        DONE.body,
    ]
    assert printed.out.isascii()
    assert not any(character in printed.out for character in "\x1b\x7f")
    assert printed.err == ""


def test_a_command_shows_its_output_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    events: list[Event] = [Output("stdout", b"out\xff"), AgentEvent("a", {"type": "a"}), Output("stderr", b"err\xff")]
    Conversation(RawOutput(), None).follow([*events, DONE])
    assert capfdbinary.readouterr() == (b"out\xff", b"err\xff")


def test_the_options() -> None:
    parser = argparse.ArgumentParser()
    conversation.arguments(parser)
    assert vars(parser.parse_args([])) == {"json": False, "auto_approve": False}
    assert vars(parser.parse_args(["--json", "--auto-approve"])) == {"json": True, "auto_approve": True}
