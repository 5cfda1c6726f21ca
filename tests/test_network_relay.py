"""What is behind the gateway of a restricted network: the link and the connections, without sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.vm.net import restricted
from imgkit.vm.net.allowlist import parse
from imgkit.vm.net.hostaddresses import look_up
from imgkit.vm.net.packets import ACK, SYN, TcpSegment
from imgkit.vm.net.tcp import BUFFER, Connection


class Wire(asyncio.Transport):
    """A transport that notes what is done with it."""

    def __init__(self, *, waiting: int = 0, closing: bool = False) -> None:
        super().__init__()
        self.waiting, self.closing = waiting, closing
        self.done: list[Any] = []

    def write(self, data: Any) -> None:
        self.done.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.done.append((high, low))

    def is_closing(self) -> bool:
        return self.closing

    def __getattribute__(self, name: str) -> Any:
        if name in ("write_eof", "abort", "close", "pause_reading", "resume_reading"):
            return lambda: self.done.append(name)
        return super().__getattribute__(name)


@pytest.fixture
def relay() -> Iterator[restricted._Relay]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield restricted._Relay(loop, parse(["192.0.2.7:80", "a.example:80"]))
    asyncio.set_event_loop(None)
    loop.close()


def frames(relay: restricted._Relay) -> list[bytes]:
    """Return what the gateway is given."""
    heard: list[bytes] = []
    relay._gateway.__dict__["receive"] = heard.append
    return heard


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100])
def test_frames_in_pieces_of_any_size(size: int, relay: restricted._Relay) -> None:
    heard = frames(relay)
    sent = [b"", b"a", b"bcd", b"e" * 20]
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in sent)
    for start in range(0, len(data), size):
        relay.data_received(data[start : start + size])
    assert heard == sent
    assert relay._received == b""


def test_the_longest_frame(relay: restricted._Relay) -> None:
    heard, wire = frames(relay), Wire()
    relay.connection_made(wire)
    relay.data_received((1 << 16).to_bytes(4, "big") + bytes(1 << 16))
    assert (len(heard), wire.done) == (1, [])
    relay.data_received(((1 << 16) + 1).to_bytes(4, "big"))
    assert (len(heard), wire.done) == (1, ["abort"])


@pytest.mark.parametrize(("waiting", "is_sent"), [(0, True), ((4 << 20) - 1, True), (4 << 20, False)])
def test_frames_of_one_turn_go_together_or_not_at_all(waiting: int, is_sent: bool, relay: restricted._Relay) -> None:
    """A guest that does not take its frames loses them, as in any network."""
    wire = Wire(waiting=waiting)
    relay.connection_made(wire)
    turns: list[Any] = []
    relay._loop.call_soon = turns.append  # type: ignore[assignment, method-assign]
    for frame in (b"abc", b"d"):
        relay._send(frame)
    assert turns == [relay._flush]
    relay._flush()
    assert wire.done == ([b"\0\0\0\3abc\0\0\0\1d"] if is_sent else [])
    relay._send(b"e")
    assert turns == [relay._flush] * 2
    assert relay._waiting == [b"\0\0\0\1", b"e"], "nothing is sent twice"


def connection(sent: list[TcpSegment]) -> Connection:
    return Connection(TcpSegment(40000, 80, 7, 0, SYN, 60000), sent.append, lambda: 0.0)


def test_connections_that_are_made_count_with_those_that_are_there(
    relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restricted, "MAX_CONNECTIONS", 3)

    async def establish(*_: object) -> None:
        """Be done at once."""

    monkeypatch.setattr(relay, "_establish", establish)
    there = restricted._Upstream(connection([]), relay._upstreams)
    there.connection_made(Wire())
    target = IPv4Address("192.0.2.7")
    assert [relay._connect(target, 80, connection([])) for _ in range(3)] == [True, True, False]
    relay._loop.run_until_complete(asyncio.sleep(0))
    relay._loop.run_until_complete(asyncio.sleep(0))
    assert relay._tasks == set()
    assert relay._connect(target, 80, connection([])) is True
    relay._loop.run_until_complete(asyncio.sleep(0))
    there.connection_lost(None)
    assert relay._upstreams == set()


def test_the_number_of_connections(relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reference/limits.md."""
    begun: list[object] = []

    async def establish(*words: object) -> None:
        begun.append(words)

    monkeypatch.setattr(relay, "_establish", establish)
    target = IPv4Address("192.0.2.7")
    assert [relay._connect(target, 80, connection([])) for _ in range(129)] == [True] * 128 + [False]
    relay._loop.run_until_complete(asyncio.sleep(0))
    assert len(begun) == 128


