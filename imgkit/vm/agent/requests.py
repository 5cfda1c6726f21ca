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
from imgkit.vm.agent.inputs import InputSource
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
from imgkit.vm.failures import CommandTimeoutError, RequestError

POLL = 0.05
"""Seconds between two looks at the stream, and at whether the machine still runs."""
MAX_STREAM = 1 << 30
"""Maximum size of a request's stream in bytes."""
MAX_QUESTIONS = 100_000
"""Maximum number of questions that the agent may ask during a request."""
_PIECES = 8  # of standard input that are sent between two looks at the stream
_STOP_TIMEOUT = 10.0  # seconds for the result of a command that was asked to stop: agentd kills it after five
_DRAIN_TIMEOUT = 5.0  # seconds for reading what a machine that is gone had sent before


class Transport(Protocol):
    """Carries requests into the guest and events out of it. No method blocks for long.

    Every method but ``stop``, ``cancel``, ``forget`` and ``close`` may raise GuestError, if the guest is gone or breaks
    the contract. Methods that send a message raise UsageError if it cannot be written as JSON.
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

    def input_room(self, request_id: str) -> bool:
        """Return whether the guest takes another piece of standard input: it has taken most of what it was sent."""

    def send_input(self, request_id: str, data: bytes) -> None:
        """Send a piece of the standard input of the request's command; an empty one is the end."""

    def stop(self, request_id: str) -> None:
        """Ask the guest to stop working on the request, whose stream goes on. A guest that is gone is not an error."""

    def cancel(self, request_id: str) -> None:
        """Ask the guest to stop working on the request, and drop its stream. A guest that is gone is not an error."""

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
    stdin: bool = False,
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
        stdin: whether the command gets standard input, which is sent after the request.
        extra: further fields of the request, as the agentd contract defines them.

    Raises:
        UsageError: neither or both of ``prompt`` and ``command`` are given, the command is empty or not a list of
            strings, ``auto_approve`` is not a bool, or there is standard input for a prompt.
    """
    if (prompt is None) == (command is None):
        raise UsageError("a request needs either a prompt or a command")
    if isinstance(command, str) or not all(isinstance(word, str) for word in command or ()) or command == []:
        raise UsageError("a command is a non-empty list of words")
    if not isinstance(auto_approve, bool):
        raise UsageError("auto_approve is True or False")
    if stdin and command is None:
        raise UsageError("standard input is for a command: an agent gets its prompt there")
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
    if stdin:
        request["stdin"] = True
    return request


class AgentRequest:
    """A request, which is submitted when the object is created. Its events are iterated over; the last is the result.

    The callbacks answer a question of the agent before it is yielded. If a callback raises, or returns a value of
    another type than it must, the answer is a denial, ``next()`` raises the error, and the request is cancelled.
    :meth:`cancel`, or the end of a ``with`` block, asks the guest to stop a request that is not over.

    Attributes:
        id: the request's id, a UUID.
        stopped: whether the guest was asked to stop because the time of ``limit`` was over.
    """

    def __init__(
        self,
        transport: Transport,
        body: Mapping[str, Any],
        *,
        on_permission: OnPermission = deny_permission,
        on_host_tool: OnHostTool = reject_host_tool,
        timeout: float | None = None,
        limit: float | None = None,
        stdin: InputSource | None = None,
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
            limit: seconds after which the guest is asked to stop. The request goes on until its result is there, which
                then usually says that it was cancelled, for 10 seconds at most.
            stdin: the standard input of the command.
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
        self.stopped = False
        self._limit = None if limit is None else time.monotonic() + limit
        self._stdin = stdin
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
            self._feed()
            data = self._transport.read(self.id)
            if data:
                self._receive(data)
            elif self._gone is not None:
                raise self._gone[1]
            else:
                self._idle()

    def _feed(self) -> None:
        """Pass on what there is of the standard input, as far as the guest takes it."""
        for _ in range(_PIECES):
            if self._stdin is None or self._gone is not None or not self._transport.input_room(self.id):
                return
            data = self._stdin.read()
            if data is None:
                return
            self._transport.send_input(self.id, data)
            if not data:
                self._stdin = None

    def _idle(self) -> None:
        """Wait for a moment, or until there is standard input that the guest takes."""
        if self._stdin is not None and self._gone is None and self._transport.input_room(self.id):
            self._stdin.wait(POLL)
        else:
            time.sleep(POLL)

    def _stop_in_time(self, now: float) -> None:
        """Ask the guest to stop if the time of ``limit`` is over. Its result is waited for a little longer."""
        if self._limit is None or now < self._limit:
            return
        self._limit = None
        self.stopped = True
        last = now + _STOP_TIMEOUT
        self._deadline = last if self._deadline is None else min(self._deadline, last)
        self._transport.stop(self.id)

    def _check(self) -> None:
        """Raise if the time is over or the guest is gone, unless the result has already been received.

        This is checked before every event, because the guest may never stop sending.
        """
        now = time.monotonic()
        self._stop_in_time(now)
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
        if self.stopped:
            raise CommandTimeoutError(
                "the command was asked to end after its limit of time, and the guest sends no result"
            )
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
