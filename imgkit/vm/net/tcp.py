"""The host's end of one TCP connection that a guest opened: segments in, segments out, without input or output.

The little of RFC 9293 that is needed where the other end is a machine of one's own, at the end of a link that keeps the
order and hardly ever loses anything: connections are only accepted, what comes out of order is dropped for the guest to
send again, and when the guest is silent for too long everything from the oldest byte on is sent anew. The guest may be
hostile: its window, its numbers and its patience change nothing but its own connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from imgkit.vm.net.packets import ACK, FIN, PSH, RST, SYN, TcpSegment

BUFFER = 128 << 10
"""Bytes that are kept for the guest, and as many for the other side. A read may go over it once."""
_SHIFT = 2  # our window scale: BUFFER must fit into 16 bits with it
_MSS = 1460
_RTO = 0.5  # seconds; doubled every time
_TRIES = 8
_MODULUS = 1 << 32


class Upstream(Protocol):
    """The other side: whom the guest talks to."""

    def write(self, data: bytes) -> None:
        """The guest said this."""

    def finish(self) -> None:
        """The guest will say no more."""

    def abort(self) -> None:
        """The guest has gone away."""

    def close(self) -> None:
        """Both have said all; what was written is still delivered."""

    def pause(self, *, paused: bool) -> None:
        """Whether the guest is to be told no more for the moment."""

    def room(self) -> int:
        """How many bytes :meth:`write` takes now."""


@dataclass
class Timer:
    """When something is sent again. ``due`` is in seconds on the caller's clock, None for never."""

    due: float | None = None
    wait: float = _RTO
    tries: int = 0

    def progress(self, now: float, *, waiting: bool) -> None:
        """The guest got something new."""
        self.wait, self.tries = _RTO, 0
        self.due = now + self.wait if waiting else None

    def again(self, now: float) -> bool:
        """Wait longer this time; False if it has been tried often enough."""
        self.tries += 1
        self.wait = min(self.wait * 2, 8.0)
        self.due = now + self.wait
        return self.tries <= _TRIES


