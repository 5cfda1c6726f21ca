"""The host's side of the agentd contract: requests to the agent and what comes back.

A :class:`AgentRequest` is an iterator of events that ends after the result. Two transports carry it: files in the
``ipc`` share (:mod:`imgkit.vm.agent.filetransport`) and lines on a virtio-serial port
(:mod:`imgkit.vm.agent.serialtransport`).
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Output,
    PermissionRequest,
)
from imgkit.vm.agent.ratelimit import RateLimit, StreamRateLimit
from imgkit.vm.failures import RequestError

POLL = 0.05
"""Seconds between two looks."""
MAX_STREAM = 1 << 30
"""Bytes of one request's stream."""
MAX_OUTPUT = 64 << 20
"""Bytes of each output stream that :func:`run` keeps."""
MAX_QUESTIONS = 100_000
"""Questions of one request."""
_DRAIN = 5.0  # seconds for what a machine that is gone had still said


class Transport(Protocol):
    """How requests get into the guest and events out of it. Nothing here blocks for long."""

    def heartbeat(self) -> Heartbeat | None:
        """The newest heartbeat since the machine started, or None."""

    def submit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Hand the request over."""

    def read(self, request_id: str) -> bytes:
        """What the request's stream has got since the last call, a MiB at most; empty if nothing."""

    def permission(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a permission request."""

    def host_tool(self, question_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a host tool request."""

    def cancel(self, request_id: str) -> None:
        """Ask the guest to stop working on the request."""

    def forget(self, request_id: str) -> None:
        """The request is over: remove what is left of it."""

    def close(self) -> None:
        """Give back what the transport holds."""


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
    """The JSON object of a request.

    Args:
        prompt: text for the agent; command: run exactly this instead, without a shell.
        env: additional environment. cwd: folder in the guest.
        mounts: name → {"tag", "guestPath"}, mounted before the agent starts.
        auto_approve: the agent need not ask for permission.
        extra: further keys of the contract, as they are.

    Raises:
        UsageError: neither or both of prompt and command, something that is no text, or an ``auto_approve`` that is
            neither True nor False.
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
    """One request, handed over when this is made; iterate for its events, the last of which is the AgentResult.

    Questions of the agent are answered through the callbacks before they are yielded. A callback that raises, or that
    returns something else than it must, refuses; its error comes out of ``next()``, and the request is cancelled.
    Leaving early with :meth:`cancel` (or the end of a ``with`` block) asks the guest to stop.
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
        late: str = "a longer timeout= of the request",
    ) -> None:
        """Submit ``body``.

        Args:
            transport: carries it.
            body: see :func:`compose`.
            on_permission, on_host_tool: answer the agent's questions.
            timeout: seconds until the result must be there; None waits for ever.
            alive: called in every turn; raises when the guest is gone.
            late: the hint for who reads that the time is over.
        """
        self.id = str(uuid.uuid4())
        self._transport = transport
        self._on_permission = on_permission
        self._on_host_tool = on_host_tool
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._alive = alive
        self._late = late
        self._looked = 0.0
        self._gone: tuple[float, GuestError] | None = None
        self._in_time = False  # the result is among the lines that wait
        self._lines = LineSplitter()
        self._waiting: deque[bytes | Garbage] = deque()  # lines; what becomes of one takes much more memory
        self._received = 0
        self._flow = StreamRateLimit()
        self._questions = RateLimit("questions", ratelimit.QUESTIONS, ratelimit.QUESTIONS_PER_SECOND)
        self._answered: set[str] = set()
        self._over = False
        transport.submit(self.id, body)

    def __enter__(self) -> AgentRequest:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event.

        Raises:
            StopIteration: the result has been given.
            RequestError: no result in time, or the stream grew over :data:`MAX_STREAM` or faster than
                :mod:`imgkit.vm.agent.ratelimit` has it.
            BootError: the guest died meanwhile.
            UsageError: a callback returned something that is no answer.
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
        """Read on to the result and return it."""
        for event in self:
            if isinstance(event, AgentResult):
                return event
        raise RequestError("the request is over already")

    def cancel(self) -> None:
        """Ask the guest to stop, if there is no result yet, and end the iteration."""
        if not self._over:
            self._over = True
            self._transport.cancel(self.id)

    def _wait(self) -> Event:
        while True:
            self._look()
            if self._waiting:
                line = self._waiting.popleft()
                return line if isinstance(line, Garbage) else protocol.parse_event(line)
            data = self._transport.read(self.id)
            if data:
                self._take(data)
            elif self._gone is not None:
                raise self._gone[1]
            else:
                time.sleep(POLL)

    def _look(self) -> None:
        """Whether it is too late, or the guest gone, in every turn: it may never stop talking. A result comes first."""
        now = time.monotonic()
        late = self._deadline is not None and now >= self._deadline
        if self._gone is None and now >= self._looked + POLL:
            self._looked = now
            try:
                self._alive()
            except GuestError as cause:
                self._gone = (now + _DRAIN, cause)
        drained = self._gone is not None and now >= self._gone[0]
        if self._in_time or not (late or drained):
            return
        self._in_time = any(map(_is_result, self._waiting))
        if self._in_time:
            return
        if self._gone is not None:
            raise self._gone[1]
        raise RequestError(f"no result of the request within {self._timeout:g} s", hint=self._late)

    def _take(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_STREAM:
            raise RequestError(f"the stream of the request grew over {MAX_STREAM >> 20} MiB")
        self._flow.count(data)
        self._waiting.extend(line for line in self._lines.feed(data) if line)

    def _answer(self, event: Event) -> None:
        """Answer a question, each only once whatever the guest repeats."""
        if not isinstance(event, (PermissionRequest, HostToolRequest)) or event.request_id in self._answered:
            return
        self._questions.count(1)
        if len(self._answered) >= MAX_QUESTIONS:
            raise RequestError(f"the agent asked more than {MAX_QUESTIONS} questions")
        self._answered.add(event.request_id)
        if isinstance(event, PermissionRequest):
            callbacks.answer_permission(event, self._on_permission, self._transport.permission)
        else:
            callbacks.answer_host_tool(event, self._on_host_tool, self._transport.host_tool)


def _is_result(line: bytes | Garbage) -> bool:
    return isinstance(line, bytes) and b"result" in line and isinstance(protocol.parse_event(line), AgentResult)


@dataclass(frozen=True)
class Completed:
    """A command that ran in the guest. ``status`` follows the shell: 128 + number for an unknown signal's death."""

    status: int
    stdout: bytes
    stderr: bytes
    result: AgentResult

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Completed:
        """Return self if the command succeeded.

        Raises:
            GuestError: it did not; says what it wrote last.
        """
        if self.status == 0 and self.result.ok:
            return self
        said = self.stderr.decode(errors="replace").strip().rpartition("\n")[2] or self.result.text
        raise GuestError(f"command in the guest failed with status {self.status}" + (f": {said}" if said else ""))


# Linux's numbers (signal(7)), which are the guest's whatever the host is.
_NAMES = """
    HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU
    XFSZ VTALRM PROF WINCH IO PWR SYS
"""
_SIGNALS = {f"SIG{name}": number for number, name in enumerate(_NAMES.split(), 1)}


def status(result: AgentResult) -> int:
    """The exit status that stands for ``result``: the command's own, 128 + n for a signal, else 0 or 1.

    A number that no process can end with is 1: a host's exit status is taken modulo 256, and 256 would be success.
    """
    if result.exit_code is not None:
        return result.exit_code if 0 <= result.exit_code <= 255 else 1
    if result.signal is not None:
        return 128 + _SIGNALS.get(result.signal, 0)
    return 0 if result.ok else 1


def collect(request: AgentRequest) -> Completed:
    """Read a request to its end.

    Raises:
        RequestError: it wrote more than :data:`MAX_OUTPUT` to one of its streams, or see :class:`AgentRequest`.
    """
    output = {"stdout": bytearray(), "stderr": bytearray()}
    with request:
        for event in request:
            if isinstance(event, Output):
                output[event.stream] += event.data
                if len(output[event.stream]) > MAX_OUTPUT:
                    raise RequestError(f"the command wrote more than {MAX_OUTPUT >> 20} MiB to {event.stream}")
            elif isinstance(event, AgentResult):
                return Completed(status(event), bytes(output["stdout"]), bytes(output["stderr"]), event)
    raise RequestError("the request is over already")
