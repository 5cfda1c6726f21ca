"""Parse and compose Ethernet frames with ARP, IPv4, UDP and TCP.

The bytes that are parsed come from a guest. The functions return None for whatever is malformed or not supported, and
never raise. They do not verify checksums, because the link to the guest does not corrupt data. Sources: RFC 826 (ARP),
RFC 791 (IPv4), RFC 768 (UDP), RFC 9293 (TCP).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

IPV4, ARP = 0x0800, 0x0806
TCP, UDP = 6, 17
BROADCAST = b"\xff" * 6
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_WINDOW_SCALE, _MSS = 3, 2  # options of TCP
_MAX_WINDOW_SCALE = 14  # RFC 7323, section 2.3


@dataclass(frozen=True)
class Datagram:
    """The IPv4 datagram of a frame.

    Attributes:
        mac: MAC address of the sender.
        source, target: addresses of the sender and of the receiver.
        protocol: number of the protocol of ``payload``, such as :data:`TCP`.
        payload: the bytes behind the header.
    """

    mac: bytes
    source: IPv4Address
    target: IPv4Address
    protocol: int
    payload: bytes


@dataclass(frozen=True)
class TcpSegment:
    """A TCP segment.

    Attributes:
        source, target: ports of the sender and of the receiver.
        seq, ack: sequence number and acknowledgment number.
        flags: combination of :data:`FIN`, :data:`SYN`, :data:`RST`, :data:`PSH` and :data:`ACK`.
        window: receive window, not scaled.
        data: the bytes behind the header.
        mss, scale: maximum segment size and window scale, which are options of a SYN; None where they are missing.
    """

    source: int
    target: int
    seq: int
    ack: int
    flags: int
    window: int
    data: bytes = b""
    mss: int | None = None
    scale: int | None = None


def ethernet(target: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    """Compose a frame from the receiver's and the sender's MAC address; it is padded to the minimum length."""
    return (target + source + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def datagram(frame: bytes) -> Datagram | None:
    """Parse the IPv4 datagram in ``frame``; None if there is none, or if it is a fragment or truncated."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return None
    first, _, total, _, fragment, _, protocol, _ = struct.unpack_from("!BBHHHBBH", frame, 14)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or not header <= total <= len(frame) - 14 or fragment & 0x3FFF:
        return None
    source, target = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
    return Datagram(frame[6:12], source, target, protocol, frame[14 + header : 14 + total])


def ipv4(source: IPv4Address, target: IPv4Address, protocol: int, payload: bytes) -> bytes:
    """Compose an IPv4 datagram that may not be fragmented."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
    head += source.packed + target.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(data: bytes) -> tuple[int, int, bytes] | None:
    """Parse a UDP datagram: source port, target port and contents; None if it is malformed."""
    if len(data) < 8:
        return None
    source, target, length, _ = struct.unpack_from("!HHHH", data)
    return (source, target, data[8:length]) if 8 <= length <= len(data) else None


def udp_packet(source: tuple[IPv4Address, int], target: tuple[IPv4Address, int], data: bytes) -> bytes:
    """Compose an IPv4 datagram with a UDP datagram. ``source`` and ``target`` are pairs of address and port."""
    payload = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    total = _sum(source[0], target[0], UDP, payload) or 0xFFFF
    return ipv4(source[0], target[0], UDP, payload[:6] + struct.pack("!H", total) + payload[8:])


def tcp(data: bytes) -> TcpSegment | None:
    """Parse the TCP segment in the payload of a datagram; None if it is malformed."""
    if len(data) < 20:
        return None
    source, target, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", data)
    start = (offset >> 4) * 4
    if not 20 <= start <= len(data):
        return None
    mss, scale = _options(data[20:start]) if flags & SYN else (None, None)
    return TcpSegment(source, target, seq, ack, flags, window, data[start:], mss, scale)


def tcp_packet(source: IPv4Address, target: IPv4Address, segment: TcpSegment) -> bytes:
    """Compose an IPv4 datagram with a TCP segment."""
    options = b"" if segment.mss is None else struct.pack("!BBH", _MSS, 4, segment.mss)
    options += b"" if segment.scale is None else struct.pack("!BBBB", 1, _WINDOW_SCALE, 3, segment.scale)
    head = struct.pack(
        "!HHIIBBHHH",
        segment.source,
        segment.target,
        segment.seq,
        segment.ack,
        (20 + len(options)) << 2,
        segment.flags,
        segment.window,
        0,
        0,
    )
    payload = head + options + segment.data
    total = _sum(source, target, TCP, payload)
    return ipv4(source, target, TCP, payload[:16] + struct.pack("!H", total) + payload[18:])


def arp_reply(frame: bytes, mac: bytes, guest: IPv4Address) -> bytes | None:
    """Answer an ARP request: every address but the guest's own is at ``mac``.

    Returns:
        The frame of the reply; None if ``frame`` is not an ARP request, or asks for the address ``guest``.
    """
    if len(frame) < 42 or frame[12:22] != b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01":
        return None
    sender, address = frame[22:32], frame[38:42]
    if address == guest.packed:
        return None
    return ethernet(frame[6:12], mac, ARP, frame[14:20] + b"\x00\x02" + mac + address + sender)


def checksum(data: bytes) -> int:
    """Compute the Internet checksum (RFC 1071).

    Modulo 2**16 - 1, the sum of all 16-bit words equals the number that the bytes represent, as 2**16 is 1.
    """
    if len(data) % 2:
        data += b"\0"
    number = int.from_bytes(data, "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def _sum(source: IPv4Address, target: IPv4Address, protocol: int, payload: bytes) -> int:
    return checksum(source.packed + target.packed + struct.pack("!HH", protocol, len(payload)) + payload)


def _options(data: bytes) -> tuple[int | None, int | None]:
    """Parse the options of a TCP header: maximum segment size and window scale; None for a missing one."""
    mss = scale = None
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        if len(data) < 2 or not 2 <= data[1] <= len(data):
            break
        kind, value = data[0], data[2 : data[1]]
        if kind == _MSS and len(value) == 2:
            mss = int.from_bytes(value, "big")
        elif kind == _WINDOW_SCALE and len(value) == 1:
            scale = min(value[0], _MAX_WINDOW_SCALE)
        data = data[data[1] :]
    return mss, scale
