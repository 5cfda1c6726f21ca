"""What a guest in a restricted network may reach, from the words of ``--allow``. Pure: nothing is looked up here.

A rule is ``HOST[:PORT]``; without a port it is 443. HOST is a name, ``*.`` and a name (every name below it, not that
name itself), or an IPv4 address. A name never leads to an address of the host's own or of its private networks: whoever
wants that writes the address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from imgkit.errors import UsageError

Address: TypeAlias = "IPv4Address | IPv6Address"

DEFAULT_PORT = 443
NETWORK = ipaddress.IPv4Network("10.0.2.0/24")
"""The guest's network; its addresses are those of QEMU's user network, which images and people know."""
GUEST, GATEWAY, NAMESERVER = (IPv4Address(f"10.0.2.{last}") for last in (15, 2, 3))
LOOPBACK = IPv4Address("127.0.0.1")
"""Of the host; the guest has the gateway's address for it."""
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


@dataclass(frozen=True)
class Allowlist:
    """What may be reached: ``names`` and ``addresses`` with their ports; ``below`` are the names after ``*.``."""

    names: frozenset[tuple[str, int]] = frozenset()
    below: frozenset[tuple[str, int]] = frozenset()
    addresses: frozenset[tuple[IPv4Address, int]] = frozenset()

    def knows(self, name: str) -> bool:
        """Whether any port of ``name`` may be reached. Case and a final dot make no difference."""
        name = normalized(name)
        return any(name == known for known, _ in self.names) or any(_below(name, top) for top, _ in self.below)

    def allows(self, name: str, port: int) -> bool:
        """Whether ``port`` of ``name`` may be reached."""
        name = normalized(name)
        return (name, port) in self.names or any(_below(name, top) and port == theirs for top, theirs in self.below)

    def literal(self, seen: IPv4Address, port: int) -> IPv4Address | None:
        """The host's address for what the guest calls ``seen``, if that was named; None if not.

        The gateway stands for the host's loopback address, as it does in QEMU's user network.
        """
        if seen == GATEWAY:
            return LOOPBACK if (LOOPBACK, port) in self.addresses else None
        return seen if (seen, port) in self.addresses and not seen.is_loopback else None


def parse(words: Iterable[str]) -> Allowlist:
    """The rules that these words of the form ``HOST[:PORT]`` amount to.

    Raises:
        UsageError: one of them is not of that form, or can never be reached.
    """
    names, below, addresses = set(), set(), set()
    for word in words:
        host, port = _split(word)
        address = _address(word, host)
        if address is not None:
            addresses.add((address, port))
        elif host.startswith("*."):
            below.add((_name(word, host[2:], least=2), port))
        else:
            names.add((_name(word, host), port))
    return Allowlist(frozenset(names), frozenset(below), frozenset(addresses))


def normalized(name: str) -> str:
    """``name`` as the rules have it."""
    return name.lower().removesuffix(".")


def is_public(address: Address) -> bool:
    """Whether a name may lead to ``address``: one of the Internet, not of the host or of a network around it."""
    if isinstance(address, IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is None and address in _NAT64:
            inside = IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(inside)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_link_local)


def _below(name: str, top: str) -> bool:
    return name.endswith("." + top) and len(name) > len(top) + 1


def _split(word: str) -> tuple[str, int]:
    if "://" in word:
        raise UsageError(f"--allow {word}: a host, not a URL", hint=f"--allow {_host_of(word) or 'HOST:PORT'}")
    if "," in word:
        raise UsageError(f"--allow {word}: one host only", hint="one --allow for each")
    if word.startswith("["):
        raise UsageError(f"--allow {word}: the guest's network has IPv4 only", hint="name the host instead")
    host, colon, port = word.partition(":")
    if not colon:
        return host, DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise UsageError(f"--allow {word}: not of the form HOST:PORT", hint="a port is a number from 1 to 65535")
    return host, int(port)


def _host_of(url: str) -> str:
    """What ``--allow`` takes in place of a URL; an empty text where that is not plain."""
    scheme, _, rest = url.partition("://")
    host = re.match(r"[A-Za-z0-9.-]+(:[0-9]+)?(?=[/?#]|\Z)", rest)
    port = {"https": ":443", "http": ":80"}.get(scheme.lower(), "")
    return "" if host is None else host[0] if host[1] else host[0] + port


def _address(word: str, host: str) -> IPv4Address | None:
    """The address that ``host`` is; None if it is a name.

    Raises:
        UsageError: resolvers would take it for an address, or it is one that cannot be meant.
    """
    if not _NUMBER.fullmatch(normalized(host).rpartition(".")[2]):
        return None
    try:
        address = IPv4Address(host)
    except ValueError:
        raise UsageError(f"--allow {word}: not an address", hint="four decimal numbers, such as 192.0.2.7") from None
    if address in (GATEWAY, NAMESERVER, GUEST):
        hint = "--allow 127.0.0.1:PORT; the guest reaches it as 10.0.2.2:PORT"
        raise UsageError(f"--allow {word}: an address of the guest's own network", hint=hint)
    if address.is_loopback and address != LOOPBACK:
        hint = f"--allow {LOOPBACK}:PORT; the guest reaches it as 10.0.2.2:PORT"
        raise UsageError(f"--allow {word}: of the host's loopback addresses the guest has one only", hint=hint)
    if address.is_unspecified or address.is_multicast or int(address) >= 0xF0000000:
        raise UsageError(f"--allow {word}: not the address of a host")
    return address


def _name(word: str, host: str, least: int = 1) -> str:
    """``host`` in the letters that are looked up."""
    try:
        name = normalized(host if host.isascii() else host.encode("idna").decode())
    except UnicodeError:
        raise UsageError(f"--allow {word}: not the name of a host") from None
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError(f"--allow {word}: not the name of a host", hint="HOST:PORT, *.HOST:PORT or ADDRESS:PORT")
    if len(labels) < least:
        raise UsageError(
            f"--allow {word}: would be every name below .{name}", hint="name a domain, as in *.example.com"
        )
    if labels[-1] == "localhost":
        hint = "--allow 127.0.0.1:PORT; the guest reaches it as 10.0.2.2:PORT"
        raise UsageError(f"--allow {word}: a name never leads to the host itself", hint=hint)
    return name
