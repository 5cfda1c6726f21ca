"""Frames of a guest that a test plays, for the gateway of a restricted network."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Any

from imgkit.vm.net import gateway, packets
from imgkit.vm.net.allowlist import GUEST, NAMESERVER, parse
from imgkit.vm.net.gateway import Gateway
from imgkit.vm.net.packets import SYN, TcpSegment
from imgkit.vm.net.tcp import Connection

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
