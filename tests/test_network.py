"""The gateway of a restricted network and what is behind it, from a guest that is played here frame by frame."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import UsageError
from imgkit.vm import VM, BootSpec
from imgkit.vm.net import dhcpdns, gateway, packets, restricted
from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER, parse
from imgkit.vm.net.gateway import Gateway, RefusalLog
from imgkit.vm.net.hostaddresses import look_up
from imgkit.vm.net.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from imgkit.vm.net.tcp import BUFFER, Connection
from imgkit.vm.qemu.argv import VmSpec, arguments
from tests.images import Image
from tests.vmspecs import host_app

OWN = b"\x52\x54\x00\x12\x34\x56"
NOBODY = IPv4Address("0.0.0.0")


def datagram(payload: bytes) -> bytes:
    return packets.ethernet(gateway.MAC, OWN, packets.IPV4, payload)


def syn(target: str, port: int, source: int = 40000) -> bytes:
    segment = TcpSegment(source, port, 7, 0, SYN, 60000, mss=1460, scale=7)
    return datagram(packets.tcp_packet(GUEST, IPv4Address(target), segment))


def query(name: str, kind: int = 1, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0x1234, flags, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def ask(name: str, kind: int = 1) -> bytes:
    return datagram(packets.udp_packet((GUEST, 5353), (NAMESERVER, 53), query(name, kind)))


class Here:
    """A gateway, what it sent, and which connections it asked for."""

    def __init__(self, *words: str) -> None:
        self.frames: list[bytes] = []
        self.asked: list[tuple[Any, int]] = []
        self.full = False
        self.gateway = Gateway(parse(words), send=self.frames.append, connect=self.connect, clock=lambda: 0.0)

    def connect(self, target: Any, port: int, connection: Connection) -> bool:
        if not self.full:
            self.asked.append((target, port))
            self.last = connection
        return not self.full

    def hear(self, *frames: bytes) -> list[bytes]:
        """Return the answers to these frames, all of them for the guest's card."""
        for frame in frames:
            self.gateway.receive(frame)
        self.gateway.flush()
        answers, self.frames[:] = list(self.frames), []
        assert all(answer[:12] == OWN + gateway.MAC for answer in answers)
        return answers

    def flags(self, *frames: bytes) -> list[int]:
        """Return the flags of the segments that came back, whose checksums are right."""
        flags = []
        for frame in self.hear(*frames):
            found = packets.datagram(frame)
            assert found is not None
            pseudo = found.source.packed + found.target.packed + struct.pack("!HH", 6, len(found.payload))
            assert packets.checksum(pseudo + found.payload) == 0
            assert packets.checksum(frame[14:34]) == 0
            segment = packets.tcp(found.payload)
            assert segment is not None
            flags.append(segment.flags)
        return flags

    def look_up(self, name: str, kind: int = 1) -> tuple[int, str | None]:
        """Status and address in the answer to a question for ``name``."""
        (frame,) = self.hear(ask(name, kind))
        found = packets.datagram(frame)
        assert found is not None
        assert found.source == NAMESERVER
        parts = packets.udp(found.payload)
        assert parts is not None
        answer = parts[2]
        identity, flags, questions, count, *_ = struct.unpack_from("!HHHHHH", answer)
        assert (identity, questions) == (0x1234, 1)
        assert flags & 0xFFF0 == 0x8180
        return flags & 15, str(IPv4Address(answer[-4:])) if count else None


def test_names_have_addresses_of_their_own() -> None:
    here = Here("a.example:80", "a.example:81", "*.b.example:443")
    assert here.look_up("a.example") == (0, "198.18.0.1")
    assert here.look_up("x.b.example") == (0, "198.18.0.2")
    assert here.look_up("A.Example") == (0, "198.18.0.1")
    assert here.look_up("a.example", 28) == (0, None), "no IPv6"
    for name in ("b.example", "c.example", "a.example.evil", "localhost", "1.0.0.127.in-addr.arpa"):
        assert here.look_up(name) == (3, None), name
    assert here.flags(syn("198.18.0.1", 80), syn("198.18.0.1", 81, 40001), syn("198.18.0.2", 443)) == []
    assert here.asked == [("a.example", 80), ("a.example", 81), ("x.b.example", 443)]


