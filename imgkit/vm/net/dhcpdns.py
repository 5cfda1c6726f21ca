"""What the gateway of a restricted network answers by itself: addresses (DHCP) and names (DNS). Pure.

Sources: RFC 951 and 2131 with the options of RFC 2132 (DHCP), RFC 1035 (DNS). No question of the guest leaves the host.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER, NETWORK

_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK = 1, 2, 3, 5
_LEASE = 7 * 86400  # seconds
_TTL = 60  # seconds
_A, _IN = 1, 1
_NO_ERROR, _FORMAT_ERROR, _FAILURE, _NO_NAME = 0, 1, 2, 3
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")


def dhcp_reply(request: bytes) -> bytes | None:
    """The answer to a DHCP message: always the same address, with gateway and name server."""
    if len(request) < 240 or request[:3] != b"\x01\x01\x06" or request[236:240] != _COOKIE:
        return None
    answer = {_DISCOVER: _OFFER, _REQUEST: _ACK}.get(_kind(request[240:]))
    if answer is None:
        return None
    head = b"\x02" + request[1:3] + b"\0" + request[4:8] + bytes(2) + request[10:12] + bytes(4)
    head += GUEST.packed + GATEWAY.packed + request[24:44] + bytes(192)
    options = {
        53: bytes([answer]),
        54: GATEWAY.packed,
        51: struct.pack("!I", _LEASE),
        1: NETWORK.netmask.packed,
        3: GATEWAY.packed,
        6: NAMESERVER.packed,
    }
    body = b"".join(bytes([code, len(value)]) + value for code, value in options.items())
    return head + _COOKIE + body + b"\xff"


def _kind(options: bytes) -> int:
    """The kind of a DHCP message, 0 if it says none."""
    while len(options) >= 2 and options[0] != 255:
        if options[0] == 0:
            options = options[1:]
            continue
        code, value = options[0], options[2 : 2 + options[1]]
        if code == 53 and len(value) == 1:
            return value[0]
        options = options[2 + options[1] :]
    return 0


def dns_reply(query: bytes, knows: Callable[[str], bool], address: Callable[[str], IPv4Address | None]) -> bytes | None:
    """The answer to a DNS query.

    Args:
        query: the message.
        knows: whether a name may be looked up.
        address: its address for the guest; None if there are no more.
    """
    if len(query) < 12 or query[2] & 0x80:  # an answer must not be answered
        return None
    identity, flags, questions = struct.unpack_from("!HHH", query)
    question = _question(query[12:]) if questions == 1 and not flags & 0x7800 else None
    if question is None:
        return struct.pack("!HHHHHH", identity, 0x8080 | flags & 0x7900 | _FORMAT_ERROR, 0, 0, 0, 0)
    name, kind, text = question
    found, code = b"", _NO_ERROR
    if not knows(name):
        code = _NO_NAME
    elif kind == (_A, _IN):
        target = address(name)
        if target is None:
            code = _FAILURE
        else:
            found = struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL, 4) + target.packed  # 0xC00C: the question's name
    return struct.pack("!HHHHHH", identity, 0x8080 | flags & 0x0100 | code, 1, bool(found), 0, 0) + text + found


def _question(data: bytes) -> tuple[str, tuple[int, int], bytes] | None:
    """Name, type and class of the question that ``data`` begins with, and its bytes. Names of hosts only."""
    labels: list[str] = []
    at = 0
    while at < len(data) and data[at]:
        label = data[at + 1 : at + 1 + data[at]]
        if len(label) != data[at] or not _LABEL.fullmatch(label):
            return None
        labels.append(label.decode())
        at += 1 + len(label)
    if not labels or at > 254 or len(data) < at + 5:
        return None
    kind, group = struct.unpack_from("!HH", data, at + 1)
    return ".".join(labels), (kind, group), data[: at + 5]
