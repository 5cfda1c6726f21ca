"""Ports of the host that lead to ports of the guest, as ``--publish`` and ``BootSpec.publish`` name them.

    parse("8080:80")               # on 127.0.0.1 only: other computers cannot connect
    parse("0.0.0.0:8080:80/tcp")   # on every address of the host
    parse("127.0.0.1:0:53/udp")    # the host port is a free one

QEMU's user network listens on the host and makes the connections to the guest (``hostfwd`` of qemu(1)), which sees them
come from 10.0.2.2. The form is that of ``docker run --publish``, but an address that is not named is the loopback one.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from imgkit.errors import HostError, UsageError

LOOPBACK = IPv4Address("127.0.0.1")
_FORM = re.compile(
    r"(?:(?P<address>\[[^]]*\]|[^:]+):)?(?P<host>[0-9]{1,5}):(?P<guest>[0-9]{1,5})(?:/(?P<protocol>.+))?"
)
_SOCKETS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_FIRST_FREE = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_REASONS = {
    errno.EADDRINUSE: "the port is in use by another program of this host",
    errno.EADDRNOTAVAIL: "this host does not have that address",
}
_HINTS = {errno.EADDRINUSE: "another port, or 0 for a free one"}
_TRIES = 20  # to find a free port that is not among the others


@dataclass(frozen=True)
class PortForward:
    """A port of the host that leads to a port of the guest.

    Attributes:
        host: port of the host; 0 until a free one has been chosen.
        guest: port of the guest.
        address: address of the host on which connections are accepted.
        protocol: "tcp" or "udp".
    """

    host: int
    guest: int
    address: IPv4Address = LOOPBACK
    protocol: str = "tcp"

    def __str__(self) -> str:
        """Return the form of ``--publish``, with the address."""
        return f"{self.address}:{self.host}:{self.guest}" + ("" if self.protocol == "tcp" else f"/{self.protocol}")

    @property
    def argument(self) -> str:
        """The option of QEMU's user network."""
        return f"hostfwd={self.protocol}:{self.address}:{self.host}-:{self.guest}"


def parse(word: str) -> PortForward:
    """Parse ``[ADDRESS:]HOST:GUEST[/PROTOCOL]``.

    Raises:
        UsageError: it does not have this form, a number is no port, or the address is a name or an IPv6 address.
    """
    match = _FORM.fullmatch(word)
    if match is None:
        hint = "8080:80, 0.0.0.0:8080:80, or 0:80 for a free port of the host"
        raise UsageError(f"--publish {word}: not of the form [ADDRESS:]HOST:GUEST[/udp]", hint=hint)
    protocol = match["protocol"] or "tcp"
    if protocol not in _SOCKETS:
        raise UsageError(f"--publish {word}: {protocol}: unknown protocol", hint="known are tcp and udp")
    host, guest = int(match["host"]), int(match["guest"])
    if host > 65535 or not 0 < guest <= 65535:
        raise UsageError(f"--publish {word}: not a port", hint="ports are 1 to 65535; 0 for HOST is a free one")
    return PortForward(host, guest, _address(word, match["address"]), protocol)


def _address(word: str, text: str | None) -> IPv4Address:
    if text is None:
        return LOOPBACK
    with suppress(ValueError):
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        if isinstance(address, IPv4Address) and not text.startswith("["):
            return address
        hint = "0.0.0.0 for every IPv4 address of the host, or leave the address out"
        raise UsageError(f"--publish {word}: QEMU's user network accepts connections over IPv4 only", hint=hint)
    raise UsageError(f"--publish {word}: {text}: not an address", hint="names are not looked up: an IPv4 address")


def check(words: Sequence[str], network: str) -> tuple[PortForward, ...]:
    """Parse all words, and check that they can be together and that the network can carry them.

    Raises:
        UsageError: as :func:`parse`, or two words have the same port of the host, or the network takes no connections.
    """
    forwards = tuple(map(parse, words))
    if forwards and network != "user":
        reason = "the machine has no network" if network == "none" else "a restricted network takes no connections"
        raise UsageError(f"--publish {words[0]}: {reason}", hint="--network user")
    for at, forward in enumerate(forwards):
        if any(_collide(forward, other) for other in forwards[:at]):
            raise UsageError(f"--publish {words[at]}: port {forward.host} of the host is published twice")
    return forwards


def _collide(one: PortForward, other: PortForward) -> bool:
    same = (one.host, one.protocol) == (other.host, other.protocol) and one.host != 0
    return same and (one.address == other.address or IPv4Address(0) in (one.address, other.address))


def usable(forwards: Iterable[PortForward]) -> tuple[PortForward, ...]:
    """Return the forwards with a port in place of each 0, after checking that QEMU will get every port.

    Raises:
        HostError: a port is in use, may not be used, or the address is not one of this host.
    """
    forwards = tuple(forwards)
    taken = [_usable(forward) for forward in forwards if forward.host]
    chosen: list[PortForward] = []
    for forward in forwards:
        chosen.append(forward if forward.host else _free(forward, [*taken, *chosen]))
    return tuple(chosen)


def _usable(forward: PortForward) -> PortForward:
    first = _first_unprivileged()
    if forward.host < first:
        # QEMU is never root, not even where root starts it.
        hint = f"a port from {first} on, such as {forward.host + 8000 if forward.host < 1024 else first}"
        raise HostError(f"--publish {forward}: ports below {first} are only for root, and QEMU is not root", hint=hint)
    _bind(forward)
    return forward


def _first_unprivileged() -> int:
    """Return the first port that every program may listen on (ip(7)); 0 on systems without that setting."""
    try:
        return int(_FIRST_FREE.read_text())
    except (OSError, ValueError):
        return 0


def _free(forward: PortForward, taken: Sequence[PortForward]) -> PortForward:
    """Return the forward with a port that is free at the moment."""
    for _ in range(_TRIES):
        chosen = replace(forward, host=_bind(forward))
        if not any(_collide(chosen, other) for other in taken):
            return chosen
    raise HostError(f"--publish {forward}: no free port was found on this host")


def _bind(forward: PortForward) -> int:
    """Take a port for a moment, as QEMU will do, and return its number."""
    with socket.socket(socket.AF_INET, _SOCKETS[forward.protocol]) as listener:
        if forward.protocol == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU has it
        try:
            listener.bind((str(forward.address), forward.host))
        except OSError as cause:
            raise HostError(f"--publish {forward}: {_reason(cause)}", hint=_HINTS.get(cause.errno or 0)) from cause
        return int(listener.getsockname()[1])


def _reason(cause: OSError) -> str:
    return _REASONS.get(cause.errno or 0) or str(cause.strerror)
