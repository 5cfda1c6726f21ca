"""The host's answers to the agent's questions: may I, and please do.

Only a clear yes is a yes. Whatever else a callback gives back (a mapping in the contract's own shape, a text, None, the
coroutine of an ``async`` function) refuses and is an error of whoever wrote the callback.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from imgkit.errors import UsageError
from imgkit.vm.agent.protocol import HostToolRequest, PermissionRequest

_NAME = 100  # characters of a tool's name that an answer repeats: the name is the guest's


@dataclass(frozen=True)
class Permission:
    """Answer to a :class:`PermissionRequest`."""

    allow: bool
    message: str | None = None
    updated_input: Any = None

    def body(self) -> dict[str, Any]:
        """As the contract has it."""
        answer: dict[str, Any] = {"behavior": "allow" if self.allow is True else "deny"}
        if self.message is not None:
            answer["message"] = self.message
        if self.updated_input is not None:
            answer["updatedInput"] = self.updated_input
        return answer


@dataclass(frozen=True)
class HostToolAnswer:
    """Answer to a :class:`HostToolRequest`."""

    success: bool
    text: str = ""
    error: str | None = None

    def body(self) -> dict[str, Any]:
        """As the contract has it."""
        answer: dict[str, Any] = {"type": "host_tool_response", "success": self.success is True, "text": self.text}
        return answer if self.error is None else {**answer, "error": self.error}


OnPermission: TypeAlias = Callable[[PermissionRequest], "Permission | bool"]
OnHostTool: TypeAlias = Callable[[HostToolRequest], HostToolAnswer]
Send: TypeAlias = Callable[[str, Mapping[str, Any]], None]


def deny_permission(question: PermissionRequest) -> Permission:
    """The answer where nobody is there to be asked."""
    return Permission(False, f"nobody to ask about {question.tool_name[:_NAME]}")


def reject_host_tool(question: HostToolRequest) -> HostToolAnswer:
    """The answer where the host offers no tools."""
    return HostToolAnswer(False, error=f"the host has no tool {question.tool_name[:_NAME]}")


def answer_permission(question: PermissionRequest, callback: OnPermission, send: Send) -> None:
    """Send the answer of ``callback``. Whatever goes wrong, a denial is sent before the error is raised.

    Raises:
        UsageError: the callback returned something else than a :class:`Permission` or a bool.
    """
    try:
        send(question.request_id, _permission(callback(question)).body())
    except BaseException:
        with suppress(Exception):
            send(question.request_id, Permission(False, "the host could not decide").body())
        raise


def answer_host_tool(question: HostToolRequest, callback: OnHostTool, send: Send) -> None:
    """Send the answer of ``callback``. Whatever goes wrong, a failure is sent before the error is raised.

    Raises:
        UsageError: the callback returned something else than a :class:`HostToolAnswer`.
    """
    try:
        send(question.request_id, _tool_answer(callback(question)).body())
    except BaseException:
        with suppress(Exception):
            send(question.request_id, HostToolAnswer(False, error="the host's tool failed").body())
        raise


def _permission(answer: object) -> Permission:
    if isinstance(answer, bool):
        return Permission(answer)
    if isinstance(answer, Permission) and isinstance(answer.allow, bool) and _is_text(answer.message):
        return answer
    raise _wrong("on_permission", answer, "a Permission, True or False")


def _tool_answer(answer: object) -> HostToolAnswer:
    right = isinstance(answer, HostToolAnswer) and isinstance(answer.success, bool) and isinstance(answer.text, str)
    if isinstance(answer, HostToolAnswer) and right and _is_text(answer.error):
        return answer
    raise _wrong("on_host_tool", answer, "a HostToolAnswer")


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _wrong(callback: str, answer: object, wanted: str) -> UsageError:
    """The error for an answer that is none. What would have become of an ``async`` callback is given up."""
    name = type(answer).__name__
    if inspect.iscoroutine(answer):
        answer.close()  # or Python warns that nobody awaited it
        return UsageError(f"{callback} is an async function, whose answer nobody waits for", hint=f"return {wanted}")
    if isinstance(answer, (Permission, HostToolAnswer)):
        return UsageError(
            f"{callback} returned a {name} with fields of other types", hint="allow and success are bools"
        )
    return UsageError(f"{callback} returned {name}, which is no answer", hint=f"return {wanted}")