@pytest.mark.parametrize("gone", [False, True])
def test_a_guest_hears_of_its_connection_unless_it_gave_up(
    gone: bool, relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[TcpSegment] = []
    guest, wire = connection(sent), Wire()
    upstream = restricted._Upstream(guest, relay._upstreams)
    upstream.connection_made(wire)
    wire.done.clear()

    async def opened(*_: object) -> restricted._Upstream:
        guest.closed = gone
        return upstream

    monkeypatch.setattr(relay, "_open_upstream", opened)
    relay._loop.run_until_complete(relay._establish(IPv4Address("192.0.2.7"), 80, guest))
    assert wire.done == (["abort"] if gone else [])
    assert [segment.flags for segment in sent] == ([] if gone else [SYN | ACK])


def test_addresses_are_tried_one_after_another(relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    async def create(make: Any, host: str, port: int) -> tuple[None, Any]:
        tried.append((host, port))
        if host != "192.0.2.3":
            raise OSError(f"{host} is closed")
        return None, make()

    async def look_up(*_: object) -> list[Any]:
        return [IPv4Address(text) for text in found]

    monkeypatch.setattr(relay._loop, "create_connection", create)
    monkeypatch.setattr(restricted, "look_up", look_up)
    monkeypatch.setattr(restricted, "is_public", lambda address: address != IPv4Address("192.0.2.9"))
    monkeypatch.setattr(restricted, "is_own", lambda address: address == IPv4Address("192.0.2.8"))
    found = [f"192.0.2.{last}" for last in (9, 1, 8, 3, 4)]
    opening = relay._open_upstream("a.example", 80, connection([]))
    assert isinstance(relay._loop.run_until_complete(opening), restricted._Upstream)
    assert tried == [("192.0.2.1", 80), ("192.0.2.3", 80)]
    found = ["192.0.2.1", "192.0.2.2"]
    with pytest.raises(OSError, match=r"192\.0\.2\.2 is closed"):
        relay._loop.run_until_complete(relay._open_upstream("a.example", 80, connection([])))
    found = []
    with pytest.raises(OSError, match=r"a\.example has no address that a name may lead to"):
        relay._loop.run_until_complete(relay._open_upstream("a.example", 80, connection([])))


def test_up_to_three_addresses_are_named(
    relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def look_up(*_: object) -> list[Any]:
        return [IPv4Address(f"10.0.0.{last}") for last in (1, 2, 3, 4)]

    monkeypatch.setattr(restricted, "look_up", look_up)
    assert relay._loop.run_until_complete(relay._addresses("a.example", 80)) == []
    (message,) = caplog.messages
    assert message == (
        "network: a.example leads to 10.0.0.1, 10.0.0.2, 10.0.0.3, which is not allowed; "
        "use --allow with the address itself if this is intended"
    )


def test_what_a_connection_does_with_its_transport() -> None:
    upstreams: set[Any] = set()
    upstream = restricted._Upstream(connection([]), upstreams)
    assert upstream.room() == BUFFER
    for act in (upstream.finish, upstream.abort, upstream.close, lambda: upstream.pause(paused=True)):
        act()
    upstream.write(b"lost")
    assert upstreams == set()
    wire = Wire(waiting=1000)
    upstream.connection_made(wire)
    assert upstreams == {upstream}
    ((high, low),) = wire.done
    assert BUFFER > high > low > 0, "the guest hears of room before there is none, and of more after some was taken"
    assert upstream.room() == BUFFER - 1000
    wire.done.clear()
    upstream.write(b"text")
    upstream.finish()
    for paused in (True, False):
        upstream.pause(paused=paused)
    upstream.close()
    upstream.abort()
    assert wire.done == [b"text", "write_eof", "pause_reading", "resume_reading", "close", "abort"]
    wire.closing, wire.done[:] = True, []
    upstream.write(b"late")
    upstream.finish()
    assert wire.done == []


def test_what_a_connection_hears_from_the_host() -> None:
    heard: list[Any] = []
    guest = SimpleNamespace(
        data=heard.append,
        end=lambda: heard.append("end"),
        refuse=lambda: heard.append("refuse"),
        drained=lambda: heard.append("drained"),
    )
    upstreams: set[Any] = set()
    upstream = restricted._Upstream(cast("Connection", guest), upstreams)
    upstream.connection_made(Wire())
    upstream.data_received(b"text")
    assert upstream.eof_received() is True, "the guest may still send"
    upstream.resume_writing()
    upstream.connection_lost(None)
    upstream.connection_lost(None)
    assert heard == [b"text", "end", "drained", "refuse", "refuse"]
    assert upstreams == set()


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (["192.0.2.1", "fe80::1%eth0"], [IPv4Address("192.0.2.1"), IPv6Address("fe80::1")]),
        (OSError("no such name"), "no such name"),
        (UnicodeError("label too long"), "a.example is no name"),
    ],
)
def test_looking_up(outcome: Any, result: Any, relay: restricted._Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def look(*words: Any, **options: Any) -> Any:
        asked.append((words, options, threading.current_thread().daemon, threading.current_thread().name))
        if isinstance(outcome, Exception):
            raise outcome
        return [(2, 1, 6, "", (address, 80)) for address in outcome]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    looking = look_up(relay._loop, "a.example", 80)
    if isinstance(result, str):
        with pytest.raises(OSError, match=f"^{result}$"):
            relay._loop.run_until_complete(looking)
    else:
        assert relay._loop.run_until_complete(looking) == result
    kind = {"type": socket.SOCK_STREAM}
    assert asked == [(("a.example", 80), kind, True, "look up a name")], "the thread never delays the program's end"
