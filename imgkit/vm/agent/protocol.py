"""What agentd says, from untrusted bytes to values: heartbeats and the events of a request's stream.

The field names are the agentd contract's. Nothing a guest can write makes these functions raise: a line that is no
event becomes :class:`Garbage` with the reason, and the lines after it count as before.
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
"""Bytes of one line of a stream; a longer one is skipped and reported."""
MAX_VALUES = 1_000_000
"""Commas and brackets of one line: a parsed value takes many times the memory of its text."""
MAX_HEARTBEAT = 64 << 10
HEARTBEAT_AGE = 10.0
"""Seconds after which a heartbeat no longer counts."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PART = re.compile(r"[A-Za-z]{1,40}")


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life. ``timestamp`` is in seconds since 1970, the guest's clock; ``uptime`` in seconds."""

    timestamp: float
    pid: int
    uptime: float
    ipc_mode: str
    ipc_mounted: bool
    extra: Mapping[str, Any] = field(default_factory=dict)

    def trouble(self, now: float) -> str:
        """Why the agent does not count as ready at ``now`` (seconds since 1970), one phrase; empty if it does."""
        if not self.ipc_mounted:
            return "it runs, but the ipc share is not mounted in the guest (ipcMounted is false)"
        if now - self.timestamp >= HEARTBEAT_AGE:
            return f"its heartbeat is {now - self.timestamp:.0f} s old"
        return ""

    def missing(self) -> tuple[str, ...]:
        """Parts of the system that are still to come, such as "hostname", "loopback", "network".

        Empty when all are there, and for an agent that does not report them (the heartbeat's key ``system``). At most
        eight are named.
        """
        system = self.extra.get("system")
        parts = system.items() if isinstance(system, dict) else ()
        return tuple(name for name, present in parts if present is False and _PART.fullmatch(name))[:8]


@dataclass(frozen=True)
class Output:
    """What the agent's command wrote; ``stream`` is "stdout" or "stderr"."""

    stream: str
    data: bytes


@dataclass(frozen=True)
class AgentEvent:
    """Whatever else the agent reports; ``kind`` is its ``type``."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class PermissionRequest:
    """The agent asks whether it may; it waits up to 60 s."""

    request_id: str
    tool_name: str
    tool_input: Any


@dataclass(frozen=True)
class HostToolRequest:
    """The agent asks the host to do something; it waits up to 60 s."""

    request_id: str
    tool_name: str
    tool_input: Any


@dataclass(frozen=True)
class AgentResult:
    """The end of a request. ``exit_code`` and ``signal`` are there when it ran a command."""

    subtype: str
    text: str = ""
    exit_code: int | None = None
    signal: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it says success."""
        return self.subtype == "success"


@dataclass(frozen=True)
class Garbage:
    """A line that is no event; ``line`` is its beginning."""

    line: bytes
    reason: str


Event: TypeAlias = Output | AgentEvent | PermissionRequest | HostToolRequest | AgentResult | Garbage


class LineSplitter:
    """Cuts a stream of bytes into lines, whatever the pieces it comes in; a line of more than ``limit`` is skipped."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | Garbage]:
        """The lines that ``data`` completes, without their newlines; Garbage for each that is too long."""
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._add(piece)
            line = bytes(self._pending)
            self._pending.clear()
            skipped, self._skipping = self._skipping, False
            if skipped:
                yield Garbage(line[:200], f"longer than {self._limit} bytes")
            else:
                yield line
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        """Nothing is copied but ``piece``: a long line may come in very many."""
        if self._skipping:
            return
        self._pending += piece
        if len(self._pending) > self._limit:
            self._skipping = True
            del self._pending[200:]


def usable_name(name: object) -> bool:
    """Whether an id that the guest made up can be part of a file name in the share."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def parse_object(line: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else, or too deep, or has too many values or a number of more than 400 digits.
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
    """Bounded, because turning digits into a number takes quadratic time."""
    if len(digits) > 400:
        raise ValueError("number too long")
    return int(digits)


def parse_heartbeat(data: bytes) -> Heartbeat | None:
    """The heartbeat in ``data``; None if there is none in it."""
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
    """One line of a stream."""
    try:
        values = parse_object(line)
    except ValueError as cause:
        return Garbage(line[:200], f"not a JSON object: {str(cause)[:100]}")
    kind = values.get("type")
    if kind == "sdk_event":
        event = values.get("event")
        if not isinstance(event, dict):
            return Garbage(line[:200], "sdk_event without an event")
        return _agent_event(event, line)
    if kind in ("permission_request", "host_tool_request"):
        return _question(kind, values, line)
    return Garbage(line[:200], f"unknown type {str(kind)[:40]!r}")


def _question(kind: str, values: Mapping[str, Any], line: bytes) -> Event:
    identity, tool = values.get("requestId"), values.get("toolName")
    if not isinstance(identity, str) or not usable_name(identity):
        return Garbage(line[:200], "unusable requestId")
    if not isinstance(tool, str):
        return Garbage(line[:200], "toolName is no text")
    make = PermissionRequest if kind == "permission_request" else HostToolRequest
    return make(identity, tool, values.get("toolInput"))


def _agent_event(event: Mapping[str, Any], line: bytes) -> Event:
    kind = event.get("type")
    if kind == "result":
        return _result(event)
    if kind == "output":
        return _output(event, line)
    if not isinstance(kind, str):
        return Garbage(line[:200], "event without a type")
    return AgentEvent(kind, event)


def _result(event: Mapping[str, Any]) -> AgentResult:
    """Whatever is wrong with it, a result ends the request; what does not say success is an error."""
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
        return Garbage(line[:200], "output without stream and data")
    if event.get("encoding") != "base64":
        return Output(str(stream), data.encode(errors="replace"))
    try:
        return Output(str(stream), base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return Garbage(line[:200], "output is not base64")
