"""Answer the agent's questions by calling the host's callbacks, and check what they return.

The agent asks for two things: permission to use a tool of its own, and the use of a tool of the host. A permission is
granted only if the callback returns True or a :class:`Permission` whose ``allow`` is True::

    def on_permission(question: PermissionRequest) -> Permission:
        return Permission(question.tool_name == "Read", "only reading is allowed")

    vm.request(prompt="…", on_permission=on_permission)

Any other return value (a mapping in the contract's own form, a string, None, the coroutine of an ``async`` function)
denies the permission and raises UsageError, because the callback is at fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from imgkit.errors import UsageError
from imgkit.vm.agent.protocol import HostToolRequest, PermissionRequest

_SHOWN_NAME = 100  # characters of a tool's name that an answer repeats, because the guest chooses the name


@dataclass(frozen=True)
class Permission:
    """Answer to a :class:`PermissionRequest`.

    Attributes:
        allow: whether the agent may use the tool.
        message: reason that the agent is given, or None.
        updated_input: JSON value that replaces the tool's input; None keeps the input.
    """

    allow: bool
    message: str | None = None
    updated_input: Any = None

    def body(self) -> dict[str, Any]:
        """Return the JSON object that the agentd contract defines for the answer."""
        answer: dict[str, Any] = {"behavior": "allow" if self.allow is True else "deny"}
        if self.message is not None:
            answer["message"] = self.message
        if self.updated_input is not None:
            answer["updatedInput"] = self.updated_input
        return answer


@dataclass(frozen=True)
class HostToolAnswer:
    """Answer to a :class:`HostToolRequest`.

    Attributes:
        success: whether the tool did what the agent asked for.
        text: result of the tool.
        error: reason of a failure, or None.
    """

    success: bool
    text: str = ""
    error: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the JSON object that the agentd contract defines for the answer."""
        answer: dict[str, Any] = {"type": "host_tool_response", "success": self.success is True, "text": self.text}
        return answer if self.error is None else {**answer, "error": self.error}


OnPermission: TypeAlias = Callable[[PermissionRequest], "Permission | bool"]
OnHostTool: TypeAlias = Callable[[HostToolRequest], HostToolAnswer]
Send: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Sends an answer, given the id of the question and the JSON object of the answer."""


def deny_permission(question: PermissionRequest) -> Permission:
    """Deny permission: the default callback."""
    return Permission(False, f"nobody to ask about {question.tool_name[:_SHOWN_NAME]}")


def reject_host_tool(question: HostToolRequest) -> HostToolAnswer:
    """Answer that the host has no such tool: the default callback."""
    return HostToolAnswer(False, error=f"the host has no tool {question.tool_name[:_SHOWN_NAME]}")


def answer_permission(question: PermissionRequest, callback: OnPermission, send: Send) -> None:
    """Ask ``callback`` and send its answer. If anything fails, send a denial before the error is raised.

    Raises:
        UsageError: the callback returned neither a valid :class:`Permission` nor a bool.
    """
    try:
        send(question.request_id, _checked_permission(callback(question)).body())
    except BaseException:
        with suppress(Exception):
            send(question.request_id, Permission(False, "the host could not decide").body())
        raise


def answer_host_tool(question: HostToolRequest, callback: OnHostTool, send: Send) -> None:
    """Ask ``callback`` and send its answer. If anything fails, send a failure before the error is raised.

    Raises:
        UsageError: the callback did not return a valid :class:`HostToolAnswer`.
    """
    try:
        send(question.request_id, _checked_tool_answer(callback(question)).body())
    except BaseException:
        with suppress(Exception):
            send(question.request_id, HostToolAnswer(False, error="the host's tool failed").body())
        raise


def _checked_permission(answer: object) -> Permission:
    if isinstance(answer, bool):
        return Permission(answer)
    if isinstance(answer, Permission) and isinstance(answer.allow, bool) and _is_optional_text(answer.message):
        return answer
    raise _wrong_answer("on_permission", answer, "a Permission, True or False")


def _checked_tool_answer(answer: object) -> HostToolAnswer:
    if not isinstance(answer, HostToolAnswer):
        raise _wrong_answer("on_host_tool", answer, "a HostToolAnswer")
    if isinstance(answer.success, bool) and isinstance(answer.text, str) and _is_optional_text(answer.error):
        return answer
    raise _wrong_answer("on_host_tool", answer, "a HostToolAnswer")


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _wrong_answer(callback: str, answer: object, wanted: str) -> UsageError:
    """Return the error for a return value that is not a valid answer. The coroutine of an async callback is closed."""
    name = type(answer).__name__
    if inspect.iscoroutine(answer):
        answer.close()  # otherwise Python warns that it was never awaited
        return UsageError(f"{callback} is an async function, which is not awaited", hint=f"return {wanted}")
    if isinstance(answer, (Permission, HostToolAnswer)):
        return UsageError(
            f"{callback} returned a {name} with fields of the wrong types", hint="allow and success are bools"
        )
    return UsageError(f"{callback} returned {name}, which is not an answer", hint=f"return {wanted}")
