"""Parse what agentd sends: heartbeats, and the events of a request's stream.

The names of the fields are those of the agentd contract. The bytes come from the guest and are not trusted:
:func:`parse_event` and :func:`parse_heartbeat` never raise. A line that is not an event becomes :class:`Garbage`, which
states the reason, and does not affect the lines after it::

    splitter = LineSplitter()
    for line in splitter.feed(data):
        event = line if isinstance(line, Garbage) else parse_event(line)
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

MAX_LINE = 16 << 20
"""Maximum length of a line in bytes; a longer line is skipped and reported as :class:`Garbage`."""
MAX_VALUES = 1_000_000
"""Maximum number of commas and opening brackets in a line: parsed values take many times the memory of their text."""
MAX_HEARTBEAT = 64 << 10
"""Maximum size of a heartbeat in bytes."""
HEARTBEAT_AGE = 10.0
"""Age in seconds from which a heartbeat no longer counts."""
_SHOWN = 200  # bytes of a line that Garbage keeps
_MAX_DIGITS = 400  # of an integer
_MAX_MISSING_PARTS = 8
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PART = re.compile(r"[A-Za-z]{1,40}")


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life.

    Attributes:
        timestamp: time of the heartbeat by the guest's clock, in seconds since 1970.
        pid: process id of agentd.
        uptime: seconds since agentd started.
        ipc_mode: transport that agentd uses: "file" or "serial".
        ipc_mounted: whether the request share is mounted.
        extra: further fields of the heartbeat.
    """

    timestamp: float
    pid: int
    uptime: float
    ipc_mode: str
    ipc_mounted: bool
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol_version(self) -> int:
        """The version of the agentd protocol; 0 if agentd does not state one."""
        version = self.extra.get("protocolVersion")
        return version if type(version) is int else 0

    def trouble(self, now: float) -> str:
        """Return why agentd is not ready at ``now`` (seconds since 1970), as a phrase; empty if it is ready."""
        if not self.ipc_mounted:
            return "it runs, but the ipc share is not mounted in the guest (ipcMounted is false)"
        if now - self.timestamp >= HEARTBEAT_AGE:
            return f"its heartbeat is {now - self.timestamp:.0f} s old"
        return ""

    def missing(self) -> tuple[str, ...]:
        """Return the parts of the system that are not up yet, such as "hostname", "loopback" and "network".

        The agent reports them in the heartbeat's field ``system``. An agent that does not report them has no missing
        parts. At most eight are returned.
        """
        system = self.extra.get("system")
        states = system.items() if isinstance(system, dict) else ()
        return tuple(name for name, present in states if present is False and _PART.fullmatch(name))[
            :_MAX_MISSING_PARTS
        ]


@dataclass(frozen=True)
class Output:
    """Bytes that the agent's command wrote to ``stream``, which is "stdout" or "stderr"."""

    stream: str
    data: bytes


@dataclass(frozen=True)
class AgentEvent:
    """Any other event of the agent. ``kind`` is the event's ``type``, ``body`` the whole JSON object."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class PermissionRequest:
    """The agent asks for permission to use one of its own tools. It waits 60 s for the answer."""

    request_id: str
    tool_name: str
    tool_input: Any


@dataclass(frozen=True)
class HostToolRequest:
    """The agent asks for the use of a tool of the host. It waits 60 s for the answer."""

    request_id: str
    tool_name: str
    tool_input: Any


@dataclass(frozen=True)
class AgentResult:
    """The result that ends a request.

    Attributes:
        subtype: "success" or "error".
        text: the agent's answer or error message.
        exit_code: exit code of the request's command; None for a prompt, or if a signal ended the command.
        signal: name of the signal that ended the command, such as "SIGKILL", or None.
        body: the whole JSON object.
    """

    subtype: str
    text: str = ""
    exit_code: int | None = None
    signal: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.subtype == "success"


@dataclass(frozen=True)
class Garbage:
    """A line that is not an event: its first 200 bytes, and the reason."""

    line: bytes
    reason: str


Event: TypeAlias = Output | AgentEvent | PermissionRequest | HostToolRequest | AgentResult | Garbage


class LineSplitter:
    """Splits a stream of bytes, which arrives in pieces of any length, into lines."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        """Skip lines of more than ``limit`` bytes."""
        self._limit = limit
        self._pending = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | Garbage]:
        """Yield the lines that ``data`` completes, without their newlines; Garbage for each line that is too long."""
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._add(piece)
            line = bytes(self._pending)
            self._pending.clear()
            skipped, self._skipping = self._skipping, False
            if skipped:
                yield Garbage(line[:_SHOWN], f"longer than {self._limit} bytes")
            else:
                yield line
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        """Append ``piece`` to the current line. Only ``piece`` is copied, as a line may come in very many pieces."""
        if self._skipping:
            return
        self._pending += piece
        if len(self._pending) > self._limit:
            self._skipping = True
            del self._pending[_SHOWN:]


def usable_name(name: object) -> bool:
    """Return whether ``name``, an id that the guest chose, is safe as a part of a file name in the share."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: ``line`` is not a JSON object, is nested too deep, has more than :data:`MAX_VALUES` commas and
            opening brackets, or has an integer of more than 400 digits.
    """
    if len(line) > MAX_VALUES and line.count(b",") + line.count(b"[") + line.count(b"{") > MAX_VALUES:
        raise ValueError("too many values")
    try:
        value = json.loads(line, parse_int=_integer)
    except RecursionError as cause:
        raise ValueError("nested too deep") from cause
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _integer(digits: str) -> int:
    """Convert digits to an integer. Their number is limited because the conversion takes quadratic time."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError("number too long")
    return int(digits)


