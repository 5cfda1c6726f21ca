"""Permissions fail closed: only an explicit yes grants one, and any other answer of a callback is an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import GuestError, UsageError
from imgkit.vm import VM
from imgkit.vm.agent.callbacks import HostToolAnswer, Permission
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.protocol import HostToolRequest, PermissionRequest
from imgkit.vm.agent.requests import AgentRequest, Transport
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.failures import RequestError
from imgkit.vm.shares.quotas import Quotas
from imgkit.vm.shares.sharedfolder import SharedFolder
from tests.test_agent_client import RESULT, Recorded

PERMISSION = {"type": "permission_request", "requestId": "p", "toolName": "rm", "toolInput": {"path": "/"}}
RESULT_LINE = json.dumps(RESULT).encode() + b"\n"
HOST_TOOL = {"type": "host_tool_request", "requestId": "h", "toolName": "open", "toolInput": "url"}


class Asking(Recorded):
    """A transport to a guest that asks one question; ``answers`` has what it is told, ``cancelled`` the requests."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        super().__init__([json.dumps(question).encode() + b"\n"])
        self.answers: list[Mapping[str, Any]] = []
        self.cancelled: list[str] = []

    def permission(self, question_id: str, answer: object) -> None:
        assert isinstance(answer, dict)
        self.answers.append(answer)

    host_tool = permission

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


async def says_no(_: object) -> bool:
    return False


async def says_yes(_: object) -> bool:
    return True


def later(_: object) -> Any:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[bool] = loop.create_future()
    future.set_result(True)
    loop.close()
    return future


class Yes:
    """An object that is true in a condition."""

    def __bool__(self) -> bool:
        return True


NO_ANSWERS: list[Callable[[Any], Any]] = [
    lambda _: {"behavior": "deny"},
    lambda _: {"behavior": "allow"},
    lambda _: "deny",
    lambda _: "allow",
    lambda _: "",
    lambda _: None,
    lambda _: 0,
    lambda _: 1,
    lambda _: Yes(),
    lambda _: bool,
    lambda _: (yield True),
    says_no,
    says_yes,
    later,
    lambda _: Permission("deny"),  # type: ignore[arg-type]
    lambda _: Permission(1),  # type: ignore[arg-type]
    lambda _: Permission(True, message={"no": "text"}),  # type: ignore[arg-type]
    lambda _: HostToolAnswer("no"),  # type: ignore[arg-type]
    lambda _: HostToolAnswer(True, text=b"bytes"),  # type: ignore[arg-type]
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("callback", [*NO_ANSWERS, lambda _: HostToolAnswer(True)])
def test_what_is_no_permission_denies_and_raises(callback: Callable[[Any], Any]) -> None:
    transport = Asking(PERMISSION)
    request = AgentRequest(transport, {}, on_permission=callback)
    with pytest.raises(UsageError, match="on_permission"):
        next(request)
    assert [answer["behavior"] for answer in transport.answers] == ["deny"]
    assert transport.cancelled == [request.id]
    assert list(request) == [], "the request is over"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("callback", [*NO_ANSWERS, lambda _: True, lambda _: Permission(True)])
def test_what_is_no_answer_of_a_tool_fails_and_raises(callback: Callable[[Any], Any]) -> None:
    transport = Asking(HOST_TOOL)
    with pytest.raises(UsageError, match="on_host_tool"):
        next(AgentRequest(transport, {}, on_host_tool=callback))
    assert [answer["success"] for answer in transport.answers] == [False]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_callback_that_raises_refuses_first(error: BaseException) -> None:
    def fails(_: object) -> Any:
        raise error

    for question, key, refusal in ((PERMISSION, "behavior", "deny"), (HOST_TOOL, "success", False)):
        transport = Asking(question)
        with pytest.raises(type(error)) as raised:
            next(AgentRequest(transport, {}, on_permission=fails, on_host_tool=fails))
        assert raised.value is error
        assert [answer[key] for answer in transport.answers] == [refusal]


def test_the_error_of_a_callback_is_not_lost_when_the_guest_is_gone() -> None:
    class Gone(Asking):
        def permission(self, question_id: str, answer: object) -> None:
            raise GuestError("the serial port of the guest is gone")

    with pytest.raises(UsageError, match="async"):
        next(AgentRequest(Gone(PERMISSION), {}, on_permission=says_yes))  # type: ignore[arg-type]


@pytest.mark.parametrize("strange", [{1, 2}, b"bytes", [[]]])
def test_an_input_that_cannot_be_sent_denies(tmp_path: Path, strange: Any) -> None:
    if strange == [[]]:
        strange[0] = strange
    mode = FileTransport(SharedFolder(tmp_path))
    request = AgentRequest(mode, {}, on_permission=lambda _: Permission(True, updated_input=strange))
    (tmp_path / f"streams/{request.id}.log").write_text(json.dumps(PERMISSION) + "\n")
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        next(request)
    assert json.loads((tmp_path / "responses/p.json").read_text())["behavior"] == "deny"
    mode.close()


@pytest.mark.parametrize("answer", [True, False, Permission(True), Permission(False, "no")])
def test_clear_answers(answer: Permission | bool) -> None:
    transport = Asking(PERMISSION)
    assert isinstance(next(AgentRequest(transport, {}, on_permission=lambda _: answer)), PermissionRequest)
    allowed = answer if isinstance(answer, bool) else answer.allow
    assert [said["behavior"] for said in transport.answers] == ["allow" if allowed else "deny"]
    transport = Asking(HOST_TOOL)
    assert isinstance(
        next(AgentRequest(transport, {}, on_host_tool=lambda _: HostToolAnswer(True, "done"))), HostToolRequest
    )
    assert transport.answers == [{"type": "host_tool_response", "success": True, "text": "done"}]


def test_an_answer_is_short_however_long_the_question_is() -> None:
    """Otherwise a guest could make the host fill its own disk."""
    for question in (PERMISSION, HOST_TOOL):
        transport = Asking({**question, "toolName": "n" * 1_000_000})
        next(AgentRequest(transport, {}))
        assert len(str(transport.answers[0])) < 500


def without_machine(transport: Transport, quotas: Quotas) -> VM:
    """Return a handle that carries its requests over ``transport``."""
    vm = VM.__new__(VM)
    vm._folders, vm._transport = {}, transport
    vm.spec = BootSpec(None, quotas=quotas)
    vm.__dict__["check"] = lambda: None
    return vm


@pytest.mark.parametrize(("seconds", "timeout"), [(0.2, None), (0.2, 50.0), (50.0, 0.2), (None, 0.2)])
def test_the_sooner_of_a_requests_two_times_counts(seconds: float | None, timeout: float | None) -> None:
    vm = without_machine(Recorded([]), Quotas(seconds=seconds))
    with pytest.raises(RequestError, match=r"no result of the request within 0\.2 s") as raised:
        vm.run(["true"], timeout=timeout)
    what = "timeout=" if timeout == 0.2 else "--quota time="
    assert what in str(raised.value.hint), "the hint names what was the sooner"


@pytest.mark.parametrize("given", [{}, {"auto_approve": False}, {"auto_approve": True}])
def test_a_command_may_not_do_what_it_asks_for_unless_told(given: dict[str, Any]) -> None:
    """agentd itself answers ``agent-ask`` if the request allows it."""
    sent: list[Any] = []

    class Sent(Recorded):
        def submit(self, request_id: str, request: object) -> None:
            sent.append(request)

    without_machine(Sent([RESULT_LINE]), Quotas()).run(["true"], **given)
    assert sent[0]["autoApprove"] is given.get("auto_approve", False)