@pytest.mark.parametrize(
    ("target", "port"),
    [
        ("198.18.0.1", 443),  # a name that was allowed, at another port
        ("198.18.0.2", 80),  # stands for nothing
        ("192.0.2.7", 81),
        ("192.0.2.8", 80),
        ("10.0.2.2", 80),  # the host's loopback services, in QEMU's user network
        ("10.0.2.2", 22),
        ("10.0.2.3", 53),
        ("127.0.0.1", 8080),
        ("169.254.169.254", 80),
        ("10.0.0.1", 80),
        ("1.1.1.1", 443),
        ("255.255.255.255", 80),
    ],
)
def test_what_was_not_named_is_refused(target: str, port: int) -> None:
    here = Here("a.example:80", "192.0.2.7:80", "127.0.0.1:8080")
    here.look_up("a.example")
    assert here.flags(syn(target, port)) == [RST | ACK]
    assert here.asked == []


def test_what_was_named_is_asked_for() -> None:
    here = Here("192.0.2.7:80", "127.0.0.1:8080")
    assert here.flags(syn("192.0.2.7", 80), syn("192.0.2.7", 80), syn("10.0.2.2", 8080)) == []
    assert here.asked == [(IPv4Address("192.0.2.7"), 80), (IPv4Address("127.0.0.1"), 8080)], "each once"
    here.full = True
    assert here.flags(syn("192.0.2.7", 80, 40007)) == [RST | ACK]


def test_segments_of_no_connection_are_reset() -> None:
    here = Here()
    for flags, answer in ((ACK, RST), (FIN, RST | ACK), (SYN | ACK, RST), (PSH | ACK, RST)):
        segment = TcpSegment(1, 2, 3, 4, flags, 5)
        assert here.flags(datagram(packets.tcp_packet(GUEST, GATEWAY, segment))) == [answer]
    assert here.hear(datagram(packets.tcp_packet(GUEST, GATEWAY, TcpSegment(1, 2, 3, 4, RST, 5)))) == []


@pytest.mark.parametrize(
    ("segment", "seq", "ack"),
    [
        (TcpSegment(1, 2, 3, 4, ACK, 5, b"abc"), 4, 0),
        (TcpSegment(1, 2, 3, 4, FIN, 5), 0, 4),
        (TcpSegment(1, 2, 3, 4, PSH, 5, b"abc"), 0, 6),
        (TcpSegment(1, 2, 3, 4, FIN | PSH, 5, b"abc"), 0, 7),
        (TcpSegment(1, 2, 3, 4, SYN | FIN, 5), 0, 5),
        (TcpSegment(1, 2, 0xFFFFFFFF, 4, FIN, 5), 0, 0),
        (TcpSegment(1, 2, 0xFFFFFFFE, 4, PSH, 5, b"abc"), 0, 1),
    ],
)
def test_the_numbers_of_a_reset(segment: TcpSegment, seq: int, ack: int) -> None:
    """RFC 9293, section 3.10.7.1: what is acknowledged, or else everything that was sent."""
    (frame,) = Here().hear(datagram(packets.tcp_packet(GUEST, GATEWAY, segment)))
    found = packets.datagram(frame)
    assert found is not None
    reply = packets.tcp(found.payload)
    assert (found.source, found.target) == (GATEWAY, GUEST)
    assert reply == TcpSegment(2, 1, seq, ack, RST | (0 if segment.flags & ACK else ACK), 0)


def test_a_connection_that_is_closed_is_forgotten_and_may_be_opened_again() -> None:
    here = Here("192.0.2.7:80")
    here.hear(syn("192.0.2.7", 80))
    first = here.last
    first.refuse()
    assert here.flags() == [RST | ACK]
    assert here.gateway._connections == {}
    here.hear(syn("192.0.2.7", 80))
    assert here.last is not first
    (opened,) = here.gateway._connections.values()
    assert opened is here.last
    opened.closed = True
    here.hear(syn("192.0.2.7", 80))
    assert len(here.asked) == 3, "a closed one that was not forgotten yet"


def test_what_was_received_is_acknowledged_once_and_timers_run() -> None:
    calls: list[str] = []
    here = Here("192.0.2.7:80")
    here.hear(syn("192.0.2.7", 80))
    for name in ("flush", "tick"):
        setattr(here.last, name, lambda name=name: calls.append(name))
    here.hear()
    assert calls == []
    here.hear(syn("192.0.2.7", 80))
    here.hear()
    assert calls == ["flush"], "a connection that heard something"
    here.gateway.receive(syn("192.0.2.7", 80))
    here.gateway.tick()
    assert calls == ["flush", "tick", "flush"]


