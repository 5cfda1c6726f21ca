"""Send requests to the agent in a guest, and iterate over the events that it sends back.

An :class:`AgentRequest` is an iterator of events that ends after the result. Two transports carry requests and events:
files in the request share (:mod:`imgkit.vm.agent.filetransport`) and lines on a virtio-serial port
(:mod:`imgkit.vm.agent.serialtransport`)::

    with AgentRequest(transport, compose(command=["uname", "-a"]), timeout=60) as request:
        for event in request:
            print(event)
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent import callbacks, protocol, ratelimit
from imgkit.vm.agent.callbacks import OnHostTool, OnPermission, deny_permission, reject_host_tool
from imgkit.vm.agent.protocol import (
    AgentResult,
    Event,
    Garbage,
    Heartbeat,
    HostToolRequest,
    LineSplitter,
    PermissionRequest,
)
from imgkit.vm.agent.ratelimit import RateLimit, StreamRateLimit
from imgkit.vm.failures import RequestError

POLL = 0.05
"""Seconds between two looks at the stream, and at whether the machine still runs."""
MAX_STREAM = 1 << 30
"""Maximum size of a request's stream in bytes."""
MAX_QUESTIONS = 100_000
"""Maximum number of questions that the agent may ask during a request."""
_DRAIN_TIMEOUT = 5.0  # seconds for reading what a machine that is gone had sent before


