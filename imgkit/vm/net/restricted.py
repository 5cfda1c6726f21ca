"""Run a restricted network: a thread that carries the connections of a guest to the hosts on its allowlist.

    with restricted.network(allowlist.parse(["registry.example:443"])) as descriptor:
        ...  # QEMU's -netdev socket,fd=DESCRIPTOR

QEMU's end of the link is a socket that carries Ethernet frames. QEMU itself opens no connections, and has no network
stack that the guest could reach. imgkit looks up the names, checks the addresses, and connects to the very addresses
that it has checked.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address

from imgkit.vm.net.allowlist import Address, Allowlist, is_public
from imgkit.vm.net.gateway import Gateway, RefusalLog, Target
from imgkit.vm.net.hostaddresses import is_own, look_up
from imgkit.vm.net.tcp import BUFFER, Connection

log = logging.getLogger("imgkit.vm")

MAX_CONNECTIONS = 128
"""Maximum number of connections of a guest, including those that are being established."""
_CONNECT_TIMEOUT = 20.0  # seconds for looking up a name and connecting
_MAX_LOOKUPS = 8  # at a time
_TICK = 0.1  # seconds
_JOIN_TIMEOUT = 5.0  # seconds for the thread to end
_MAX_FRAME = 1 << 16  # bytes
_MAX_WAITING = 4 << 20  # bytes of frames that the guest has not taken; further frames are dropped, as in any network


@contextmanager
def network(allowlist: Allowlist) -> Iterator[int]:
    """Run a network for one machine during the block. Yield the descriptor of QEMU's end of the link."""
    host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=_serve, args=(loop, stop, host, allowlist), name="restricted network", daemon=True)
    thread.start()
    try:
        yield guest.fileno()
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop.set)
        thread.join(_JOIN_TIMEOUT)
        guest.close()


def _serve(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, host: socket.socket, allowlist: Allowlist) -> None:
    """Run the event loop until ``stop``; the target of the thread."""
    try:
        loop.run_until_complete(_Relay(loop, allowlist).run(host, stop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        host.close()


class _Relay(asyncio.Protocol):
    """The link to QEMU, and the connections to the hosts that the guest talks to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, allowlist: Allowlist) -> None:
        self._loop = loop
        self._refusals = RefusalLog()
        self._gateway = Gateway(
            allowlist, send=self._send, connect=self._connect, clock=loop.time, refusals=self._refusals
        )
        self._link: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: list[bytes] = []
        self._upstreams: set[_Upstream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(_MAX_LOOKUPS)

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
        """Keep the transport of the link."""
        assert isinstance(transport, asyncio.Transport)
        self._link = transport

    def data_received(self, data: bytes) -> None:
        """Pass the complete frames to the gateway. Each follows its length in four bytes (QEMU's net/socket.c)."""
        self._received += data
        position = 0
        while len(self._received) - position >= 4:
            length = int.from_bytes(self._received[position : position + 4], "big")
            if length > _MAX_FRAME and self._link is not None:  # QEMU never sends that
                self._link.abort()
                return
            if len(self._received) < position + 4 + length:
                break
            self._gateway.receive(bytes(self._received[position + 4 : position + 4 + length]))
            position += 4 + length
        del self._received[:position]
        self._gateway.flush()

    def _send(self, frame: bytes) -> None:
        """Queue a frame. All frames of one turn of the event loop are written at once."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += (len(frame).to_bytes(4, "big"), frame)

    def _flush(self) -> None:
        """Write the queued frames, or drop them if the guest does not take its frames."""
        frames, self._waiting = self._waiting, []
        if self._link is not None and self._link.get_write_buffer_size() < _MAX_WAITING:
            self._link.write(b"".join(frames))

    # ---- connections -------------------------------------------------------------------------------------------------

    def _connect(self, target: Target, port: int, connection: Connection) -> bool:
        """Begin to connect to a target. Return False if there are too many connections."""
        if len(self._tasks) + len(self._upstreams) >= MAX_CONNECTIONS:
            return False
        task = self._loop.create_task(self._establish(target, port, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _establish(self, target: Target, port: int, connection: Connection) -> None:
        """Connect to a target, and accept or refuse the guest's connection."""
        try:
            upstream = await asyncio.wait_for(self._open_upstream(target, port, connection), _CONNECT_TIMEOUT)
        except (OSError, asyncio.TimeoutError) as cause:
            log.debug("network: %s:%d: %s", target, port, cause)
            connection.refuse()
            return
        if connection.closed:  # the guest has given up meanwhile
            upstream.abort()
        else:
            connection.accept(upstream)

    async def _open_upstream(self, target: Target, port: int, connection: Connection) -> _Upstream:
        """Connect to the first address of the target that accepts the connection.

        Raises:
            OSError: no address does, or the target has no address that may be connected to.
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
        """Return the addresses of a target that may be connected to, in the order in which to try them."""
        if isinstance(target, IPv4Address):
            return [target]
        async with self._lookups:
            addresses = await look_up(self._loop, target, port)
        usable = [address for address in addresses if is_public(address) and not is_own(address)]
        if not usable:
            self._log_private(target, addresses)
        return usable

    def _log_private(self, name: str, addresses: list[Address]) -> None:
        """Log why a name on the allowlist is not reached."""
        private = ", ".join(str(address) for address in addresses[:3])
        advice = "use --allow with the address itself if this is intended"
        self._refusals.log(logging.WARNING, f"network: {name} leads to {private}, which is not allowed; {advice}", name)


class _Upstream(asyncio.Protocol):
    """A connection to a host on the allowlist, for one connection of the guest."""

    def __init__(self, connection: Connection, upstreams: set[_Upstream]) -> None:
        """Serve the guest's ``connection``; while it is connected, the object is in the set ``upstreams``."""
        self._connection = connection
        self._upstreams = upstreams
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the connection, and limit its buffer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BUFFER // 2, low=BUFFER // 4)
        self._upstreams.add(self)

    def data_received(self, data: bytes) -> None:
        """Pass data of the host to the guest."""
        self._connection.data(data)

    def eof_received(self) -> bool:
        """Tell the guest that the host has finished. The guest may still send data."""
        self._connection.end()
        return True  # keep the transport open for writing

    def connection_lost(self, _: Exception | None) -> None:
        """Reset the guest's connection unless it is over."""
        self._upstreams.discard(self)
        self._connection.refuse()

    def resume_writing(self) -> None:
        """Tell the guest that the host takes data again."""
        self._connection.drained()

    # ---- imgkit.vm.net.tcp.Upstream ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send data of the guest to the host."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Tell the host that the guest will send no more data."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection after its data was sent."""
        if self._transport is not None:
            self._transport.close()

    def pause(self, *, paused: bool) -> None:
        """Stop or resume reading from the host."""
        if self._transport is not None:
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def room(self) -> int:
        """Return the number of bytes that the buffer has room for."""
        return BUFFER if self._transport is None else BUFFER - self._transport.get_write_buffer_size()
