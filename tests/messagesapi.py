"""A stand-in of Anthropic's Messages API, which says what a test tells it to.

    with serve([ToolUse("Bash", {"command": "ls"}), Text("done")]) as api:
        …  # ANTHROPIC_BASE_URL=api.url
        api.requests[0].body["messages"]

The events, their order and their fields are those of the documentation (platform.claude.com, "Streaming Messages" and
"Errors"). Each request takes the next reply of the list; the last one is repeated.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Protocol

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A request for a message that the stand-in received."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Reply(Protocol):
    """What the stand-in answers to one request."""

    @property
    def status(self) -> int:
        """Status of the answer; only 200 has events."""

    def events(self) -> Iterator[Event | None]:
        """Yield the events of the stream; None breaks the connection."""

    def error(self) -> Event:
        """Return the body of an answer whose status is not 200."""


@dataclass(frozen=True)
class _Message:
    """A message that is streamed to its end."""

    stop_reason = "end_turn"
    status = 200

    def block(self) -> Iterator[Event]:
        """Yield the events of the message's one content block."""
        raise NotImplementedError

    def events(self) -> Iterator[Event | None]:
        """Yield the events of the stream."""
        usage = {"input_tokens": 25, "output_tokens": 1}
        empty: Event = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield {
            "type": "message_start",
            "message": {"id": "msg_test", "type": "message", "role": "assistant", "model": "claude-test", **empty},
        }
        yield {"type": "ping"}
        yield from self.block()
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason, "stop_sequence": None},
            "usage": {"output_tokens": 15},
        }
        yield {"type": "message_stop"}

    def error(self) -> Event:
        """Return nothing: the status is 200."""
        return {}


@dataclass(frozen=True)
class Text(_Message):
    """Text in pieces. ``stop_reason`` may be "refusal", with what was said until then."""

    pieces: tuple[str, ...]
    stop_reason: str = "end_turn"

    def block(self) -> Iterator[Event]:
        """Yield the events of a text block, unless there are no pieces."""
        if not self.pieces:
            return
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for piece in self.pieces:
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        yield {"type": "content_block_stop", "index": 0}


@dataclass(frozen=True)
class ToolUse(_Message):
    """The use of one tool."""

    name: str
    input: Mapping[str, Any]
    id: str = "toolu_test"
    stop_reason = "tool_use"

    def block(self) -> Iterator[Event]:
        """Yield the events of a tool_use block, its input in two pieces of JSON."""
        start = {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}
        yield {"type": "content_block_start", "index": 0, "content_block": start}
        text = json.dumps(self.input)
        for piece in ("", text[:7], text[7:]):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}


@dataclass(frozen=True)
class Cut(Text):
    """A stream that breaks off before its message is complete."""

    def events(self) -> Iterator[Event | None]:
        """Yield the events up to the text, and break the connection."""
        for event in super().events():
            if event is not None and event["type"] == "content_block_stop":
                break
            yield event
        yield None


@dataclass(frozen=True)
class Failure:
    """An error in place of a message: 529 "overloaded_error", 401 "authentication_error" …"""

    status: int
    kind: str
    message: str

    def events(self) -> Iterator[Event | None]:
        """Yield nothing."""
        return iter(())

    def error(self) -> Event:
        """Return the body of the answer."""
        error = {"type": self.kind, "message": self.message}
        return {"type": "error", "error": error, "request_id": "req_test"}


OVERLOADED = Failure(529, "overloaded_error", "Overloaded")


@dataclass
class StandIn:
    """A running stand-in. ``unknown`` lists what was asked for besides messages."""

    port: int
    requests: list[Request] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Address on this host."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def guest_url(self) -> str:
        """The same, as guests of QEMU's user network reach it."""
        return f"http://10.0.2.2:{self.port}"


@contextmanager
def serve(replies: Sequence[Reply]) -> Iterator[StandIn]:
    """Serve ``replies`` on a free port of the loopback interface."""

    class Handler(_Handler):
        pending: ClassVar[list[Reply]] = list(replies)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.state = StandIn(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Handler.state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pending: ClassVar[list[Reply]]
    state: ClassVar[StandIn]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.partition("?")[0] != "/v1/messages":
            self._unknown()
            return
        self.state.requests.append(Request(self.path, dict(self.headers), json.loads(body)))
        reply = self.pending.pop(0) if len(self.pending) > 1 else self.pending[0]
        if reply.status == 200:
            self._stream(reply)
        else:
            self._json(reply.status, reply.error())

    def do_GET(self) -> None:
        self._unknown()

    def do_HEAD(self) -> None:
        self.state.unknown.append(f"HEAD {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _unknown(self) -> None:
        self.state.unknown.append(f"{self.command} {self.path}")
        self._json(404, Failure(404, "not_found_error", "Not found").error())

    def _json(self, status: int, body: Event) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.send_header("request-id", "req_test")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, reply: Reply) -> None:
        self.send_response(200)
        for name, value in (("Content-Type", "text/event-stream; charset=utf-8"), ("Transfer-Encoding", "chunked")):
            self.send_header(name, value)
        self.send_header("request-id", "req_test")
        self.end_headers()
        for event in reply.events():
            if event is None:
                self.close_connection = True
                return
            self._chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
