"""The messages of the restricted network, byte by byte: DHCP, DNS, and the packets that carry them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from imgkit.vm.net import dhcpdns, packets
from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER
from imgkit.vm.net.packets import ACK, SYN, TcpSegment

# ---- DHCP --------------------------------------------------------------------------------------------------------

COOKIE = b"\x63\x82\x53\x63"


def request(options: bytes, *, start: bytes = b"\x01\x01\x06\x07", cookie: bytes = COOKIE) -> bytes:
    fixed = start + b"\xaa\xbb\xcc\xdd" + b"\x00\x09" + b"\x80\x00" + bytes(12) + b"\x0a\x00\x00\x01"
    return fixed + b"hardware address" + bytes(192) + cookie + options


@pytest.mark.parametrize(("kind", "answer"), [(1, 2), (3, 5)])
def test_a_reply_of_dhcp(kind: int, answer: int) -> None:
    reply = dhcpdns.dhcp_reply(request(bytes([53, 1, kind, 255])))
    options = b"\x35\x01" + bytes([answer]) + b"\x36\x04\x0a\x00\x02\x02" + b"\x33\x04\x00\x09\x3a\x80"
    options += b"\x01\x04\xff\xff\xff\x00" + b"\x03\x04\x0a\x00\x02\x02" + b"\x06\x04\x0a\x00\x02\x03" + b"\xff"
    fixed = b"\x02\x01\x06\x00" + b"\xaa\xbb\xcc\xdd" + bytes(2) + b"\x80\x00" + bytes(4)
    addresses = GUEST.packed + GATEWAY.packed + b"\x0a\x00\x00\x01"
    assert reply == fixed + addresses + b"hardware address" + bytes(192) + COOKIE + options


@pytest.mark.parametrize(
    ("options", "answered"),
    [
        (b"\x35\x01\x01", True),
        (b"\x00\x00\x35\x01\x01\xff", True),
        (b"\x0c\x02ab\x35\x01\x01", True),
        (b"\x35\x02\x01\x01\x35\x01\x01", True),
        (b"\xff\x35\x01\x01", False),
        (b"\x35\x02\x01\x01", False),
        (b"\x35\x01", False),
        (b"\x35", False),
        (b"", False),
        (b"\x35\x01\x02", False),
        (b"\x35\x01\x08", False),
        (b"\x0c\x09ab\x35\x01\x01", False),
    ],
)
def test_the_type_of_a_dhcp_message(options: bytes, answered: bool) -> None:
    assert (dhcpdns.dhcp_reply(request(options)) is not None) is answered


def test_messages_that_are_not_dhcp() -> None:
    options = b"\x35\x01\x01"
    for start in (b"\x02\x01\x06\x00", b"\x01\x06\x06\x00", b"\x01\x01\x08\x00"):
        assert dhcpdns.dhcp_reply(request(options, start=start)) is None
    assert dhcpdns.dhcp_reply(request(options, cookie=b"\x63\x82\x53\x64")) is None
    assert dhcpdns.dhcp_reply(request(options)[:239]) is None


# ---- DNS ---------------------------------------------------------------------------------------------------------

TARGET = IPv4Address("198.18.0.7")


def question(*labels: bytes, kind: int = 1, group: int = 1) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return name + struct.pack("!HH", kind, group)


def query(asked: bytes, *, flags: int = 0x0100, questions: int = 1) -> bytes:
    return struct.pack("!HHHHHH", 0x1234, flags, questions, 0, 0, 0) + asked


def answer(message: bytes, *, is_known: bool = True, address: IPv4Address | None = TARGET) -> bytes | None:
    return dhcpdns.dns_reply(message, lambda name: is_known and name == "a.b", lambda _: address)


def test_an_answer_with_an_address() -> None:
    asked = question(b"a", b"b")
    record = b"\xc0\x0c" + b"\0\1" + b"\0\1" + b"\0\0\0\x3c" + b"\0\4" + TARGET.packed
    assert answer(query(asked)) == b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + asked + record
    assert answer(query(asked, flags=0)) == b"\x12\x34\x80\x80\0\1\0\1\0\0\0\0" + asked + record
    assert answer(query(asked, flags=0x01FF & ~0x80)) == answer(query(asked)), "only the wish for recursion is repeated"
    assert answer(query(asked) + b"more") == answer(query(asked)), "what follows the question is left out"


@pytest.mark.parametrize(
    ("asked", "is_known", "address", "status"),
    [
        (question(b"a", b"b", kind=28), True, TARGET, 0),
        (question(b"a", b"b", group=3), True, TARGET, 0),
        (question(b"a", b"b"), False, TARGET, 3),
        (question(b"a", b"c"), True, TARGET, 3),
        (question(b"a", b"b"), True, None, 2),
    ],
)
def test_answers_without_an_address(asked: bytes, is_known: bool, address: IPv4Address | None, status: int) -> None:
    header = struct.pack("!HHHHHH", 0x1234, 0x8180 | status, 1, 0, 0, 0)
    assert answer(query(asked), is_known=is_known, address=address) == header + asked


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        (query(question(b"a", b"b"), questions=2), 0x8181),
        (query(question(b"a", b"b"), questions=0), 0x8181),
        (query(question(b"a", b"b"), flags=0x0900), 0x8981),
        (query(question(b"a b")), 0x8181),
        (query(question()), 0x8181),
        (query(question(b"a")[:-1]), 0x8181),
        (query(b"\x02a"), 0x8181),
        (query(b"\xc0\x0c\0\1\0\1"), 0x8181),
        (query(b""), 0x8181),
    ],
)
def test_queries_that_are_malformed(message: bytes, flags: int) -> None:
    assert answer(message) == struct.pack("!HHHHHH", 0x1234, flags, 0, 0, 0, 0)


def test_what_is_not_a_query() -> None:
    assert answer(query(question(b"a", b"b"), flags=0x8100)) is None
    assert answer(query(b"")[:11]) is None


def test_the_longest_name() -> None:
    """A name has 255 bytes at most, with the length of each label and the empty label at the end (RFC 1035, 2.3.4)."""
    longest = question(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    assert len(longest) == 255 + 4
    names: list[str] = []
    known = dhcpdns.dns_reply(query(longest), lambda name: not names.append(name), lambda _: TARGET)  # type: ignore[func-returns-value]
    assert known is not None
    assert known.endswith(TARGET.packed)
    assert names == ["a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 61]
    longer = question(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 62)
    assert answer(query(longer)) == struct.pack("!HHHHHH", 0x1234, 0x8181, 0, 0, 0, 0)


# ---- packets -----------------------------------------------------------------------------------------------------

SOURCE, OTHER = IPv4Address("10.0.2.15"), IPv4Address("192.0.2.7")


def frame(datagram: bytes) -> bytes:
    return packets.ethernet(b"target", b"source", packets.IPV4, datagram)


def test_a_frame_is_padded() -> None:
    assert packets.ethernet(b"target", b"source", 0x0806, b"x") == b"targetsource\x08\x06x" + bytes(45)
    assert packets.ethernet(b"target", b"source", 0x0800, b"x" * 47) == b"targetsource\x08\x00" + b"x" * 47


def test_a_datagram() -> None:
    composed = packets.ipv4(SOURCE, OTHER, 17, b"payload")
    assert composed[:10] == b"\x45\x00\x00\x1b\x00\x00\x40\x00\x40\x11"
    assert packets.checksum(composed[:20]) == 0
    assert composed[12:] == SOURCE.packed + OTHER.packed + b"payload"
    parsed = packets.datagram(frame(composed))
    assert parsed == packets.Datagram(b"source", SOURCE, OTHER, 17, b"payload")


def test_a_datagram_with_options() -> None:
    composed = packets.ipv4(SOURCE, OTHER, 17, b"optnpayload")
    parsed = packets.datagram(frame(b"\x46" + composed[1:]))
    assert parsed is not None
    assert parsed.payload == b"payload"


@pytest.mark.parametrize(
    ("at", "change", "parsed"),
    [
        (0, b"\x55", False),
        (0, b"\x44", False),
        (2, b"\x00\x14", True),
        (2, b"\x00\x13", False),
        (2, b"\x00\x2e", True),
        (2, b"\x00\x2f", False),
        (6, b"\x20\x00", False),
        (6, b"\x00\x01", False),
        (6, b"\x10\x00", False),
        (6, b"\x80\x00", True),
    ],
)
def test_headers_of_datagrams(at: int, change: bytes, parsed: bool) -> None:
    """The length is between that of the header and that of the frame, which has 46 bytes of payload at least."""
    composed = packets.ipv4(SOURCE, OTHER, 17, b"payload")
    changed = composed[:at] + change + composed[at + len(change) :]
    assert (packets.datagram(frame(changed)) is not None) is parsed


def test_udp() -> None:
    composed = packets.udp_packet((SOURCE, 68), (OTHER, 67), b"data")
    parsed = packets.datagram(frame(composed))
    assert parsed is not None
    assert (parsed.protocol, parsed.source, parsed.target) == (17, SOURCE, OTHER)
    pseudo = SOURCE.packed + OTHER.packed + struct.pack("!HH", 17, 12)
    assert packets.checksum(pseudo + parsed.payload) == 0
    assert packets.udp(parsed.payload) == (68, 67, b"data")
    assert packets.udp(parsed.payload + b"padding") == (68, 67, b"data")
    assert packets.udp(struct.pack("!HHHH", 1, 2, 8, 0)) == (1, 2, b"")
    for length in (7, 9):
        assert packets.udp(struct.pack("!HHHH", 1, 2, length, 0)) is None
    assert packets.udp(bytes(7)) is None


SEGMENT = TcpSegment(443, 40000, 0x01020304, 0x05060708, SYN | ACK, 0x1234, b"data", 1460, 2)


def test_tcp() -> None:
    parsed = packets.datagram(frame(packets.tcp_packet(SOURCE, OTHER, SEGMENT)))
    assert parsed is not None
    pseudo = SOURCE.packed + OTHER.packed + struct.pack("!HH", 6, len(parsed.payload))
    assert packets.checksum(pseudo + parsed.payload) == 0
    head = b"\x01\xbb\x9c\x40\x01\x02\x03\x04\x05\x06\x07\x08\x70\x12\x12\x34"
    assert parsed.payload[:16] == head
    assert parsed.payload[18:] == b"\0\0" + b"\x02\x04\x05\xb4" + b"\x01\x03\x03\x02" + b"data"
    assert packets.tcp(parsed.payload) == SEGMENT


@pytest.mark.parametrize(
    ("options", "mss", "scale"),
    [
        (b"", None, None),
        (b"\x01\x01\x01\x01", None, None),
        (b"\x02\x04\x01\x00", 256, None),
        (b"\x03\x03\x0e\x00", None, 14),
        (b"\x03\x03\x0f\x00", None, 14),
        (b"\x00\x03\x03\x07", None, None),
        (b"\x02\x03\x01\x00", None, None),
        (b"\x03\x04\x01\x01", None, None),
        (b"\x08\x02\x03\x03\x05\x00\x00\x00", None, 5),
        (b"\x08\x01\x03\x03\x05\x00\x00\x00", None, None),
        (b"\x01\x03\x03\x07\x02\x04\x05\xb4", 1460, 7),
        (b"\x01\x01\x01\x03", None, None),
        (b"\x01\x01\x03\x03", None, None),
    ],
)
def test_options_of_tcp(options: bytes, mss: int | None, scale: int | None) -> None:
    header = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, (20 + len(options)) << 2, SYN, 5, 0, 0)
    assert packets.tcp(header + options + b"x") == TcpSegment(1, 2, 3, 4, SYN, 5, b"x", mss, scale)


def test_flags_of_tcp() -> None:
    """RFC 9293, section 3.1."""
    assert (packets.FIN, SYN, packets.RST, packets.PSH, ACK) == (0x01, 0x02, 0x04, 0x08, 0x10)


def test_headers_of_tcp() -> None:
    header = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 20 << 2, ACK, 5, 0, 0)
    assert packets.tcp(header) == TcpSegment(1, 2, 3, 4, ACK, 5)
    assert packets.tcp(header[:19]) is None
    for words in (4, 6):
        assert packets.tcp(header[:12] + bytes([words << 4]) + header[13:]) is None


def test_arp() -> None:
    who_has = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" + b"source" + GUEST.packed + bytes(6) + NAMESERVER.packed
    body = b"\x00\x01\x08\x00\x06\x04\x00\x02" + b"gatewa" + NAMESERVER.packed + b"source" + GUEST.packed
    reply = packets.arp_reply(b"target" + b"sender" + who_has, b"gatewa", GUEST)
    assert reply == packets.ethernet(b"sender", b"gatewa", packets.ARP, body)
    assert packets.arp_reply(b"target" + b"sender" + who_has[:-1], b"gatewa", GUEST) is None
    assert packets.arp_reply(b"target" + b"sender" + who_has, b"gatewa", NAMESERVER) is None
    answer_of_arp = who_has.replace(b"\x04\x00\x01", b"\x04\x00\x02")
    assert packets.arp_reply(b"target" + b"sender" + answer_of_arp, b"gatewa", GUEST) is None
