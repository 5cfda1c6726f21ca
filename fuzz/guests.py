"""Targets: the parsers of what a guest sends."""

from __future__ import annotations

from collections.abc import Mapping

from fuzz.target import JSON_WORDS, Target
from imgkit.errors import GuestError
from imgkit.vm.agent.protocol import Garbage, LineSplitter, parse_event, parse_heartbeat
from imgkit.vm.agent.serialtransport import SerialTransport


def _stream(data: bytes) -> None:
    lines = LineSplitter(4096)
    step = 1 + len(data) // 3
    for at in range(0, len(data), step):
        for line in lines.feed(data[at : at + step]):
            if not isinstance(line, Garbage):
                parse_event(line)
                heartbeat = parse_heartbeat(line)
                if heartbeat is not None:
                    heartbeat.trouble(0.0)
                    heartbeat.missing()


class _Socket:
    """A connection on which all data has already arrived."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]

    def setblocking(self, _: object) -> None:
        """Do nothing: this connection never blocks."""

    def recv(self, _: int) -> bytes:
        """Return the next piece; raise BlockingIOError after the last."""
        if not self._pieces:
            raise BlockingIOError
        return self._pieces.pop(0)

    def send(self, data: memoryview) -> int:
        """Accept all data, and return its length."""
        return len(data)

    def close(self) -> None:
        """Do nothing."""


def _serial(data: bytes) -> None:
    mode = SerialTransport(_Socket(data))  # type: ignore[arg-type]
    mode.submit("r", {"prompt": "x"})
    mode.heartbeat()
    mode.read("r")


_STREAM = (
    b'{"type":"sdk_event","event":{"type":"output","stream":"stdout","data":"aGk=","encoding":"base64"}}\n'
    b'{"type":"sdk_event","event":{"type":"result","subtype":"success","exitCode":0,"result":"x"}}\n'
    b'{"type":"permission_request","requestId":"a","toolName":"t","toolInput":{}}\n'
    b'{"timestamp":1700000000000,"pid":1,"uptime":2.5,"ipcMode":"file","ipcMounted":true,"system":{"network":false}}\n',
)
_SERIAL = (
    b'{"type":"heartbeat","timestamp":1700000000000,"pid":1}\n{"type":"stream","requestId":"r","line":"x"}\n'
    b'{"type":"file_sync","path":"a/b","data":"aGk="}\n{"type":"push_error","path":"x","error":"y"}\n'
    b'{"type":"file_sync_chunk","transferId":"t","path":"a","chunkIndex":0,"totalChunks":1,"data":"aGk="}\n'
    b'{"type":"file_sync_complete","transferId":"t"}\n',
)

TARGETS: Mapping[str, Target] = {
    "stream": Target(_stream, (), lambda: _STREAM, JSON_WORDS),
    "serial": Target(_serial, (GuestError,), lambda: _SERIAL, JSON_WORDS),
}