@pytest.mark.parametrize(
    ("source", "target", "ports"),
    [
        (GUEST, NAMESERVER, (5353, 54)),
        (GUEST, GATEWAY, (5353, 53)),
        (IPv4Address("10.0.2.16"), NAMESERVER, (5353, 53)),
        (GUEST, NAMESERVER, (68, 68)),
        (GUEST, NAMESERVER, (67, 67)),
    ],
)
def test_datagrams_for_nobody(source: IPv4Address, target: IPv4Address, ports: tuple[int, int]) -> None:
    message = query("a.example")
    frame = datagram(packets.udp_packet((source, ports[0]), (target, ports[1]), message))
    assert Here("a.example").hear(frame) == []


def test_answers_come_from_where_the_question_went() -> None:
    (frame,) = Here("a.example").hear(ask("a.example"))
    found = packets.datagram(frame)
    assert found is not None
    parts = packets.udp(found.payload)
    assert parts is not None
    assert (found.source, found.target, *parts[:2]) == (NAMESERVER, GUEST, 53, 5353)
    (frame,) = Here().hear(dhcp(1))
    found = packets.datagram(frame)
    assert found is not None
    assert (found.source, found.target) == (GATEWAY, IPv4Address("255.255.255.255"))


def test_refusals_name_what_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "imgkit")
    here = Here("a.example:80")
    here.look_up("a.example")
    here.hear(syn("198.18.0.1", 81), syn("198.18.0.2", 80))
    text = "is refused to the guest (no --allow names it)"
    assert caplog.messages == [f"network: a.example:81 {text}", f"network: 198.18.0.2:80 {text}"]


def test_a_gateway_shares_its_log_with_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "imgkit")
    refusals = RefusalLog()
    refusals.log(logging.WARNING, "the caller's", (GATEWAY, 80))
    own = Gateway(parse([]), send=lambda _: None, connect=lambda *_: True, clock=lambda: 0.0, refusals=refusals)
    own.receive(syn("10.0.2.2", 80))
    assert caplog.messages == ["the caller's"]


def test_the_number_of_names() -> None:
    """docs/reference/limits.md. The last of them is far from the end of the addresses."""
    names = gateway.GuestNames(frozenset())
    addresses = [names.address(f"{number}.example") for number in range(4097)]
    assert addresses[4094:] == [IPv4Address("198.18.15.255"), IPv4Address("198.18.16.0"), None]
    assert len(set(addresses)) == 4097
    assert names.name(IPv4Address("198.18.16.0")) == "4095.example"
    assert names.name(IPv4Address("198.18.16.1")) is None


def test_a_name_never_stands_at_an_address_that_was_named() -> None:
    here = Here("198.18.0.1:443", "a.example:443")
    assert here.look_up("a.example") == (0, "198.18.0.2")


def test_there_is_an_end_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_NAMES", 3)
    here = Here("*.a.example:443")
    assert [here.look_up(f"x{number}.a.example")[0] for number in range(5)] == [0, 0, 0, 2, 2]
    assert here.look_up("x1.a.example") == (0, "198.18.0.2")


def test_refusals_are_told_once_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "imgkit")
    here = Here()
    here.hear(*(syn("10.0.2.2", port, source) for source in (1, 2) for port in range(1, 60)))
    assert len(caplog.messages) == 20
    assert caplog.messages[0] == "network: 10.0.2.2:1 is refused to the guest (no --allow names it)"


def dhcp(kind: int, head: bytes = b"\x01\x01\x06\x00") -> bytes:
    message = head + b"\xaa\xbb\xcc\xdd" + bytes(20) + OWN + bytes(10 + 192) + b"\x63\x82\x53\x63"
    message += b"\x0c\x04name" + bytes([53, 1, kind]) + b"\xff"
    return datagram(packets.udp_packet((NOBODY, 68), (IPv4Address("255.255.255.255"), 67), message))


