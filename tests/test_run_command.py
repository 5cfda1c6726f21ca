"""The messages and statuses of ``imgkit run`` for every way in which a request can end, without a machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.cli import machineoptions
from imgkit.cli.command import Invocation
from imgkit.cli.commands import run
from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent.protocol import AgentResult, parse_event


def ended(monkeypatch: pytest.MonkeyPatch, **event: Any) -> argparse.Namespace:
    """Options for a command whose request ends with this result."""
    result = parse_event(json_line(event))
    assert isinstance(result, AgentResult)

    @contextmanager
    def boot(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(request=lambda **_: nullcontext([result]), kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    return argparse.Namespace(guest_command=["x"], prompt=None, work=None, no_wait=False)


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
    def boot(*_: object) -> Iterator[SimpleNamespace]:
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
    def boot(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(request=lambda **_: nullcontext([]), kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    options = argparse.Namespace(guest_command=["x"], prompt=None, work=None, no_wait=False)
    with pytest.raises(GuestError, match=r"^the request ended without a result$"):
        run.run(options, Invocation())
