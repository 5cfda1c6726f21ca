"""The allowlist of a restricted network: what the guest may reach, from the arguments of ``--allow``.

An argument has the form ``HOST[:PORT]``; the default port is 443. HOST is a name, ``*.`` followed by a name (which
stands for every name below that name, but not for the name itself), or an IPv4 address. A name never leads to an
address of the host or of a private network; such addresses are reached only if the allowlist contains them as
addresses. No name is looked up here::

    allowlist = parse(["registry.example", "*.cdn.example:443", "127.0.0.1:8080"])
    allowlist.allows("registry.example", 443)  # True
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
"""The guest's network. Its addresses are those of QEMU's user network, which existing images expect."""
GUEST, GATEWAY, NAMESERVER = (IPv4Address(f"10.0.2.{last}") for last in (15, 2, 3))
LOOPBACK = IPv4Address("127.0.0.1")
"""The host's loopback address, which the guest reaches by the gateway's address."""
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


@dataclass(frozen=True)
class Allowlist:
    """The hosts and ports that a guest may reach.

    Attributes:
        names: pairs of name and port.
        below: the same for every name below a name.
        addresses: pairs of address and port.
    """

    names: frozenset[tuple[str, int]] = frozenset()
    below: frozenset[tuple[str, int]] = frozenset()
    addresses: frozenset[tuple[IPv4Address, int]] = frozenset()

    def contains(self, name: str) -> bool:
        """Return whether any port of ``name`` may be reached. Case and a final dot make no difference."""
        name = normalized(name)
        return any(name == allowed for allowed, _ in self.names) or any(_is_below(name, top) for top, _ in self.below)

    def allows(self, name: str, port: int) -> bool:
        """Return whether ``port`` of ``name`` may be reached. Case and a final dot make no difference."""
        name = normalized(name)
        return (name, port) in self.names or any(
            _is_below(name, top) and port == allowed for top, allowed in self.below
        )

    def host_address(self, address: IPv4Address, port: int) -> IPv4Address | None:
        """Return the address that the host connects to when the guest connects to ``address``; None if not allowed.

        The gateway's address stands for the host's loopback address, as in QEMU's user network.
        """
        if address == GATEWAY:
            return LOOPBACK if (LOOPBACK, port) in self.addresses else None
        return address if (address, port) in self.addresses and not address.is_loopback else None


def parse(words: Iterable[str]) -> Allowlist:
    """Parse arguments of the form ``HOST[:PORT]``.

    Raises:
        UsageError: an argument is not of that form, or names something that can never be reached.
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
    """Return ``name`` in lower case and without a final dot, as the allowlist stores it."""
    return name.lower().removesuffix(".")


def is_public(address: Address) -> bool:
    """Return whether a name may lead to ``address``, because it belongs to the Internet and not to a private network.

    An IPv6 address that embeds an IPv4 address is public if the embedded address is.
    """
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_link_local)


def _is_below(name: str, top: str) -> bool:
    return name.endswith("." + top) and len(name) > len(top) + 1


def _split(word: str) -> tuple[str, int]:
    """Split an argument into host and port."""
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
    """Return the argument of ``--allow`` for the host of a URL; empty if the host is not obvious."""
    scheme, _, rest = url.partition("://")
    host = re.match(r"[A-Za-z0-9.-]+(:[0-9]+)?(?=[/?#]|\Z)", rest)
    port = {"https": ":443", "http": ":80"}.get(scheme.lower(), "")
    return "" if host is None else host[0] if host[1] else host[0] + port


def _address(word: str, host: str) -> IPv4Address | None:
    """Parse ``host`` as an address; None if it is a name.

    Raises:
        UsageError: resolvers would take the name for an address, or the address can never be reached.
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
        raise UsageError(f"--allow {word}: only one of the host's loopback addresses can be allowed", hint=hint)
    if address.is_unspecified or address.is_multicast or int(address) >= 0xF0000000:
        raise UsageError(f"--allow {word}: not the address of a host")
    return address


def _name(word: str, host: str, least: int = 1) -> str:
    """Return ``host`` as it is looked up, in ASCII (IDNA) and normalized. It must have at least ``least`` labels.

    Raises:
        UsageError: it is not the name of a host, has too few labels, or is the host itself.
    """
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
