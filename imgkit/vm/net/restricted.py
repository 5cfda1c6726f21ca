"""A restricted network at work: the thread that carries a guest's connections to the hosts that were allowed.

    with restricted.network(rules.parse(["registry.example:443"])) as descriptor:
        ...  # QEMU's -netdev socket,fd=DESCRIPTOR

QEMU's end is a socket that carries Ethernet frames. QEMU itself opens no connection and has no network stack that the
guest could reach. Names are looked up here, the addresses are checked, and what was checked is connected to.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from imgkit.vm.net.allowlist import Address, Allowlist, is_public
from imgkit.vm.net.gateway import Gateway, RefusalLog, Target
from imgkit.vm.net.tcp import BUFFER, Connection

log = logging.getLogger("imgkit.vm")

MAX_CONNECTIONS = 128
"""Connections of one guest at a time, those under way included."""
_CONNECT = 20.0  # seconds to look up a name and to connect
_LOOKUPS = 8  # at a time
_TICK = 0.1
_DISCARD = 9  # any port would do
_NOBODYS = IPv6Address("2001:db8::1")  # of the range for documents (RFC 3849)
_MAX_FRAME = 1 << 16
_MAX_WAITING = 4 << 20  # bytes for a guest that does not take its frames; more are dropped, as networks do


@contextmanager
def network(rules: Allowlist) -> Iterator[int]:
    """A network for one machine, for the length of the block. Gives the descriptor of QEMU's end of the link."""
    host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=_serve, args=(loop, stop, host, rules), name="restricted network", daemon=True)
    thread.start()
    try:
        yield guest.fileno()
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        guest.close()