@pytest.mark.parametrize(("kind", "answer"), [(1, 2), (3, 5)])
def test_the_guest_is_given_its_address(kind: int, answer: int) -> None:
    (frame,) = Here().hear(dhcp(kind))
    found = packets.datagram(frame)
    assert found is not None
    parts = packets.udp(found.payload)
    assert parts is not None
    source, target, message = parts
    assert (source, target) == (67, 68)
    assert message[:8] == b"\x02\x01\x06\x00\xaa\xbb\xcc\xdd"
    assert message[16:20] == GUEST.packed
    assert message[28:34] == OWN
    options = message[240:]
    assert bytes([53, 1, answer]) in options
    for option in (b"\x03\x04" + GATEWAY.packed, b"\x06\x04" + NAMESERVER.packed, b"\x01\x04\xff\xff\xff\x00"):
        assert option in options


@pytest.mark.parametrize("frame", [dhcp(2), dhcp(7), dhcp(1, b"\x02\x01\x06\x00"), dhcp(1)[:200]])
def test_other_messages_are_not_answered(frame: bytes) -> None:
    assert Here().hear(frame) == []


def test_arp() -> None:
    def who_has(address: str) -> bytes:
        body = b"\x00\x01\x08\x00\x06\x04\x00\x01" + OWN + GUEST.packed + bytes(6) + IPv4Address(address).packed
        return packets.ethernet(packets.BROADCAST, OWN, packets.ARP, body)

    (reply,) = Here().hear(who_has("10.0.2.2"))
    assert reply[20:22] == b"\x00\x02"
    assert reply[22:42] == gateway.MAC + GATEWAY.packed + OWN + GUEST.packed
    assert Here().hear(who_has("10.0.2.15")) == [], "nobody else has the guest's address"


@pytest.mark.parametrize(
    "change",
    [
        {20: 0x20},  # a first fragment
        {21: 1},  # a later one
        {14: 0x65},  # version 6
        {14: 0x44},  # a header of 16 bytes
        {14: 0x4F},  # one that is longer than the datagram
        {16: 0xFF},  # a datagram that is longer than the frame
        {12: 0x86, 13: 0xDD},  # IPv6
        {23: 1},  # ICMP
        {29: 16},  # from another address
        {46: 0x40},  # a TCP header of 16 bytes
        {46: 0xF0},
    ],
)
def test_odd_frames_are_not_heard(change: dict[int, int]) -> None:
    here = Here("192.0.2.7:80")
    frame = bytearray(syn("192.0.2.7", 80))
    for at, value in change.items():
        frame[at] = value
    assert here.hear(bytes(frame)) == []
    assert here.asked == []


PIECES = st.sampled_from(
    [syn("192.0.2.7", 80), syn("10.0.2.2", 22), ask("a.example"), ask("b.example", 28), dhcp(1), dhcp(3)]
)


@given(PIECES, st.lists(st.tuples(st.integers(12, 400), st.integers(0, 255)), max_size=6), st.integers(0, 500))
def test_no_frame_makes_it_fall_or_reach_elsewhere(frame: bytes, changes: list[tuple[int, int]], length: int) -> None:
    here = Here("192.0.2.7:80", "a.example:443")
    changed = bytearray(frame)
    for at, value in changes:
        changed[at % len(changed)] = value
    for each in (changed, changed[:length]):  # the answer goes to the sender, whatever the address of its card
        here.gateway.receive(bytes(each))
    here.gateway.flush()
    assert set(here.asked) <= {(IPv4Address("192.0.2.7"), 80), ("a.example", 443)}


@given(st.binary(max_size=600))
def test_noise(data: bytes) -> None:
    packets.datagram(data)
    packets.tcp(data)
    packets.udp(data)
    packets.arp_reply(data, OWN, GUEST)
    dhcpdns.dhcp_reply(data)
    answer = dhcpdns.dns_reply(data, lambda _: True, lambda _: GUEST)
    assert answer is None or len(answer) <= len(data) + 16


@given(st.binary(max_size=400))
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    total = sum(struct.unpack(f"!{len(data + b'0') // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert packets.checksum(data) == 0xFFFF - total


# ---- with real connections -------------------------------------------------------------------------------------------


class Guest:
    """QEMU's end of the link."""

    def __init__(self, descriptor: int) -> None:
        self.link = socket.socket(fileno=socket.dup(descriptor))
        self.link.settimeout(10)

    def send(self, *frames: bytes) -> None:
        self.link.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def frame(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4), "big"))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.link.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def segment(self) -> TcpSegment:
        found = packets.datagram(self.frame())
        assert found is not None
        segment = packets.tcp(found.payload)
        assert segment is not None
        return segment

    def say(self, to: TcpSegment, target: str, data: bytes = b"", flags: int = ACK, seq: int = 8) -> None:
        """Answer a segment."""
        own = TcpSegment(to.target, to.source, seq, to.seq + bool(to.flags & SYN) + len(to.data), flags, 60000, data)
        self.send(datagram(packets.tcp_packet(GUEST, IPv4Address(target), own)))


