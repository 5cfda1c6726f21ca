"""The host's end of a TCP connection that a guest opened: it takes and returns segments, and does no input or output.

This is the part of RFC 9293 that is needed at the end of a link that keeps the order of frames and hardly ever loses
one. Connections are only accepted. A segment that arrives out of order is dropped, so that the guest sends it again. If
the guest acknowledges nothing for too long, everything from the oldest unacknowledged byte on is sent again. The guest
may be hostile: whatever it sends affects its own connection only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from imgkit.vm.net.packets import ACK, FIN, PSH, RST, SYN, TcpSegment

BUFFER = 128 << 10
"""Bytes that are buffered for the guest, and for the upstream. A single read may exceed it."""
_SHIFT = 2  # our window scale, with which BUFFER fits into 16 bits
_MSS = 1460  # bytes of data in a segment
_DEFAULT_MSS = 536  # of a guest that states none (RFC 9293, section 3.7.1)
_MIN_MSS = 64
_RETRANSMISSION_TIMEOUT = 0.5  # seconds; it doubles with every retransmission
_MAX_TIMEOUT = 8.0  # seconds
_MAX_RETRANSMISSIONS = 8
_MODULUS = 1 << 32  # of sequence numbers


class Upstream(Protocol):
    """The connection to the host that the guest talks to. No method raises."""

    def write(self, data: bytes) -> None:
        """Send data of the guest to the host."""

    def finish(self) -> None:
        """Tell the host that the guest will send no more data."""

    def abort(self) -> None:
        """Close the connection at once, because the guest has gone away."""

    def close(self) -> None:
        """Close the connection, which both sides have finished. Data that was written is still delivered."""

    def pause(self, *, paused: bool) -> None:
        """Stop or resume reading from the host."""

    def room(self) -> int:
        """Return the number of bytes that :meth:`write` takes now."""


@dataclass
class Timer:
    """The retransmission timer.

    Attributes:
        due: time of the next retransmission on the caller's clock, in seconds; None for never.
        wait: seconds from one transmission to the next.
        tries: number of retransmissions since the last progress.
    """

    due: float | None = None
    wait: float = _RETRANSMISSION_TIMEOUT
    tries: int = 0

    def progress(self, now: float, *, waiting: bool) -> None:
        """Start again, because the guest acknowledged something; ``waiting`` is whether anything is unacknowledged."""
        self.wait, self.tries = _RETRANSMISSION_TIMEOUT, 0
        self.due = now + self.wait if waiting else None

    def back_off(self, now: float) -> bool:
        """Double the timeout. Return False if there were too many retransmissions."""
        self.tries += 1
        self.wait = min(self.wait * 2, _MAX_TIMEOUT)
        self.due = now + self.wait
        return self.tries <= _MAX_RETRANSMISSIONS


class Connection:
    """A connection that begins with a SYN of the guest.

    The SYN is answered by :meth:`accept` or :meth:`refuse`, so that the guest sees whether the host could connect.

    Attributes:
        closed: whether the connection is over.
    """

    def __init__(self, syn: TcpSegment, send: Callable[[TcpSegment], None], clock: Callable[[], float]) -> None:
        """Begin a connection.

        Args:
            syn: the guest's first segment.
            send: sends a segment to the guest.
            clock: returns the time in seconds, which never decreases.
        """
        self.closed = False
        self._ports = (syn.target, syn.source)
        self._send = send
        self._clock = clock
        self._upstream: Upstream | None = None
        self._syn = syn.seq
        self._scales = syn.scale is not None  # whether the guest supports window scaling
        self._scale = (0, 0) if syn.scale is None else (_SHIFT, syn.scale)  # ours, the guest's
        self._mss = min(_MSS, max(syn.mss or _DEFAULT_MSS, _MIN_MSS))
        self._expected = (syn.seq + 1) % _MODULUS
        self._oldest = random.getrandbits(32)
        self._sent = 0  # number of bytes of _buffer that were sent; the FIN counts as a byte
        self._window = syn.window
        self._buffer = bytearray()  # data for the guest, from the oldest byte that it has not acknowledged
        self._upstream_ended = self._guest_ended = False
        self._end_acknowledged = False  # the guest has acknowledged our FIN
        self._established = False  # the guest has acknowledged our SYN
        self._timer = Timer()
        self._ack_pending = False

    # ---- events of the upstream --------------------------------------------------------------------------------------

    def accept(self, upstream: Upstream) -> None:
        """Accept the connection: ``upstream`` is connected to the host."""
        self._upstream = upstream
        self._send_syn()

    def refuse(self) -> None:
        """Reset the connection unless it is closed, because the host refused it or broke it off."""
        if not self.closed:
            self.closed = True
            self._emit(RST | ACK, self._next)

    def data(self, data: bytes) -> None:
        """Send data of the host to the guest."""
        self._buffer += data
        self.pump()
        self._limit_buffer()

    def end(self) -> None:
        """Tell the guest that the host will send no more data."""
        self._upstream_ended = True
        self.pump()

    def drained(self) -> None:
        """Announce the new window to the guest, because the upstream takes data again."""
        self._ack_pending = True
        self.flush()

    # ---- events of the guest -----------------------------------------------------------------------------------------

    def receive(self, segment: TcpSegment) -> None:
        """Handle a segment of the guest. It is acknowledged by :meth:`flush`."""
        if self.closed or self._upstream is None:
            if segment.flags & RST:
                self.closed = True
            return
        offset = (segment.seq - self._expected) % _MODULUS
        if segment.flags & RST:
            if offset <= BUFFER:
                self._abort()
        elif segment.flags & SYN:
            self._repeat_syn(segment)
        elif segment.flags & ACK and self._acknowledged(segment):
            self._take(segment, offset)
            self.pump()

    def flush(self) -> None:
        """Acknowledge everything that was received, and close the connection if both sides have finished."""
        if self.closed or self._upstream is None:
            return
        if self._ack_pending:
            self._emit(ACK, self._next)
        if self._end_acknowledged and self._guest_ended and not self._buffer:
            self.closed = True
            self._upstream.close()

    def tick(self) -> None:
        """Retransmit what the guest has not acknowledged in time."""
        now = self._clock()
        if self.closed or self._timer.due is None or now < self._timer.due:
            return
        if not self._timer.back_off(now):
            if self._upstream is not None:
                self._upstream.abort()
            self.refuse()
        elif not self._established:
            self._send_syn()
        else:
            self._sent = 0
            self.pump(probe=True)

    def pump(self, *, probe: bool = False) -> None:
        """Send what the guest's window has room for; ``probe`` sends at least one byte."""
        if not self._established or self.closed:
            return
        room = max(self._window, 1 if probe else 0)
        while self._sent < min(len(self._buffer), room):
            data = bytes(self._buffer[self._sent : min(self._sent + self._mss, room)])
            is_last = self._sent + len(data) == len(self._buffer)
            self._emit(ACK | (PSH if is_last else 0), self._next, data)
            self._sent += len(data)
        if self._upstream_ended and not self._end_acknowledged and self._sent == len(self._buffer):
            self._emit(FIN | ACK, self._next)
            self._sent += 1
        if self._timer.due is None and (self._sent or self._buffer):
            self._timer.progress(self._clock(), waiting=True)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    @property
    def _next(self) -> int:
        """The sequence number of the next byte that is sent."""
        return (self._oldest + self._sent) % _MODULUS

    def _send_syn(self) -> None:
        self._emit(SYN | ACK, self._oldest, scale=_SHIFT if self._scales else None, mss=_MSS)
        if self._timer.due is None:
            self._timer.progress(self._clock(), waiting=True)

    def _repeat_syn(self, segment: TcpSegment) -> None:
        """Handle a second SYN: the first one was not answered in time, or the guest opens another connection."""
        if segment.seq == self._syn and not self._established:
            self._send_syn()
        else:
            self._abort()

    def _acknowledged(self, segment: TcpSegment) -> bool:
        """Handle the acknowledgment of a segment. Return False if the segment cannot belong to this connection."""
        count = (segment.ack - self._oldest) % _MODULUS
        if not self._established:
            if count != 1:
                return False
            self._established, count = True, 0
            self._oldest = segment.ack
            self._timer.progress(self._clock(), waiting=False)
        if count > len(self._buffer) + (1 if self._upstream_ended and not self._end_acknowledged else 0):
            self._ack_pending = True
            return _MODULUS - count <= 4 * BUFFER  # a repeated segment, whose data is used, too
        self._set_window(segment.window << self._scale[1])
        if count:
            self._drop(count)
        return True

    def _set_window(self, window: int) -> None:
        """Set the guest's window. A closed window is probed for as long as the guest acknowledges the probes."""
        if not window:
            self._timer.tries = 0
        elif not self._window:
            self._sent = 0  # the guest did not take the byte of the probe
        self._window = window

    def _drop(self, count: int) -> None:
        """Drop acknowledged bytes from the buffer."""
        if count > len(self._buffer):
            self._end_acknowledged = True
        del self._buffer[:count]
        self._sent = max(0, self._sent - count)
        self._oldest = (self._oldest + count) % _MODULUS
        self._timer.progress(self._clock(), waiting=bool(self._sent or self._buffer))
        self._limit_buffer()

    def _take(self, segment: TcpSegment, offset: int) -> None:
        """Pass the data of a segment, and the end that it announces, to the upstream."""
        assert self._upstream is not None
        data, ends = segment.data, bool(segment.flags & FIN)
        if not data and not ends:
            return
        self._ack_pending = True
        if offset > _MODULUS // 2:  # it begins with data that was received before
            received = _MODULUS - offset
            if received > len(data):
                return
            data = data[received:]
        elif offset or self._guest_ended:
            return
        taken = data[: max(0, self._upstream.room())]
        if taken and not self._guest_ended:
            self._upstream.write(taken)
            self._expected = (self._expected + len(taken)) % _MODULUS
        if ends and len(taken) == len(data) and not self._guest_ended:
            self._guest_ended = True
            self._expected = (self._expected + 1) % _MODULUS
            self._upstream.finish()

    def _limit_buffer(self) -> None:
        """Stop reading from the host while the buffer is full."""
        if self._upstream is not None:
            self._upstream.pause(paused=len(self._buffer) > BUFFER)

    def _abort(self) -> None:
        """Close the connection, because the guest has gone away."""
        self.closed = True
        if self._upstream is not None:
            self._upstream.abort()

    def _emit(
        self, flags: int, seq: int, data: bytes = b"", *, scale: int | None = None, mss: int | None = None
    ) -> None:
        """Send a segment, which always acknowledges what was received."""
        self._ack_pending = False
        room = 0 if self._upstream is None else max(0, self._upstream.room())
        window = min(0xFFFF, room if flags & SYN else room >> self._scale[0])
        source, target = self._ports
        self._send(TcpSegment(source, target, seq, self._expected, flags, window, data, mss, scale))
