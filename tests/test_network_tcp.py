"""The host's end of a guest's TCP connection, against a guest that is played here: over a link that loses and repeats,
and against one that keeps to nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.vm.net.packets import ACK, FIN, PSH, RST, SYN, TcpSegment
from imgkit.vm.net.tcp import BUFFER, Connection, Timer

BIG = 1 << 32


@dataclass
class World:
    """The other side, and the segments that were sent to the guest."""

    said: bytearray = field(default_factory=bytearray)
    log: list[str] = field(default_factory=list)
    sent: list[TcpSegment] = field(default_factory=list)
    pauses: list[bool] = field(default_factory=list)
    now: float = 0.0
    space: int = BUFFER

    def write(self, data: bytes) -> None:
        assert len(data) <= self.space
        self.said += data

    def finish(self) -> None:
        self.log.append("finish")

    def abort(self) -> None:
        self.log.append("abort")

    def close(self) -> None:
        self.log.append("close")

    def pause(self, *, paused: bool) -> None:
        self.pauses.append(paused)

    def room(self) -> int:
        return self.space

    def opened(self, **syn: Any) -> Connection:
        values: dict[str, Any] = {"window": 60000, "mss": 1460, "scale": 7, **syn}
        connection = Connection(TcpSegment(40000, 443, 1000, 0, SYN, **values), self.sent.append, lambda: self.now)
        assert not self.sent, "nothing is said before the other side is there"
        connection.accept(self)
        (hello,) = self.sent
        assert (hello.flags, hello.ack) == (SYN | ACK, 1001)
        assert (hello.source, hello.target) == (443, 40000)
        self.sent.clear()
        self.start = hello.seq
        return connection

    def guest(self, flags: int = ACK, seq: int = 0, ack: int = 0, data: bytes = b"", window: int = 500) -> TcpSegment:
        """Return a segment of the guest; numbers count from the first byte."""
        return TcpSegment(40000, 443, (1001 + seq) % BIG, (self.start + 1 + ack) % BIG, flags, window, data)

    def talk(self, connection: Connection, *segments: TcpSegment) -> list[tuple[int, int, int, bytes]]:
        """Return what the guest is answered: flags, number and confirmation counted from the first byte, data."""
        for segment in segments:
            connection.receive(segment)
        connection.flush()
        answers = [
            (each.flags, (each.seq - self.start - 1) % BIG, (each.ack - 1001) % BIG, each.data) for each in self.sent
        ]
        self.sent.clear()
        return answers


def test_a_conversation() -> None:
    world = World()
    connection = world.opened()
    assert world.talk(connection, world.guest()) == []
    assert world.talk(connection, world.guest(data=b"hello ", flags=ACK | PSH), world.guest(seq=6, data=b"there")) == [
        (ACK, 0, 11, b"")
    ]
    assert world.said == b"hello there"
    connection.data(b"x" * 2000)
    assert world.talk(connection) == [(ACK, 0, 11, b"x" * 1460), (ACK | PSH, 1460, 11, b"x" * 540)]
    connection.end()
    assert world.talk(connection, world.guest(seq=11, ack=2000)) == [(FIN | ACK, 2000, 11, b"")]
    assert world.talk(connection, world.guest(seq=11, ack=2001, flags=ACK | FIN)) == [(ACK, 2001, 12, b"")]
    assert connection.closed
    assert world.log == ["finish", "close"]


def test_the_guest_ends_first_and_still_hears_the_answer() -> None:
    world = World()
    connection = world.opened()
    assert world.talk(connection, world.guest(), world.guest(flags=ACK | FIN, data=b"bye")) == [(ACK, 0, 4, b"")]
    connection.data(b"answer")
    connection.end()
    assert [each[:2] for each in world.talk(connection)] == [(ACK | PSH, 0), (FIN | ACK, 6)]
    assert world.talk(connection, world.guest(seq=4, ack=7)) == []
    assert connection.closed


def test_a_refused_connection_is_reset() -> None:
    sent: list[TcpSegment] = []
    connection = Connection(TcpSegment(1, 2, BIG - 1, 0, SYN, 100), sent.append, lambda: 0.0)
    connection.refuse()
    assert connection.closed
    assert [(each.flags, each.ack) for each in sent] == [(RST | ACK, 0)]
    connection.refuse()
    assert len(sent) == 1


def test_what_is_repeated_or_out_of_order_counts_once() -> None:
    world = World()
    connection = world.opened()
    pieces = [world.guest(data=b"abc"), world.guest(data=b"abc"), world.guest(seq=6, data=b"xxx")]
    pieces += [world.guest(seq=1, data=b"bcdef"), world.guest(seq=6, data=b"g")]
    assert world.talk(connection, *pieces) == [(ACK, 0, 7, b"")]
    assert world.said == b"abcdefg"


def test_resets_only_from_inside_the_window() -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest(), world.guest(flags=RST, seq=BUFFER * 2), world.guest(flags=RST, seq=-1))
    assert world.log == []
    world.talk(connection, world.guest(flags=RST))
    assert connection.closed
    assert world.log == ["abort"]


def test_no_more_than_there_is_room_for() -> None:
    world = World()
    connection = world.opened()
    world.space = 5
    assert world.talk(connection, world.guest(data=b"0123456789", flags=ACK | FIN)) == [(ACK, 0, 5, b"")]
    assert world.log == [], "the end has not come yet"
    world.space = 100
    connection.drained()
    assert [(each.window << 2) for each in world.sent] == [100]
    world.talk(connection, world.guest(seq=5, data=b"56789", flags=ACK | FIN))
    assert world.said == b"0123456789"
    assert world.log == ["finish"]


def test_the_guests_window_is_kept_and_probed() -> None:
    world = World()
    connection = world.opened(scale=None)
    world.talk(connection, world.guest(window=10))
    connection.data(b"x" * 30)
    assert [each[3] for each in world.talk(connection)] == [b"x" * 10]
    world.talk(connection, world.guest(ack=10, window=0))
    for _ in range(100):
        world.now += 10
        connection.tick()
        assert [each[3] for each in world.talk(connection, world.guest(ack=10, window=0))] == [b"x"]
    assert not connection.closed, "a guest that is there may take its time"
    assert [each[3] for each in world.talk(connection, world.guest(ack=10, window=20))] == [b"x" * 20]


def test_a_guest_that_is_gone_is_given_up() -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest())
    connection.data(b"x")
    for _ in range(20):
        world.now += 10
        connection.tick()
    assert connection.closed
    assert world.log == ["abort"]
    assert world.sent[-1].flags == RST | ACK
    assert len(world.sent) == 10


def test_an_unanswered_hello_is_repeated() -> None:
    world = World()
    connection = world.opened()
    world.now = 1
    connection.tick()
    assert [each.flags for each in world.sent] == [SYN | ACK]
    connection.receive(TcpSegment(40000, 443, 1000, 0, SYN, 60000))
    assert [each.flags for each in world.sent] == [SYN | ACK] * 2
    connection.receive(TcpSegment(40000, 443, 5000, 0, SYN, 60000))
    assert connection.closed, "another connection"


def test_the_other_side_is_braked() -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest(window=1))
    connection.data(bytes(BUFFER + 1))
    world.talk(connection, world.guest(window=1000, ack=100))
    assert world.pauses == [True, False]


@pytest.mark.parametrize(
    ("stated", "size"), [(None, 536), (0, 536), (10, 64), (63, 64), (64, 64), (65, 65), (1460, 1460), (9000, 1460)]
)
def test_the_size_of_segments_is_what_the_guest_takes(stated: int | None, size: int) -> None:
    """536 if it states none (RFC 9293, 3.7.1), at least 64, and what fits into a frame at most."""
    world = World()
    connection = world.opened(mss=stated)
    world.talk(connection, world.guest())
    connection.data(b"x" * 3000)
    assert [len(each[3]) for each in world.talk(connection)][:2] == [size, min(size, 3000 - size)]


@pytest.mark.parametrize(
    ("scale", "space", "hello", "later"),
    [
        (7, BUFFER, (0xFFFF, 2), 32768),
        (0, 1000, (1000, 2), 250),
        (None, BUFFER, (0xFFFF, None), 0xFFFF),
        (None, 1000, (1000, None), 1000),
        (7, -5, (0, 2), 0),
        (7, 0x40003, (0xFFFF, 2), 0xFFFF),
    ],
)
def test_the_window_that_the_guest_is_told(
    scale: int | None, space: int, hello: tuple[int, int | None], later: int
) -> None:
    """Not scaled in the first segment (RFC 7323, 2.2), and at all only if the guest can do it."""
    world = World(space=space)
    sent: list[TcpSegment] = []
    connection = Connection(TcpSegment(1, 2, 1000, 0, SYN, 9, scale=scale), sent.append, lambda: 0.0)
    connection.accept(world)
    assert (sent[0].window, sent[0].scale, sent[0].mss) == (*hello, 1460)
    connection.drained()
    assert (sent[1].window, sent[1].scale, sent[1].mss) == (later, None, None)


def test_the_guests_window_is_scaled_as_it_said() -> None:
    for scale, room in ((None, 3), (0, 3), (2, 12)):
        world = World()
        connection = world.opened(scale=scale)
        world.talk(connection, world.guest(window=3))
        connection.data(b"x" * 20)
        assert [len(each[3]) for each in world.talk(connection)] == [room]


def test_the_times_of_retransmissions() -> None:
    timer = Timer()
    assert (timer.due, timer.wait, timer.tries) == (None, 0.5, 0)
    timer.progress(100.0, waiting=True)
    assert timer.due == 100.5
    waits = []
    for number in range(1, 10):
        assert timer.back_off(200.0) is (number <= 8)
        assert timer.due is not None
        assert timer.tries == number
        waits.append(timer.due - 200.0)
    assert waits == [1, 2, 4, 8, 8, 8, 8, 8, 8]
    timer.progress(300.0, waiting=False)
    assert timer == Timer(None, 0.5, 0)


def test_a_retransmission_is_sent_when_it_is_due() -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest())
    connection.data(b"x")
    world.talk(connection)
    for now, sent in ((0.49, 0), (0.5, 1), (1.49, 0), (1.5, 1), (3.49, 0), (3.5, 1)):
        world.now = now
        connection.tick()
        assert len(world.sent) == sent, now
        world.sent.clear()
    world.talk(connection, world.guest(ack=1))
    world.now = 1000
    connection.tick()
    assert world.sent == [], "everything was acknowledged"


@pytest.mark.parametrize(("seq", "closed"), [(0, True), (BUFFER, True), (BUFFER + 1, False), (-1, False)])
def test_where_a_reset_counts(seq: int, closed: bool) -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest(), world.guest(flags=RST, seq=seq))
    assert connection.closed is closed


@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_a_guest_that_gives_up_before_the_host_is_connected(flags: int) -> None:
    sent: list[TcpSegment] = []
    connection = Connection(TcpSegment(1, 2, 1000, 0, SYN, 9), sent.append, lambda: 0.0)
    connection.receive(TcpSegment(1, 2, 1001, 0, ACK, 9))
    states = [connection.closed]
    connection.flush()
    connection.tick()
    connection.receive(TcpSegment(1, 2, 1001, 0, flags, 9))
    states.append(connection.closed)
    assert states == [False, True]
    connection.refuse()
    connection.data(b"x")
    connection.end()
    assert sent == []


def test_a_hello_is_repeated_until_the_guest_knows_of_it() -> None:
    """The same one after that is another connection, and an acknowledgment of anything else is none."""
    world = World()
    connection = world.opened()
    for ack in (-1, 1):
        connection.receive(world.guest(ack=ack, data=b"x"))
    connection.data(b"y")
    assert not world.sent, "it is not established"
    assert not world.said
    world.talk(connection, world.guest())
    connection.receive(TcpSegment(40000, 443, 1000, 0, SYN, 60000))
    assert (connection.closed, world.log) == (True, ["abort"])


def test_the_buffer_for_the_guest_may_be_just_full() -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest(window=0))
    connection.data(bytes(BUFFER))
    connection.data(b"x")
    assert world.pauses == [False, True]


def test_acknowledgments_of_what_was_never_sent_are_answered() -> None:
    """The answer says what is right; the data of such a segment is not used."""
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest())
    connection.data(b"abc")
    world.talk(connection)
    assert world.talk(connection, world.guest(ack=4, data=b"no")) == [(ACK, 3, 0, b"")]
    assert world.said == b""
    assert world.talk(connection, world.guest(ack=3, data=b"yes")) == [(ACK, 3, 3, b"")]
    assert world.talk(connection, world.guest(ack=1, seq=3, data=b"!")) == [(ACK, 3, 4, b"")], "an old one"
    assert world.said == b"yes!"
    connection.end()
    assert world.talk(connection, world.guest(ack=5, seq=4)) == [(FIN | ACK, 3, 4, b""), (ACK, 4, 4, b"")]
    assert world.talk(connection, world.guest(ack=4, seq=4)) == []
    assert world.talk(connection, world.guest(ack=5, seq=4)) == [(ACK, 4, 4, b"")]


@pytest.mark.parametrize(
    ("flags", "seq", "data", "said", "log"),
    [
        (ACK | FIN, 3, b"", b"abc", ["finish"]),
        (ACK | FIN, 0, b"abc", b"abc", ["finish"]),
        (ACK | FIN, 1, b"bcd", b"abcd", ["finish"]),
        (ACK | FIN, 0, b"ab", b"abc", []),
        (ACK | FIN, 4, b"", b"abc", []),
        (ACK | FIN, 4, b"e", b"abc", []),
        (ACK, 2, b"c", b"abc", []),
        (ACK, 0, b"abcd", b"abcd", []),
    ],
)
def test_segments_that_begin_earlier_or_later(flags: int, seq: int, data: bytes, said: bytes, log: list[str]) -> None:
    world = World()
    connection = world.opened()
    world.talk(connection, world.guest(), world.guest(data=b"abc"))
    answers = world.talk(connection, world.guest(flags=flags, seq=seq, data=data))
    assert answers == [(ACK, 0, len(said) + len(log), b"")]
    assert (bytes(world.said), world.log) == (said, log)
    if log:
        assert world.talk(connection, world.guest(seq=len(said), data=b"more")) == [(ACK, 0, len(said) + 1, b"")]
        assert (bytes(world.said), world.log) == (said, log), "nothing comes after the end"


class Peer:
    """A plain guest: takes what is in order, sends what it has, repeats from the oldest byte when asked to."""

    def __init__(self, world: World, text: bytes) -> None:
        self.world, self.text = world, text
        self.got = bytearray()
        self.confirmed = self.ended = False

    def hear(self, segment: TcpSegment) -> None:
        offset = (segment.seq - self.world.start - 1) % BIG
        if offset == len(self.got) and not self.ended:
            self.got += segment.data
            self.ended = bool(segment.flags & FIN)
        self.acked = (segment.ack - 1001) % BIG

    acked = 0

    def say(self) -> list[TcpSegment]:
        ack = len(self.got) + self.ended
        rest = self.text[self.acked :]
        pieces = [rest[at : at + 700] for at in range(0, len(rest), 700)]
        segments = [
            self.world.guest(seq=self.acked + 700 * number, ack=ack, data=piece, window=60)
            for number, piece in enumerate(pieces)
        ]
        if self.acked <= len(self.text):
            segments.append(self.world.guest(flags=ACK | FIN, seq=len(self.text), ack=ack, window=60))
        return [*segments, self.world.guest(seq=self.acked, ack=ack, window=60)]


@settings(max_examples=60)
@given(st.binary(max_size=6000), st.binary(max_size=30000), st.integers(0, 1 << 30), st.sampled_from([0, 0.1, 0.4]))
def test_everything_arrives_over_a_link_that_loses_and_mixes(up: bytes, down: bytes, seed: int, loss: float) -> None:
    chance = random.Random(seed)
    world = World()
    connection = world.opened()
    peer = Peer(world, up)
    connection.data(down)
    connection.end()
    for _ in range(400):
        world.now += 1
        connection.tick()
        segments = [each for each in peer.say() if chance.random() >= loss]
        if chance.random() < loss:
            chance.shuffle(segments)
        for segment in segments:
            connection.receive(segment)
        connection.flush()
        for answer in world.sent:
            if chance.random() >= loss:
                peer.hear(answer)
        world.sent.clear()
        if connection.closed:
            break
    assert connection.closed
    assert world.said == up
    assert world.log == ["finish", "close"]
    assert peer.got == down


NUMBERS = st.sampled_from([0, 1, 1000, 1001, 1002, 1101, BIG - 1, BIG // 2]) | st.integers(0, BIG - 1)
WILD = st.builds(
    TcpSegment,
    st.just(40000),
    st.just(443),
    NUMBERS,
    NUMBERS,
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.binary(max_size=200),
)


@pytest.mark.slow
@given(st.lists(st.tuples(WILD, st.booleans(), st.sampled_from(["", "data", "end", "tick", "drained"])), max_size=40))
def test_a_guest_that_keeps_to_nothing(steps: list[tuple[TcpSegment, bool, str]]) -> None:
    """Nothing is raised, and what is kept for it and said for it stays within bounds."""
    world = World()
    connection = world.opened()
    for segment, relative, action in steps:
        ack = (segment.ack + world.start) % BIG if relative else segment.ack
        connection.receive(replace(segment, ack=ack))
        if action == "data":
            connection.data(b"x" * 100)
        elif action == "end":
            connection.end()
        elif action == "drained":
            connection.drained()
        elif action == "tick":
            world.now += 1
            connection.tick()
        connection.flush()
        assert len(world.sent) <= 60
        world.sent.clear()
    assert len(world.said) <= 200 * len(steps)
    assert world.log.count("finish") <= 1