@contextmanager
def networked_guest(*words: str) -> Iterator[Guest]:
    with restricted.network(parse(words)) as descriptor:
        guest = Guest(descriptor)
        try:
            yield guest
        finally:
            guest.link.close()


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """Yield a service on the host's loopback device."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def test_a_connection_from_end_to_end(service: socket.socket) -> None:
    port = service.getsockname()[1]
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        hello = guest.segment()
        assert hello.flags == SYN | ACK
        guest.say(hello, "10.0.2.2", b"ping")
        with service.accept()[0] as peer:
            assert peer.recv(10) == b"ping"
            assert guest.segment().ack == 12
            peer.sendall(b"pong")
            answer = guest.segment()
            assert answer.data == b"pong"
            guest.say(answer, "10.0.2.2", flags=ACK | FIN, seq=12)
            assert peer.recv(10) == b""
        guest.segment()
        assert guest.segment().flags == FIN | ACK


def test_the_hosts_own_refusal_is_passed_on(service: socket.socket) -> None:
    port = service.getsockname()[1]
    service.close()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        assert guest.segment().flags == RST | ACK


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::1"], ["10.9.8.7", "169.254.169.254"], ["::ffff:127.0.0.1"]])
def test_a_name_that_leads_to_the_host(
    addresses: list[str],
    service: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This is DNS rebinding: the owner of a name lets it resolve to a service of the host."""
    port = service.getsockname()[1]
    resolve(monkeypatch, addresses)
    with networked_guest(f"evil.example:{port}") as guest:
        guest.send(ask("evil.example"))
        guest.frame()
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == RST | ACK
    service.setblocking(False)
    with pytest.raises(BlockingIOError):
        service.accept()
    assert "leads to " + addresses[0][:6] in caplog.text


