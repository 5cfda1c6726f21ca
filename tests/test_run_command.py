"""The messages and statuses of ``imgkit run`` for every way in which a request can end, without a machine."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.cli.command import Invocation
from imgkit.cli.commands import run
from imgkit.cli.options import machineoptions
from imgkit.cli.talking.conversation import RawOutput
from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent.callbacks import Permission
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Output, PermissionRequest, parse_event

TALK = {"json": False, "auto_approve": False, "limit": None, "interactive": False, "tty": False}
"""Options of the request, as they are when nobody gives them."""


def ended(monkeypatch: pytest.MonkeyPatch, **event: Any) -> argparse.Namespace:
    """Options for a command whose request ends with this result."""
    result = parse_event(json_line(event))
    assert isinstance(result, AgentResult)

    @contextmanager
    def boot(*_: object, terminals: bool) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(request=lambda **_: nullcontext([result]), kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    return argparse.Namespace(image=Path("x.qcow2"), guest_command=["x"], prompt=None, work=None, no_wait=False, **TALK)


def json_line(event: dict[str, Any]) -> bytes:
    return json.dumps({"type": "sdk_event", "event": {"type": "result", **event}}).encode()


@pytest.mark.parametrize(
    ("event", "status", "said"),
    [
        ({"subtype": "success", "exitCode": 0, "result": "the agent ended with status 0"}, 0, ""),
        ({"subtype": "error", "exitCode": 3, "result": "the agent ended with status 3"}, 3, ""),
        ({"subtype": "error", "exitCode": 127, "result": "command not found: x"}, 127, "command not found: x"),
        ({"subtype": "error", "signal": "SIGKILL", "result": "the agent was killed by SIGKILL"}, 137, ""),
        ({"subtype": "error", "exitCode": 256, "result": "the agent ended with status 256"}, 1, ""),
    ],
)
def test_how_a_request_can_end(
    event: dict[str, Any],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run.run(ended(monkeypatch, **event), Invocation()) == status
    assert "".join(caplog.messages) == said


@pytest.mark.parametrize("no_wait", [False, True])
def test_without_the_wait_the_request_says_so(no_wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest holds requests back, too: it must be told."""
    options = ended(monkeypatch, subtype="success", exitCode=0)
    options.no_wait = no_wait
    sent: list[Any] = []
    result = parse_event(json_line({"subtype": "success", "exitCode": 0}))

    @contextmanager
    def boot(*_: object, terminals: bool) -> Iterator[SimpleNamespace]:
        def request(**keywords: Any) -> Any:
            sent.append(keywords["extra"])
            return nullcontext([result])

        yield SimpleNamespace(request=request, kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    assert run.run(options, Invocation()) == 0
    assert sent == [{"awaitSystem": False} if no_wait else None]


def test_an_error_without_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GuestError, match="no agent is configured"):
        run.run(ended(monkeypatch, subtype="error", exitCode=None, result="no agent is configured"), Invocation())


def test_an_unset_variable_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ended(monkeypatch, subtype="success")
    options.work = ""
    with pytest.raises(UsageError, match="--work: no folder given"):
        run.run(options, Invocation())


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"subtype": "error", "exitCode": 0, "result": "it said so"}, "it said so"),
        ({"subtype": "error", "exitCode": 0, "result": ""}, "the agent failed without saying why"),
        ({"subtype": "error", "result": "it said so"}, "it said so"),
    ],
)
def test_a_failure_that_the_status_does_not_show_is_an_error(
    event: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GuestError) as caught:
        run.run(ended(monkeypatch, **event), Invocation())
    assert caught.value.message == message


def test_a_failure_with_status_one_has_that_status(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.run(ended(monkeypatch, subtype="error", exitCode=1, result=""), Invocation()) == 1


def test_a_request_without_a_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def boot(*_: object, terminals: bool) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(request=lambda **_: nullcontext([]), kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    options = argparse.Namespace(
        image=Path("x.qcow2"), guest_command=["x"], prompt=None, work=None, no_wait=False, **TALK
    )
    with pytest.raises(GuestError, match=r"^the request ended without a result$"):
        run.run(options, Invocation())


@pytest.mark.parametrize(
    ("words", "work", "asked", "shown"),
    [
        ({"guest_command": ["ls"], "prompt": None}, None, {"command": ["ls"], "prompt": None, "extra": None}, ""),
        (
            {"guest_command": [], "prompt": "do"},
            "/tmp",
            {"command": None, "prompt": "do", "extra": {"confirmationMode": "text"}},
            '{"a": 1}\n',
        ),
    ],
)
def test_what_a_request_asks_for_and_shows(
    words: dict[str, Any],
    work: str | None,
    asked: dict[str, Any],
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Output goes to the stream that it came from. Events are an agent's, but for the one that says that it started."""
    steps: list[Any] = []
    result = parse_event(json_line({"subtype": "success", "exitCode": 0}))
    events = [
        Output("stdout", b"out\xff"), Output("stderr", b"err\xff"), AgentEvent("started", {"b": 2}),
        AgentEvent("text", {"a": 1}), result, Output("stdout", b"never"),
    ]  # fmt: skip

    @contextmanager
    def boot(_options: object, shares: object, *, terminals: bool) -> Iterator[SimpleNamespace]:
        def request(**keywords: Any) -> Any:
            steps.append(keywords)
            return nullcontext(iter(events))

        steps.append(shares)
        yield SimpleNamespace(request=request, kill=lambda: steps.append("kill"))

    monkeypatch.setattr(machineoptions, "boot", boot)
    assert (
        run.run(argparse.Namespace(image=Path("x.qcow2"), work=work, no_wait=False, **TALK, **words), Invocation()) == 0
    )
    on_permission = steps[1].pop("on_permission")
    assert steps == [
        {} if work is None else {"work": Path(work)},
        {**asked, "auto_approve": False, "limit": None, "stdin": None},
        "kill",
    ]
    assert capfdbinary.readouterr() == (b"out\xff" + shown.encode(), b"err\xff")
    caplog.set_level(logging.CRITICAL)
    assert on_permission(PermissionRequest("q", "Bash", {})) == Permission(False, "nobody is there to allow it")


@pytest.mark.parametrize(
    ("command", "prompt", "message"),
    [([], None, "give a command or a prompt"), (["x"], "do", "give a command or a prompt, not both")],
)
def test_a_command_or_a_prompt(command: list[str], prompt: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run.run(
            argparse.Namespace(image=Path("x.qcow2"), work=None, **TALK, guest_command=command, prompt=prompt),
            Invocation(),
        )
    assert caught.value.message == message
    assert caught.value.hint == "imgkit run IMAGE -- COMMAND…, or --prompt TEXT"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_is_shown_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    stream = SimpleNamespace(buffer=SimpleNamespace(write=steps.append), flush=lambda: steps.append("flush"))
    monkeypatch.setattr("sys." + name, stream)
    RawOutput().show(Output(name, b"x"))
    assert steps == [b"x", "flush"]