class Connection:
    """One connection, from the guest's SYN on. ``closed`` is True when nothing more can happen.

    It answers nothing before :meth:`accept`, so that the guest is refused what the host is refused.
    """

    def __init__(self, syn: TcpSegment, send: Callable[[TcpSegment], None], clock: Callable[[], float]) -> None:
        self.closed = False
        self._ports = (syn.target, syn.source)
        self._send = send
        self._clock = clock
        self._far: Upstream | None = None
        self._syn = syn.seq
        self._scale = (0, 0) if syn.scale is None else (_SHIFT, syn.scale)  # ours, the guest's
        self._scaled = syn.scale is not None
        self._mss = min(_MSS, max(syn.mss or 536, 64))
        self._expected = (syn.seq + 1) % _MODULUS
        self._oldest = random.getrandbits(32)
        self._sent = 0  # how many bytes of _kept are on their way; the SYN and the FIN count, too
        self._window = syn.window
        self._kept = bytearray()  # from the oldest byte that the guest has not confirmed
        self._ended = self._guest_ended = False
        self._finished = False  # the guest has confirmed our end
        self._open = False  # the guest has confirmed our SYN
        self._timer = Timer()
        self._owes = False

    # ---- what the other side does ------------------------------------------------------------------------------------

    def accept(self, far: Upstream) -> None:
        """The other side is there."""
        self._far = far
        self._hello()

    def refuse(self) -> None:
        """The other side is not there, or has gone away without an end."""
        if not self.closed:
            self.closed = True
            self._emit(RST | ACK, self._next)

    def data(self, data: bytes) -> None:
        """The other side said this."""
        self._kept += data
        self.pump()
        self._brake()

    def end(self) -> None:
        """The other side will say no more."""
        self._ended = True
        self.pump()

    def drained(self) -> None:
        """The other side takes more again."""
        self._owes = True
        self.settle()

    # ---- what the guest does -----------------------------------------------------------------------------------------

    def segment(self, segment: TcpSegment) -> None:
        """The guest sent this. Confirmations are put off until :meth:`settle`."""
        if self.closed or self._far is None:
            if segment.flags & RST:
                self.closed = True
            return
        offset = (segment.seq - self._expected) % _MODULUS
        if segment.flags & RST:
            if offset <= BUFFER:
                self._gone()
        elif segment.flags & SYN:
            self._again(segment)
        elif segment.flags & ACK and self._confirm(segment):
            self._take(segment, offset)
            self.pump()

    def settle(self) -> None:
        """Confirm what has come, once for all of it."""
        if self.closed or self._far is None:
            return
        if self._owes:
            self._emit(ACK, self._next)
        if self._finished and self._guest_ended and not self._kept:
            self.closed = True
            self._far.close()

    def tick(self) -> None:
        """Send again what the guest has not confirmed for too long."""
        now = self._clock()
        if self.closed or self._timer.due is None or now < self._timer.due:
            return
        if not self._timer.again(now):
            if self._far is not None:
                self._far.abort()
            self.refuse()
        elif not self._open:
            self._hello()
        else:
            self._sent = 0
            self.pump(probe=True)

    def pump(self, *, probe: bool = False) -> None:
        """Send what the guest's window has room for; ``probe`` sends one byte at least."""
        if not self._open or self.closed:
            return
        room = max(self._window, 1 if probe else 0)
        while self._sent < min(len(self._kept), room):
            piece = bytes(self._kept[self._sent : min(self._sent + self._mss, room)])
            last = self._sent + len(piece) == len(self._kept)
            self._emit(ACK | (PSH if last else 0), self._next, piece)
            self._sent += len(piece)
        if self._ended and not self._finished and self._sent == len(self._kept):
            self._emit(FIN | ACK, self._next)
            self._sent += 1
        if self._timer.due is None and (self._sent or self._kept):
            self._timer.progress(self._clock(), waiting=True)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _next(self) -> int:
        return (self._oldest + self._sent) % _MODULUS

    def _hello(self) -> None:
        self._emit(SYN | ACK, self._oldest, scale=_SHIFT if self._scaled else None, mss=_MSS)
        if self._timer.due is None:
            self._timer.progress(self._clock(), waiting=True)

    def _again(self, segment: TcpSegment) -> None:
        """A second SYN: the first one was not answered in time, or it is another connection's."""
        if segment.seq == self._syn and not self._open:
            self._hello()
        else:
            self._gone()

    def _confirm(self, segment: TcpSegment) -> bool:
        """Take the guest's confirmation. False for a segment that cannot be of this connection."""
        confirmed = (segment.ack - self._oldest) % _MODULUS
        if not self._open:
            if confirmed != 1:
                return False
            self._open, confirmed = True, 0
            self._oldest = segment.ack
            self._timer.progress(self._clock(), waiting=False)
        if confirmed > len(self._kept) + (1 if self._ended and not self._finished else 0):
            self._owes = True
            return _MODULUS - confirmed <= 4 * BUFFER  # a repeated segment: its data counts as well
        self._widen(segment.window << self._scale[1])
        if confirmed:
            self._forget(confirmed)
        return True

    def _widen(self, window: int) -> None:
        """The guest's window. One that is closed may stay so for as long as the guest says so."""
        if not window:
            self._timer.tries = 0
        elif not self._window:
            self._sent = 0  # the byte that probed it was not taken
        self._window = window

    def _forget(self, confirmed: int) -> None:
        if confirmed > len(self._kept):
            self._finished = True
        del self._kept[:confirmed]
        self._sent = max(0, self._sent - confirmed)
        self._oldest = (self._oldest + confirmed) % _MODULUS
        self._timer.progress(self._clock(), waiting=bool(self._sent or self._kept))
        self._brake()

    def _take(self, segment: TcpSegment, offset: int) -> None:
        """The data and the end that a segment carries."""
        assert self._far is not None
        data, ends = segment.data, bool(segment.flags & FIN)
        if not data and not ends:
            return
        self._owes = True
        if offset > _MODULUS // 2:  # it begins with what was sent before
            known = _MODULUS - offset
            if known > len(data):
                return
            data = data[known:]
        elif offset or self._guest_ended:
            return
        taken = data[: max(0, self._far.room())]
        if taken and not self._guest_ended:
            self._far.write(taken)
            self._expected = (self._expected + len(taken)) % _MODULUS
        if ends and len(taken) == len(data) and not self._guest_ended:
            self._guest_ended = True
            self._expected = (self._expected + 1) % _MODULUS
            self._far.finish()

    def _brake(self) -> None:
        if self._far is not None:
            self._far.pause(paused=len(self._kept) > BUFFER)

    def _gone(self) -> None:
        self.closed = True
        if self._far is not None:
            self._far.abort()

    def _emit(
        self, flags: int, seq: int, data: bytes = b"", *, scale: int | None = None, mss: int | None = None
    ) -> None:
        self._owes = False
        room = 0 if self._far is None else max(0, self._far.room())
        window = min(0xFFFF, room if flags & SYN else room >> self._scale[0])
        own, guests = self._ports
        self._send(TcpSegment(own, guests, seq, self._expected, flags, window, data, mss, scale))