def resolve(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> list[str]:
    """Let every name have these addresses; the list has each name that was looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, *arguments, **options)
        asked.append(str(host))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return asked


def test_what_was_checked_is_what_is_connected_to(service: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up for one connection: a second one could be answered differently."""
    asked = resolve(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(restricted, "is_public", lambda _: True)
    monkeypatch.setattr(restricted, "is_own", lambda _: False)
    port = service.getsockname()[1]
    with networked_guest(f"a.example:{port}") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        assert asked == [], "the guest's questions do not leave the host"
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == SYN | ACK
    assert asked == ["a.example"]


def test_an_address_of_the_host_that_looks_like_any_other(
    service: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(restricted, "is_public", lambda _: True)
    port = service.getsockname()[1]
    with networked_guest(f"a.example:{port}") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == RST | ACK


def test_a_flood_of_connections(service: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restricted, "MAX_CONNECTIONS", 10)
    service.listen(100)
    port = service.getsockname()[1]
    before = threading.active_count()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(*(syn("10.0.2.2", port, source) for source in range(1000, 1100)))
        flags = [guest.segment().flags for _ in range(100)]
        assert flags.count(SYN | ACK) == 10
        assert flags.count(RST | ACK) == 90
        assert threading.active_count() < before + 15


def test_the_network_never_keeps_the_program() -> None:
    """A resolver or a host may not answer for a long time. QEMU's end is closed with the block."""
    with restricted.network(parse([])) as descriptor:
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "restricted network")
        assert thread.daemon
        assert stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    assert not thread.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_everything_ends_with_the_block(service: socket.socket) -> None:
    port = service.getsockname()[1]
    before = threading.active_count()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        guest.segment()
        peer = service.accept()[0]
    with peer, suppress(ConnectionResetError):
        peer.settimeout(5)
        assert peer.recv(1) == b""
    assert threading.active_count() == before


def test_a_name_server_that_does_not_answer_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(20) and [])
    began = time.monotonic()
    with networked_guest("a.example:80") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        guest.send(*(syn("198.18.0.1", 80, source) for source in range(1000, 1050)))
        time.sleep(0.2)
        assert sum(thread.name == "look up a name" for thread in threading.enumerate()) <= 8
    assert time.monotonic() - began < 4
    done.set()


def test_a_frame_that_no_qemu_sends_ends_the_link() -> None:
    with networked_guest() as guest:
        guest.link.sendall(b"\xff\xff\xff\xff")
        assert guest.link.recv(1) == b""


def test_big_transfers_both_ways(service: socket.socket) -> None:
    """More than fits into any buffer, to a host and a guest that are both slow to take it."""
    port = service.getsockname()[1]
    text = bytes(range(256)) * 8000
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        hello = guest.segment()
        guest.say(hello, "10.0.2.2")
        with service.accept()[0] as peer:
            threading.Thread(target=peer.sendall, args=(text,), daemon=True).start()
            got = b""
            while len(got) < len(text):
                segment = guest.segment()
                assert segment.seq == (hello.seq + 1 + len(got)) % (1 << 32)
                got += segment.data
                guest.say(segment, "10.0.2.2")
            assert got == text


# ---- the link and the connections, without sockets -------------------------------------------------------------------


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


# ---- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "allow", "message"),
    [
        ("wifi", (), "wifi: unknown network"),
        ("", (), ": unknown network"),
        ("user", ("a.example",), "--allow is for a restricted network"),
        ("none", ("a.example",), "--allow is for a restricted network"),
    ],
)
def test_choices_that_make_no_sense(network: Any, allow: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BootSpec(None, network=network, allow=allow)
    assert caught.value.message == message
    assert "restricted" in str(caught.value.hint)


def test_the_card_has_the_link_and_nothing_else(tmp_path: Any) -> None:
    words = " ".join(arguments(VmSpec("amd64", None, tmp_path / "c", link=7)))
    assert "-netdev socket,id=net0,fd=7 -device virtio-net-pci,netdev=net0" in words
    assert "user" not in words.replace("no-user-config", "")
    for options in ({"network": False}, {"link": 7}):
        with pytest.raises(UsageError, match="always has the user network"):
            arguments(host_app(VmSpec("amd64", None, tmp_path / "c", **options)))


# ---- in a real guest -------------------------------------------------------------------------------------------------

LOOK = """
get() { wget -T 10 -q -O - "http://$1/" 2>/dev/null || echo "no $1"; }
get 10.0.2.2:ALLOWED; get 10.0.2.2:OTHER; get 127.0.0.1:ALLOWED; get 10.0.2.3:53; get 169.254.169.254:80
nslookup a.example | grep -c 198.18.0.1; nslookup b.example >/dev/null || echo "no b.example"
"""


@contextmanager
def two_services() -> Iterator[tuple[int, int]]:
    """Yield the ports of two web servers on the host's loopback device, which say where they are."""

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"hello from {self.connection.getsockname()[1]}\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as allowed, ThreadingHTTPServer(("127.0.0.1", 0), Hello) as other:
        for server in (allowed, other):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield allowed.server_address[1], other.server_address[1]
        for server in (allowed, other):
            server.shutdown()


def reached(vm: VM, allowed: int, other: int) -> list[str]:
    """Return what a guest says of both services, and of what else it tries."""
    script = LOOK.replace("ALLOWED", str(allowed)).replace("OTHER", str(other))
    return vm.run(script, timeout=200).text.splitlines()


@pytest.mark.vm
def test_a_guest_reaches_what_was_named(image: Image) -> None:
    """That the attack works in the user network is in tests/test_image.py."""
    with two_services() as (allowed, other):
        options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "cpus": 1, "timeout": 400}
        allow = [f"127.0.0.1:{allowed}", "a.example:443"]
        with VM.boot(image.disk, network="restricted", allow=allow, **options) as vm:
            lines = reached(vm, allowed, other)
    assert lines[0] == f"hello from {allowed}"
    refused = [f"10.0.2.2:{other}", f"127.0.0.1:{allowed}", "10.0.2.3:53", "169.254.169.254:80"]
    assert lines[1:] == [*(f"no {each}" for each in refused), "1", "no b.example"]


def test_at_most_twenty_refusals_are_told_of_whoever_tells(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog()
    for number in range(30):
        refusals.log(logging.WARNING, f"refusal {number}", number)
        refusals.log(logging.WARNING, f"refusal {number}", number)
        refusals.log(logging.WARNING, f"name {number}", str(number))
    assert caplog.messages == [f"{kind} {number}" for number in range(10) for kind in ("refusal", "name")]