def parse_heartbeat(data: bytes) -> Heartbeat | None:
    """Parse a heartbeat; None if ``data`` is not a JSON object with a ``timestamp``."""
    try:
        values = parse_object(data)
    except ValueError:
        return None
    timestamp = _number(values.pop("timestamp", None))
    if timestamp is None:
        return None
    pid = _number(values.pop("pid", 0)) or 0
    uptime = _number(values.pop("uptime", 0)) or 0
    mode = values.pop("ipcMode", "file")
    mounted = values.pop("ipcMounted", True)
    return Heartbeat(timestamp / 1000, int(pid), uptime, str(mode)[:40], mounted is not False, values)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e15 < value < 1e15 else None  # False for NaN


def parse_event(line: bytes) -> Event:
    """Parse one line of a stream; :class:`Garbage` if it is not an event."""
    try:
        values = parse_object(line)
    except ValueError as cause:
        return Garbage(line[:_SHOWN], f"not a JSON object: {str(cause)[:100]}")
    kind = values.get("type")
    if kind == "sdk_event":
        event = values.get("event")
        if not isinstance(event, dict):
            return Garbage(line[:_SHOWN], "sdk_event without an event")
        return _agent_event(event, line)
    if kind in ("permission_request", "host_tool_request"):
        return _question(kind, values, line)
    return Garbage(line[:_SHOWN], f"unknown type {str(kind)[:40]!r}")


def _question(kind: str, values: Mapping[str, Any], line: bytes) -> Event:
    identity, tool = values.get("requestId"), values.get("toolName")
    if not isinstance(identity, str) or not usable_name(identity):
        return Garbage(line[:_SHOWN], "unusable requestId")
    if not isinstance(tool, str):
        return Garbage(line[:_SHOWN], "toolName is no text")
    question_class = PermissionRequest if kind == "permission_request" else HostToolRequest
    return question_class(identity, tool, values.get("toolInput"))


def _agent_event(event: Mapping[str, Any], line: bytes) -> Event:
    kind = event.get("type")
    if kind == "result":
        return _result(event)
    if kind == "output":
        return _output(event, line)
    if not isinstance(kind, str):
        return Garbage(line[:_SHOWN], "event without a type")
    return AgentEvent(kind, event)


def _result(event: Mapping[str, Any]) -> AgentResult:
    """Parse a result. A malformed one ends the request, too: whatever does not say "success" is an error."""
    code, signal, text = event.get("exitCode"), event.get("signal"), event.get("result")
    return AgentResult(
        subtype="success" if event.get("subtype") == "success" else "error",
        text=text if isinstance(text, str) else "",
        exit_code=code if isinstance(code, int) and not isinstance(code, bool) else None,
        signal=signal[:40] if isinstance(signal, str) else None,
        body=event,
    )


def _output(event: Mapping[str, Any], line: bytes) -> Event:
    data, stream = event.get("data"), event.get("stream")
    if not isinstance(data, str) or stream not in ("stdout", "stderr"):
        return Garbage(line[:_SHOWN], "output without stream and data")
    if event.get("encoding") != "base64":
        return Output(str(stream), data.encode(errors="replace"))
    try:
        return Output(str(stream), base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return Garbage(line[:_SHOWN], "output is not base64")
