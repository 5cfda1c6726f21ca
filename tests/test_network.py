"""The gateway of a restricted network, from a guest that is played here frame by frame."""

from __future__ import annotations

import logging
import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.vm.net import dhcpdns, gateway, packets
from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER, parse
from imgkit.vm.net.gateway import Gateway, RefusalLog
from imgkit.vm.net.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from tests.guestframes import NOBODY, OWN, Here, ask, datagram, query, syn


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


def test_at_most_twenty_refusals_are_told_of_whoever_tells(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog()
    for number in range(30):
        refusals.log(logging.WARNING, f"refusal {number}", number)
        refusals.log(logging.WARNING, f"refusal {number}", number)
        refusals.log(logging.WARNING, f"name {number}", str(number))
    assert caplog.messages == [f"{kind} {number}" for number in range(10) for kind in ("refusal", "name")]
