"""The gateway of a restricted network: it handles the guest's Ethernet frames and decides on its connections.

All traffic of the guest goes through the gateway. It answers ARP, DHCP and DNS itself. TCP connections to hosts of the
:class:`Allowlist` are requested from the caller; all others are refused, and other packets are dropped. The gateway
opens no sockets::

    gateway = Gateway(allowlist, send=send, connect=connect, clock=time.monotonic)
    gateway.receive(frame)
    gateway.flush()
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
"""What the host connects to: the name of a host, or an address that the allowlist contains as such."""

MAC = b"\x52\x55\x0a\x00\x02\x02"
"""The gateway's MAC address, which is the same as in QEMU's user network."""
STAND_INS = IPv4Network("198.18.0.0/15")
"""Addresses that are given to the guest for names. RFC 2544 reserves them, so that no host on the Internet has them."""
MAX_NAMES = 4096
"""Maximum number of names that one guest gets addresses for."""
_MAX_MESSAGES = 20


class RefusalLog:
    """Logs refused connections: each only once, and 20 at most, because a guest may try without end."""

    def __init__(self) -> None:
        """Begin with no messages."""
        self._logged: set[object] = set()

    def log(self, level: int, text: str, subject: object) -> None:
        """Log ``text``, unless a message about the same subject, or too many altogether, were logged before."""
        if len(self._logged) < _MAX_MESSAGES and subject not in self._logged:
            self._logged.add(subject)
            log.log(level, "%s", text)


class GuestNames:
    """The addresses that the guest was given for names."""

    def __init__(self, taken: frozenset[IPv4Address]) -> None:
        """Begin with no names; the addresses ``taken`` are never given for a name."""
        self._taken = taken
        self._addresses: dict[str, IPv4Address] = {}
        self._names: dict[IPv4Address, str] = {}
        self._hosts = STAND_INS.hosts()

    def address(self, name: str) -> IPv4Address | None:
        """Return the address that stands for ``name`` from now on; None after :data:`MAX_NAMES` names."""
        name = name.lower()
        if name not in self._addresses:
            if len(self._addresses) >= MAX_NAMES:
                return None
            address = next(host for host in self._hosts if host not in self._taken)
            self._addresses[name], self._names[address] = address, name
        return self._addresses[name]

    def name(self, address: IPv4Address) -> str | None:
        """Return the name that ``address`` stands for, or None."""
        return self._names.get(address)


class Gateway:
    """The gateway of one guest."""

    def __init__(
        self,
        allowlist: Allowlist,
        *,
        send: Callable[[bytes], None],
        connect: Callable[[Target, int, Connection], bool],
        clock: Callable[[], float],
        refusals: RefusalLog | None = None,
    ) -> None:
        """Begin with no connections.

        Args:
            allowlist: what the guest may reach.
            send: sends a frame to the guest.
            connect: connects to a port of a target, and later accepts or refuses the connection; returns False if there
                are too many connections.
            clock: returns the time in seconds, which never decreases.
            refusals: logs refused connections; to be given if the caller logs refusals of the same guest, too.
        """
        self._allowlist = allowlist
        self._send = send
        self._connect = connect
        self._clock = clock
        self._names = GuestNames(frozenset(address for address, _ in allowlist.addresses))
        self._connections: dict[tuple[int, IPv4Address, int], Connection] = {}
        self._touched: set[Connection] = set()
        self._refusals = refusals or RefusalLog()

    def receive(self, frame: bytes) -> None:
        """Handle a frame that the guest sent. :meth:`flush` must be called after one or several frames."""
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

    def flush(self) -> None:
        """Acknowledge what was received since the last call, and forget closed connections."""
        for connection in self._touched:
            connection.flush()
        self._touched.clear()
        self._connections = {key: value for key, value in self._connections.items() if not value.closed}

    def tick(self) -> None:
        """Run the timers of the connections; to be called several times a second."""
        for connection in self._connections.values():
            connection.tick()
        self.flush()

    def _udp(self, datagram: Datagram) -> None:
        udp = packets.udp(datagram.payload)
        if udp is None:
            return
        source, target, data = udp
        if (source, target) == (68, 67):
            reply = dhcpdns.dhcp_reply(data)
            if reply is not None:
                broadcast = IPv4Address("255.255.255.255")
                self._reply(datagram, packets.udp_packet((GATEWAY, 67), (broadcast, 68), reply))
        elif (datagram.target, target) == (NAMESERVER, 53) and datagram.source == GUEST:
            reply = dhcpdns.dns_reply(data, self._allowlist.contains, self._names.address)
            if reply is not None:
                self._reply(datagram, packets.udp_packet((NAMESERVER, 53), (GUEST, source), reply))

    def _tcp(self, datagram: Datagram, segment: TcpSegment) -> None:
        key = (segment.source, datagram.target, segment.target)
        connection = self._connections.get(key)
        if connection is not None and not connection.closed:
            connection.receive(segment)
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

    def _target(self, address: IPv4Address, port: int) -> Target | None:
        """Return what the host connects to when the guest connects to ``address``; None, and a message, if nothing."""
        name = self._names.name(address)
        if name is not None and self._allowlist.allows(name, port):
            return name
        host_address = self._allowlist.host_address(address, port)
        if host_address is None:
            refused = name or address
            text = f"network: {refused}:{port} is refused to the guest (no --allow names it)"
            self._refusals.log(logging.INFO, text, (refused, port))
        return host_address

    def _reset(self, datagram: Datagram, segment: TcpSegment) -> None:
        """Reset a connection that does not exist (RFC 9293, section 3.10.7.1)."""
        controls = bool(segment.flags & SYN) + bool(segment.flags & FIN)  # each takes one sequence number
        ack = (segment.seq + len(segment.data) + controls) % (1 << 32)
        flags, seq, ack = (RST, segment.ack, 0) if segment.flags & ACK else (RST | ACK, 0, ack)
        reply = TcpSegment(segment.target, segment.source, seq, ack, flags, 0)
        self._reply(datagram, packets.tcp_packet(datagram.target, GUEST, reply))

    def _reply(self, datagram: Datagram, packet: bytes) -> None:
        self._send(packets.ethernet(datagram.mac, MAC, packets.IPV4, packet))
