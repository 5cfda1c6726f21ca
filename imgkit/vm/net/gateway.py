"""The gateway of a restricted network: a guest's frames in, frames out, and which connections are asked for.

There is no way from the guest to anything but through here. What it may reach is in the :class:`Allowlist`; the rest is
refused (TCP) or not heard. Nothing here opens anything: connections are asked of ``connect``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import TypeAlias

from imgkit.vm.net import dhcpdns, packets
from imgkit.vm.net.allowlist import GATEWAY, GUEST, NAMESERVER, Allowlist
from imgkit.vm.net.packets import ACK, FIN, RST, SYN, Datagram, TcpSegment
from imgkit.vm.net.tcp import Connection

log = logging.getLogger("imgkit.vm")

Target: TypeAlias = "str | IPv4Address"
"""What the host connects to: a name, or an address that was named as such."""

MAC = b"\x52\x55\x0a\x00\x02\x02"
"""The gateway's own address on the link; the one that QEMU's user network has."""
STAND_INS = IPv4Network("198.18.0.0/15")
"""Addresses that stand for names (RFC 2544 keeps them out of the Internet)."""
MAX_NAMES = 4096
_TOLD = 20


class RefusalLog:
    """What was said about refusals: each of them once, and 20 at most, as a guest may try without end."""

    def __init__(self) -> None:
        self._about: set[object] = set()

    def say(self, level: int, text: str, about: object) -> None:
        """Log ``text``, unless something was said ``about`` the same already, or too much altogether."""
        if len(self._about) < _TOLD and about not in self._about:
            self._about.add(about)
            log.log(level, "%s", text)


class GuestNames:
    """Which address the guest was given for which name."""

    def __init__(self, taken: frozenset[IPv4Address]) -> None:
        self._taken = taken
        self._addresses: dict[str, IPv4Address] = {}
        self._names: dict[IPv4Address, str] = {}
        self._hosts = STAND_INS.hosts()

    def address(self, name: str) -> IPv4Address | None:
        """The address that stands for ``name`` from now on; None when there have been too many names."""
        name = name.lower()
        if name not in self._addresses:
            if len(self._addresses) >= MAX_NAMES:
                return None
            address = next(host for host in self._hosts if host not in self._taken)
            self._addresses[name], self._names[address] = address, name
        return self._addresses[name]

    def name(self, address: IPv4Address) -> str | None:
        """The name that ``address`` stands for."""
        return self._names.get(address)


class Gateway:
    """One guest's gateway."""

    def __init__(
        self,
        rules: Allowlist,
        *,
        send: Callable[[bytes], None],
        connect: Callable[[Target, int, Connection], bool],
        clock: Callable[[], float],
        told: RefusalLog | None = None,
    ) -> None:
        """Begin with no connections.

        Args:
            rules: what may be reached.
            send: takes a frame for the guest.
            connect: asked to connect; the connection is accepted or refused later. False if there are too many.
            clock: seconds that never go back.
            told: what was said already, where others speak of this guest, too.
        """
        self._rules = rules
        self._send = send
        self._connect = connect
        self._clock = clock
        self._names = GuestNames(frozenset(address for address, _ in rules.addresses))
        self._connections: dict[tuple[int, IPv4Address, int], Connection] = {}
        self._touched: set[Connection] = set()
        self._told = told or RefusalLog()

    def frame(self, frame: bytes) -> None:
        """The guest sent this. :meth:`settle` must follow, once for several of them."""
        reply = packets.arp_reply(frame, MAC, GUEST)
        if reply is not None:
            self._send(reply)
            return
        datagram = packets.datagram(frame)
        if datagram is None:
            return
        if datagram.protocol == packets.UDP:
            self._udp(datagram)
        elif datagram.protocol == packets.TCP and datagram.source == GUEST:
            segment = packets.tcp(datagram.payload)
            if segment is not None:
                self._tcp(datagram, segment)

    def settle(self) -> None:
        """Confirm what came since the last time, and forget what is over."""
        for connection in self._touched:
            connection.settle()
        self._touched.clear()
        self._connections = {key: each for key, each in self._connections.items() if not each.closed}

    def tick(self) -> None:
        """To be called several times a second."""
        for connection in self._connections.values():
            connection.tick()
        self.settle()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _udp(self, datagram: Datagram) -> None:
        parts = packets.udp(datagram.payload)
        if parts is None:
            return
        source, target, data = parts
        if (source, target) == (68, 67):
            answer = dhcpdns.dhcp_reply(data)
            if answer is not None:
                everybody = IPv4Address("255.255.255.255")
                self._reply(datagram, packets.udp_packet((GATEWAY, 67), (everybody, 68), answer))
        elif (datagram.target, target) == (NAMESERVER, 53) and datagram.source == GUEST:
            answer = dhcpdns.dns_reply(data, self._rules.knows, self._names.address)
            if answer is not None:
                self._reply(datagram, packets.udp_packet((NAMESERVER, 53), (GUEST, source), answer))

    def _tcp(self, datagram: Datagram, segment: TcpSegment) -> None:
        key = (segment.source, datagram.target, segment.target)
        connection = self._connections.get(key)
        if connection is not None and not connection.closed:
            connection.segment(segment)
            self._touched.add(connection)
        elif segment.flags & (SYN | ACK | RST | FIN) == SYN:
            self._open(key, datagram, segment)
        elif not segment.flags & RST:
            self._reset(datagram, segment)

    def _open(self, key: tuple[int, IPv4Address, int], datagram: Datagram, syn: TcpSegment) -> None:
        def send(segment: TcpSegment) -> None:
            self._reply(datagram, packets.tcp_packet(datagram.target, GUEST, segment))

        target = self._target(datagram.target, syn.target)
        connection = Connection(syn, send, self._clock)
        if target is not None and self._connect(target, syn.target, connection):
            self._connections[key] = connection
        else:
            connection.refuse()

    def _target(self, seen: IPv4Address, port: int) -> Target | None:
        """Where a connection to what the guest calls ``seen`` leads; None for nowhere."""
        name = self._names.name(seen)
        if name is not None and self._rules.allows(name, port):
            return name
        literal = self._rules.literal(seen, port)
        if literal is None:
            self._tell(name or seen, port)
        return literal

    def _tell(self, what: Target, port: int) -> None:
        """Say once what was refused, so that whoever wrote the rules can see what is missing."""
        text = f"network: {what}:{port} is refused to the guest (no --allow names it)"
        self._told.say(logging.INFO, text, (what, port))

    def _reset(self, datagram: Datagram, segment: TcpSegment) -> None:
        """Answer a segment of no connection (RFC 9293, section 3.10.7.1)."""
        ends = bool(segment.flags & SYN) + bool(segment.flags & FIN)
        ack = (segment.seq + len(segment.data) + ends) % (1 << 32)
        known = segment.flags & ACK
        flags, seq, ack = (RST, segment.ack, 0) if known else (RST | ACK, 0, ack)
        reply = TcpSegment(segment.target, segment.source, seq, ack, flags, 0)
        self._reply(datagram, packets.tcp_packet(datagram.target, GUEST, reply))

    def _reply(self, datagram: Datagram, packet: bytes) -> None:
        self._send(packets.ethernet(datagram.mac, MAC, packets.IPV4, packet))
