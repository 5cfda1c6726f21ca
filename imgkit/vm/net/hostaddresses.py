"""Look up the addresses of a name, and find out which addresses are the host's own.

addresses = await look_up(loop, "registry.example", 443)
foreign = [address for address in addresses if not is_own(address)]
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

from imgkit.vm.net.allowlist import Address

_DISCARD = 9  # a port, which does not matter, as nothing is sent
_UNASSIGNED = IPv6Address("2001:db8::1")  # an address of no host: the range is for documentation (RFC 3849)


async def look_up(loop: asyncio.AbstractEventLoop, name: str, port: int) -> list[Address]:
    """Look up the addresses of ``name``, in the order in which to try them.

    This is done in a daemon thread, so that a resolver that does not answer cannot delay the end of the program.

    Raises:
        OSError: the name has no address, or is not a valid name.
    """
    future: asyncio.Future[list[Address]] = loop.create_future()

    def settle(addresses: list[Address], error: OSError | None) -> None:
        if not future.done():
            future.set_result(addresses) if error is None else future.set_exception(error)

    def work() -> None:
        addresses, error = [], None
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            addresses = [ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
        except OSError as cause:
            error = cause
        except ValueError:  # UnicodeError: a label is too long or empty
            error = OSError(f"{name} is no name")
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=work, name="look up a name", daemon=True).start()
    return await future


def is_own(address: Address) -> bool:
    """Return whether ``address`` is an address of this host. Nothing is sent.

    A socket can be bound to an address of the host only, unless ``ip_nonlocal_bind`` is set (Linux, ip-sysctl). If it
    is set, an IPv4 socket still cannot be connected from an address that is not the host's, and IPv6 chooses an address
    of the host as the source for this very address (RFC 6724, section 5, rule 1).
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_own(address.ipv4_mapped)
    if address.is_loopback or address.is_unspecified:
        return True
    if address.version == 4:
        return _source(address, address) is not None
    return _binds(address) and (not _binds(_UNASSIGNED) or _source(address) == str(address))


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _binds(address: Address) -> bool:
    """Return whether a socket can be bound to ``address``."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _source(target: Address, source: Address | None = None) -> str | None:
    """Return the source address of datagrams to ``target``; None if there is none, or ``source`` is not possible."""
    try:
        with socket.socket(_family(target), socket.SOCK_DGRAM) as probe:
            if source is not None:
                probe.bind((str(source), 0))
            probe.connect((str(target), _DISCARD))
            return str(probe.getsockname()[0])
    except OSError:
        return None
