"""The host's end of a session: output that is never waited for, input that never waits, and the end."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from imgkit.errors import GuestError
from imgkit.vm.sessions import guestsession
from imgkit.vm.sessions.guestsession import GuestSession, SessionEnd, start_message
from tests.sessions import FakeSession, open_descriptors


@pytest.fixture
def guest() -> Iterator[FakeSession]:
    fake = FakeSession()
    yield fake
    fake.close()


@pytest.fixture
def session(guest: FakeSession) -> Iterator[GuestSession]:
    with closing(guest.session()) as session:
        yield session


def is_over(session: GuestSession) -> bool:
    """Return ``session.over``, which mypy does not expect to change."""
    return session.over


def holds_input(session: GuestSession) -> bool:
    return session.holds_input


def read_all(session: GuestSession, count: int) -> bytes:
    data = b""
    deadline = time.monotonic() + 20
    while len(data) < count and time.monotonic() < deadline:
        data += session.read(1.0)
    return data


def test_what_the_guest_shows_and_what_is_typed(guest: FakeSession, session: GuestSession) -> None:
    guest.shows(b"login: \xc3\xa4")
    assert read_all(session, 9) == b"login: \xc3\xa4"
    session.write(b"\x03")
    assert guest.typed() == b"\x03"
    assert session.read(0.01) == b""
    session.resize(101, 33)
    assert guest.heard() == [{"type": "resize", "columns": 101, "rows": 33}]
    assert not session.over


def test_what_is_typed_before_the_program_runs_waits_for_it() -> None:
    """Until then agentd opens and closes the console, and the kernel throws away what was typed."""
    guest = FakeSession(started=False)
    with closing(guest.session()) as session:
        session.write(b"stty size; ")
        session.write(b"exit 3\r")
        assert select.select([guest.guest_in], [], [], 0.2)[0] == []
        assert session.holds_input
        guest.says(type="started")
        assert select.select([guest.guest_in], [], [], 20)[0] == [guest.guest_in]
        assert guest.typed() == b"stty size; exit 3\r"
        session.write(b"more")
        assert guest.typed() == b"more"
    guest.close()


def test_all_output_comes_before_the_end(guest: FakeSession, session: GuestSession) -> None:
    guest.says(type="started")
    text = b"x" * 60_000
    guest.shows(text)
    guest.says(type="exit", exitCode=7, signal=None)
    assert session.wait(20) == SessionEnd(7, None)
    assert not is_over(session), "there is output to take"
    assert read_all(session, len(text)) == text
    assert is_over(session)
    assert session.read(5) == b"", "the end is not waited for again"


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ({"exitCode": 0, "signal": None}, SessionEnd(0, None)),
        ({"exitCode": 255}, SessionEnd(255, None)),
        ({"exitCode": None, "signal": "SIGKILL"}, SessionEnd(None, "SIGKILL")),
        ({"exitCode": 256}, SessionEnd(1, None)),
        ({"exitCode": -1}, SessionEnd(1, None)),
        ({"exitCode": True}, SessionEnd(1, None)),
        ({"exitCode": "0", "signal": 9}, SessionEnd(1, None)),
        ({}, SessionEnd(1, None)),
    ],
)
def test_ends(guest: FakeSession, session: GuestSession, message: dict[str, Any], end: SessionEnd) -> None:
    guest.says(type="exit", **message)
    assert session.wait(20) == end


def test_a_refusal_of_the_guest(guest: FakeSession, session: GuestSession) -> None:
    guest.port.sendall(b'nonsense\n[1]\n{"type":"what"}\n')
    guest.says(type="error", message="command not found: x")
    with pytest.raises(GuestError, match=r"^command not found: x$"):
        session.wait(20)


def test_a_machine_that_is_gone(guest: FakeSession, session: GuestSession) -> None:
    guest.shows(b"last words")
    guest.unplug()
    with pytest.raises(GuestError, match=r"^the terminal is gone, and the machine with it$"):
        session.wait(20)
    assert read_all(session, 10) == b"last words"
    session.write(b"into the void")
    session.resize(10, 10)


def test_a_program_that_does_not_end_in_time(session: GuestSession) -> None:
    with pytest.raises(GuestError, match=r"did not end within 0\.01 s$"):
        session.wait(0.01)


def test_a_guest_that_sends_a_message_without_end_is_left(guest: FakeSession, session: GuestSession) -> None:
    guest.port.sendall(b"x" * 70_000)
    with pytest.raises(GuestError, match="is gone"):
        session.wait(20)


def test_output_that_nobody_takes_is_bounded(
    guest: FakeSession, session: GuestSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guestsession, "MAX_KEPT", 100_000)
    total = 1_000_000
    for number in range(total // 10_000):
        guest.shows(b"%09d\n" % number * 1000)
    guest.says(type="exit", exitCode=0)
    session.wait(20)
    data = session.take()
    note, _, kept = data.lstrip().partition(b"\r\n")
    dropped = int(note.split()[1])
    assert note == b"[imgkit: %d bytes of output were dropped here]" % dropped
    assert dropped + len(kept) == total
    assert 0 < len(kept) <= 100_000
    assert kept.endswith(b"%09d\n" % 99), "the newest is kept"
    assert session.take() == b""


def test_a_guest_that_reads_nothing_holds_up_nobody(
    guest: FakeSession, session: GuestSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guestsession, "MAX_TYPED", 200_000)
    session.write(b"a" * 300_000)
    assert holds_input(session)
    received = b""
    while holds_input(session):
        received += guest.typed(65536)
        session.write(b"")
    os.set_blocking(guest.guest_in, False)
    received += guest.typed(65536)
    assert received == b"a" * 200_000, "more is dropped, as on a terminal"


def test_the_descriptor_wakes_for_output_and_for_the_end(guest: FakeSession, session: GuestSession) -> None:
    assert select.select([session.fileno()], [], [], 0)[0] == []
    guest.shows(b"x")
    assert select.select([session.fileno()], [], [], 20)[0] == [session.fileno()]
    assert session.take() == b"x"
    assert select.select([session.fileno()], [], [], 0)[0] == []
    guest.says(type="exit", exitCode=0)
    for _ in range(3):
        assert select.select([session.fileno()], [], [], 20)[0] == [session.fileno()], "it stays so"
        assert session.take() == b""


def test_closing_leaves_no_descriptor_and_no_thread() -> None:
    before = open_descriptors()
    fake = FakeSession()
    fake.session().close()
    fake.close()
    assert open_descriptors() == before


def test_the_first_message() -> None:
    assert start_message(None, root=True, columns=80, rows=24) == {
        "type": "start",
        "root": True,
        "columns": 80,
        "rows": 24,
    }
    full = start_message(["vi"], root=False, columns=1, rows=2, env={"TERM": "x"}, cwd="/w", mounts={})
    extra = {"command": ["vi"], "env": {"TERM": "x"}, "cwd": "/w", "mounts": {}}
    assert full == {"type": "start", "root": False, "columns": 1, "rows": 2, **extra}
