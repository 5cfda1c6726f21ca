"""Answer DHCP and DNS messages of a guest in a restricted network.

The gateway answers them itself, so no query of the guest leaves the host. The functions take and return the contents of
UDP datagrams. Sources: RFC 951 and RFC 2131 with the options of RFC 2132 (DHCP), RFC 1035 (DNS).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER, NETWORK

_BOOTP_LENGTH = 236  # bytes of the fixed fields of a DHCP message
_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK = 1, 2, 3, 5
_LEASE = 7 * 86400  # seconds
_TTL = 60  # seconds
_A, _IN = 1, 1
_NO_ERROR, _FORMAT_ERROR, _FAILURE, _NO_NAME = 0, 1, 2, 3
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")


def dhcp_reply(request: bytes) -> bytes | None:
    """Answer a DHCP message: the guest gets always the same address, gateway and name server.

    Returns:
        The reply; None if ``request`` is neither a DISCOVER nor a REQUEST message.
    """
    options_start = _BOOTP_LENGTH + len(_COOKIE)
    if request[:3] != b"\x01\x01\x06" or request[_BOOTP_LENGTH:options_start] != _COOKIE:
        return None
    kind = {_DISCOVER: _OFFER, _REQUEST: _ACK}.get(_message_type(request[options_start:]))
    if kind is None:
        return None
    head = b"\x02" + request[1:3] + b"\0" + request[4:8] + bytes(2) + request[10:12] + bytes(4)
    head += GUEST.packed + GATEWAY.packed + request[24:44] + bytes(192)
    options = {
        53: bytes([kind]),
        54: GATEWAY.packed,
        51: struct.pack("!I", _LEASE),
        1: NETWORK.netmask.packed,
        3: GATEWAY.packed,
        6: NAMESERVER.packed,
    }
    body = b"".join(bytes([code, len(value)]) + value for code, value in options.items())
    return head + _COOKIE + body + b"\xff"


def _message_type(options: bytes) -> int:
    """Return the type of a DHCP message (option 53), or 0 if it has none."""
    while len(options) >= 2 and options[0] != 255:
        if options[0] == 0:
            options = options[1:]
            continue
        code, value = options[0], options[2 : 2 + options[1]]
        if code == 53 and len(value) == 1:
            return value[0]
        options = options[2 + options[1] :]
    return 0


def dns_reply(
    query: bytes, is_known: Callable[[str], bool], address: Callable[[str], IPv4Address | None]
) -> bytes | None:
    """Answer a DNS query.

    Args:
        query: the message.
        is_known: returns whether a name exists for the guest.
        address: returns the IPv4 address that stands for a name; None if there is none left.

    Returns:
        The reply; None if ``query`` is too short or is a reply itself.
    """
    if len(query) < 12 or query[2] & 0x80:
        return None
    identity, flags, questions = struct.unpack_from("!HHH", query)
    question = _question(query[12:]) if questions == 1 and not flags & 0x7800 else None
    if question is None:
        return struct.pack("!HHHHHH", identity, 0x8080 | flags & 0x7900 | _FORMAT_ERROR, 0, 0, 0, 0)
    name, kind, text = question
    record, code = b"", _NO_ERROR
    if not is_known(name):
        code = _NO_NAME
    elif kind == (_A, _IN):
        target = address(name)
        if target is None:
            code = _FAILURE
        else:
            # 0xC00C points to the name in the question.
            record = struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL, 4) + target.packed
    return struct.pack("!HHHHHH", identity, 0x8080 | flags & 0x0100 | code, 1, bool(record), 0, 0) + text + record


def _question(data: bytes) -> tuple[str, tuple[int, int], bytes] | None:
    """Parse the question at the start of ``data``.

    Returns:
        The name, the type and class, and the bytes of the question; None if it is malformed, or its name is not made of
        letters, digits, hyphens and underscores.
    """
    labels: list[str] = []
    position = 0
    while position < len(data) and data[position]:
        label = data[position + 1 : position + 1 + data[position]]
        if len(label) != data[position] or not _LABEL.fullmatch(label):
            return None
        labels.append(label.decode())
        position += 1 + len(label)
    if not labels or position > 254 or len(data) < position + 5:
        return None
    kind, group = struct.unpack_from("!HH", data, position + 1)
    return ".".join(labels), (kind, group), data[: position + 5]