def _serve(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, host: socket.socket, rules: Allowlist) -> None:
    try:
        loop.run_until_complete(_Relay(loop, rules).run(host, stop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        host.close()


class _Relay(asyncio.Protocol):
    """The link to QEMU, and the connections to the world."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rules: Allowlist) -> None:
        self._loop = loop
        self._told = RefusalLog()
        self._gateway = Gateway(rules, send=self._send, connect=self._connect, clock=loop.time, told=self._told)
        self._link: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: list[bytes] = []
        self._upstreams: set[_Upstream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(_LOOKUPS)

    async def run(self, host: socket.socket, stop: asyncio.Event) -> None:
        """Carry frames until ``stop``."""
        host.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=host)
        while not stop.is_set():
            self._gateway.tick()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _TICK)
        for upstream in tuple(self._upstreams):
            upstream.abort()
        if self._link is not None:
            self._link.abort()

    # ---- the link ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._link = transport

    def data_received(self, data: bytes) -> None:
        """Frames, each behind its length in four bytes (QEMU's net/socket.c)."""
        self._received += data
        at = 0
        while len(self._received) - at >= 4:
            length = int.from_bytes(self._received[at : at + 4], "big")
            if length > _MAX_FRAME and self._link is not None:  # no QEMU says that
                self._link.abort()
                return
            if len(self._received) < at + 4 + length:
                break
            self._gateway.frame(bytes(self._received[at + 4 : at + 4 + length]))
            at += 4 + length
        del self._received[:at]
        self._gateway.settle()

    def _send(self, frame: bytes) -> None:
        """Queue a frame; all of one turn are written at once."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += (len(frame).to_bytes(4, "big"), frame)

    def _flush(self) -> None:
        frames, self._waiting = self._waiting, []
        if self._link is not None and self._link.get_write_buffer_size() < _MAX_WAITING:
            self._link.write(b"".join(frames))

    # ---- connections -------------------------------------------------------------------------------------------------

    def _connect(self, target: Target, port: int, connection: Connection) -> bool:
        if len(self._tasks) + len(self._upstreams) >= MAX_CONNECTIONS:
            return False
        task = self._loop.create_task(self._establish(target, port, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _establish(self, target: Target, port: int, connection: Connection) -> None:
        try:
            upstream = await asyncio.wait_for(self._reach(target, port, connection), _CONNECT)
        except (OSError, asyncio.TimeoutError) as cause:
            log.debug("network: %s:%d: %s", target, port, cause)
            connection.refuse()
            return
        if connection.closed:  # the guest has not waited
            upstream.abort()
        else:
            connection.accept(upstream)

    async def _reach(self, target: Target, port: int, connection: Connection) -> _Upstream:
        """Connect to the first address that answers.

        Raises:
            OSError: none does, or none may be connected to.
        """
        cause = OSError(f"{target} has no address that a name may lead to")
        for address in await self._addresses(target, port):
            try:
                _, upstream = await self._loop.create_connection(
                    lambda: _Upstream(connection, self._upstreams), str(address), port
                )
            except OSError as error:
                cause = error
            else:
                return upstream
        raise cause

    async def _addresses(self, target: Target, port: int) -> list[Address]:
        if isinstance(target, IPv4Address):
            return [target]
        async with self._lookups:
            addresses = await _look_up(self._loop, target, port)
        usable = [address for address in addresses if is_public(address) and not is_own(address)]
        if not usable:
            self._tell(target, addresses)
        return usable

    def _tell(self, name: str, addresses: list[Address]) -> None:
        """Say why a name that was allowed is not reached."""
        private = ", ".join(str(address) for address in addresses[:3])
        advice = "--allow with the address itself, if that is meant"
        self._told.say(logging.WARNING, f"network: {name} leads to {private}, which no name may; {advice}", name)


class _Upstream(asyncio.Protocol):
    """A connection to a host that was allowed; the far side of a guest's connection."""

    def __init__(self, connection: Connection, everyone: set[_Upstream]) -> None:
        self._connection = connection
        self._everyone = everyone
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BUFFER // 2, low=BUFFER // 4)
        self._everyone.add(self)

    def data_received(self, data: bytes) -> None:
        self._connection.data(data)

    def eof_received(self) -> bool:
        self._connection.end()
        return True  # the guest may still have something to say

    def connection_lost(self, _: Exception | None) -> None:
        self._everyone.discard(self)
        self._connection.refuse()  # unless it is over

    def resume_writing(self) -> None:
        self._connection.drained()

    # ---- imgkit.vm.net.tcp.Upstream ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def pause(self, *, paused: bool) -> None:
        if self._transport is not None:
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def room(self) -> int:
        return BUFFER if self._transport is None else BUFFER - self._transport.get_write_buffer_size()


async def _look_up(loop: asyncio.AbstractEventLoop, name: str, port: int) -> list[Address]:
    """The addresses of ``name``, in the order in which they are to be tried.

    The thread is a daemon: a resolver that does not answer must not hold the end of the program.

    Raises:
        OSError: it has none.
    """
    future: asyncio.Future[list[Address]] = loop.create_future()

    def settle(addresses: list[Address], error: OSError | None) -> None:
        if not future.done():
            future.set_result(addresses) if error is None else future.set_exception(error)

    def work() -> None:
        addresses, error = [], None
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            addresses = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
        except OSError as cause:
            error = cause
        except ValueError:  # UnicodeError: a label that no name has
            error = OSError(f"{name} is no name")
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=work, name="look up a name", daemon=True).start()
    return await future


def is_own(address: Address) -> bool:
    """Whether ``address`` is one of this host's own. Nothing is sent.

    A socket can be bound to no other, unless ``ip_nonlocal_bind`` is set (Linux, ip-sysctl). There IPv4 sockets can
    still not be connected from an address that is not the host's; and IPv6 chooses, for an address of the host's own,
    this very address to come from (RFC 6724, section 5, rule 1).
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_own(address.ipv4_mapped)
    if address.is_loopback or address.is_unspecified:
        return True
    if address.version == 4:
        return _source(address, address) is not None
    return _binds(address) and (not _binds(_NOBODYS) or _source(address) == str(address))


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _binds(address: Address) -> bool:
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _source(target: Address, source: Address | None = None) -> str | None:
    """The address that datagrams for ``target`` come from, which can be demanded; None if that cannot be."""
    try:
        with socket.socket(_family(target), socket.SOCK_DGRAM) as probe:
            if source is not None:
                probe.bind((str(source), 0))
            probe.connect((str(target), _DISCARD))
            return str(probe.getsockname()[0])
    except OSError:
        return None