class Transport(Protocol):
    """Carries requests into the guest and events out of it. No method blocks for long.

    Every method but ``cancel``, ``forget`` and ``close`` may raise GuestError, if the guest is gone or breaks the
    contract. Methods that send a message raise UsageError if it cannot be written as JSON.
    """

    def heartbeat(self) -> Heartbeat | None:
        """Return the newest heartbeat since the machine started, or None if there was none yet."""

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Send the request ``request``, a JSON object, to the agent under the id ``request_id``."""

    def read(self, request_id: str) -> bytes:
        """Return up to 1 MiB of the request's stream that was not returned yet; empty if there is nothing new."""

    def permission(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Send the answer to a permission request."""

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Send the answer to a host tool request."""

    def cancel(self, request_id: str) -> None:
        """Ask the guest to stop working on the request. A guest that is gone is not an error."""

    def forget(self, request_id: str) -> None:
        """Remove what is left of a request that is over."""

    def close(self) -> None:
        """Release what the transport holds open."""


def compose(
    *,
    prompt: str | None = None,
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    mounts: Mapping[str, Mapping[str, str]] | None = None,
    auto_approve: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compose the JSON object of a request.

    Args:
        prompt: text for the agent.
        command: argument list that is run instead of the agent, without a shell.
        env: environment variables that are added to the agent's.
        cwd: working folder in the guest; None leaves it to agentd.
        mounts: shares that are mounted before the agent starts: name → {"tag": tag of the share, "guestPath": folder}.
        auto_approve: whether the agent may use its tools without asking for permission.
        extra: further fields of the request, as the agentd contract defines them.

    Raises:
        UsageError: neither or both of ``prompt`` and ``command`` are given, the command is empty or not a list of
            strings, or ``auto_approve`` is not a bool.
    """
    if (prompt is None) == (command is None):
        raise UsageError("a request needs either a prompt or a command")
    if isinstance(command, str) or not all(isinstance(word, str) for word in command or ()) or command == []:
        raise UsageError("a command is a non-empty list of words")
    if not isinstance(auto_approve, bool):
        raise UsageError("auto_approve is True or False")
    request: dict[str, Any] = dict(extra or {})
    if command is not None:
        request["command"] = list(command)
    else:
        request["prompt"] = prompt
    if cwd is not None:
        request["cwd"] = cwd
    request["env"] = dict(env or {})
    request["mounts"] = {name: dict(mount) for name, mount in (mounts or {}).items()}
    request["autoApprove"] = auto_approve
    return request


class AgentRequest:
    """A request, which is submitted when the object is created. Its events are iterated over; the last is the result.

    The callbacks answer a question of the agent before it is yielded. If a callback raises, or returns a value of
    another type than it must, the answer is a denial, ``next()`` raises the error, and the request is cancelled.
    :meth:`cancel`, or the end of a ``with`` block, asks the guest to stop a request that is not over.

    Attributes:
        id: the request's id, a UUID.
    """

    def __init__(
        self,
        transport: Transport,
        body: Mapping[str, Any],
        *,
        on_permission: OnPermission = deny_permission,
        on_host_tool: OnHostTool = reject_host_tool,
        timeout: float | None = None,
        alive: Callable[[], None] = lambda: None,
        timeout_hint: str = "a longer timeout= of the request",
    ) -> None:
        """Submit the request.

        Args:
            transport: carries the request.
            body: the request's JSON object; see :func:`compose`.
            on_permission: answers the agent's permission requests.
            on_host_tool: answers the agent's host tool requests.
            timeout: seconds until the result must be there; None waits for ever.
            alive: called every :data:`POLL` seconds; raises GuestError when the guest is gone.
            timeout_hint: the hint of the error that is raised when the time is over.

        Raises:
            GuestError, HostError, UsageError: as :meth:`Transport.submit`.
        """
        self.id = str(uuid.uuid4())
        self._transport = transport
        self._on_permission = on_permission
        self._on_host_tool = on_host_tool
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._alive = alive
        self._timeout_hint = timeout_hint
        self._next_check = 0.0  # monotonic time
        self._gone: tuple[float, GuestError] | None = None  # until when the stream is still read, and why
        self._in_time = False  # the result is among the lines that wait
        self._splitter = LineSplitter()
        self._waiting: deque[bytes | Garbage] = (
            deque()
        )  # not parsed yet, as an event takes much more memory than a line
        self._received = 0  # bytes
        self._rate_limit = StreamRateLimit()
        self._question_limit = RateLimit("questions", ratelimit.QUESTIONS, ratelimit.QUESTIONS_PER_SECOND)
        self._answered: set[str] = set()
        self._over = False
        transport.submit(self.id, body)

    def __enter__(self) -> AgentRequest:
        """Return the request itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the request unless it is over."""
        self.cancel()

    def __iter__(self) -> Iterator[Event]:
        """Return the request itself, which is an iterator."""
        return self

    def __next__(self) -> Event:
        """Wait for the next event and return it.

        Raises:
            StopIteration: the request is over, or was cancelled.
            RequestError: there is no result in time, the stream is larger than :data:`MAX_STREAM`, or there are more
                than :data:`MAX_QUESTIONS` questions.
            FloodError: the stream grows faster than :mod:`imgkit.vm.agent.ratelimit` allows.
            GuestError: the guest broke the contract, or is gone (BootError).
            UsageError: a callback returned a value that is not an answer.
        """
        if self._over:
            raise StopIteration
        try:
            event = self._wait()
            self._answer(event)
        except BaseException:
            self.cancel()
            raise
        if isinstance(event, AgentResult):
            self._over = True
            self._transport.forget(self.id)
        return event

    def result(self) -> AgentResult:
        """Skip the remaining events and return the result.

        Raises:
            RequestError: the request is over already; and the errors of :meth:`__next__`.
        """
        for event in self:
            if isinstance(event, AgentResult):
                return event
        raise RequestError("the request is over already")

    def cancel(self) -> None:
        """End the iteration, and ask the guest to stop unless the result is there."""
        if not self._over:
            self._over = True
            self._transport.cancel(self.id)

    def _wait(self) -> Event:
        while True:
            self._check()
            if self._waiting:
                line = self._waiting.popleft()
                return line if isinstance(line, Garbage) else protocol.parse_event(line)
            data = self._transport.read(self.id)
            if data:
                self._receive(data)
            elif self._gone is not None:
                raise self._gone[1]
            else:
                time.sleep(POLL)

    def _check(self) -> None:
        """Raise if the time is over or the guest is gone, unless the result has already been received.

        This is checked before every event, because the guest may never stop sending.
        """
        now = time.monotonic()
        late = self._deadline is not None and now >= self._deadline
        if self._gone is None and now >= self._next_check:
            self._next_check = now + POLL
            try:
                self._alive()
            except GuestError as cause:
                self._gone = (now + _DRAIN_TIMEOUT, cause)
        drained = self._gone is not None and now >= self._gone[0]
        if self._in_time or not (late or drained):
            return
        self._in_time = any(map(_is_result, self._waiting))
        if self._in_time:
            return
        if self._gone is not None:
            raise self._gone[1]
        raise RequestError(f"no result of the request within {self._timeout:g} s", hint=self._timeout_hint)

    def _receive(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_STREAM:
            raise RequestError(f"the stream of the request grew over {MAX_STREAM >> 20} MiB")
        self._rate_limit.count(data)
        self._waiting.extend(line for line in self._splitter.feed(data) if line)

    def _answer(self, event: Event) -> None:
        """Answer the event if it is a question. A question that the guest repeats is answered only once."""
        if not isinstance(event, (PermissionRequest, HostToolRequest)) or event.request_id in self._answered:
            return
        self._question_limit.count(1)
        if len(self._answered) >= MAX_QUESTIONS:
            raise RequestError(f"the agent asked more than {MAX_QUESTIONS} questions")
        self._answered.add(event.request_id)
        if isinstance(event, PermissionRequest):
            callbacks.answer_permission(event, self._on_permission, self._transport.permission)
        else:
            callbacks.answer_host_tool(event, self._on_host_tool, self._transport.host_tool)


def _is_result(line: bytes | Garbage) -> bool:
    return isinstance(line, bytes) and b"result" in line and isinstance(protocol.parse_event(line), AgentResult)
