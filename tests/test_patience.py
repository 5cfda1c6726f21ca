"""How long a download may take, by a clock that the test turns; how its work is waited for; the pool of downloads."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from imgkit.fetch.deadline import CancelledError, Deadline, ExpiredError, within
from imgkit.fetch.pool import Meter, in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("imgkit.fetch.deadline.time", clock)
    return clock


# ---- the deadline ---------------------------------------------------------------------------------------------------


def test_a_deadline_comes_nearer(clock: Clock) -> None:
    deadline = Deadline(10, rate=100)
    assert (deadline.left(), deadline.began, deadline.passed) == (10, False, False)
    clock.now += 4
    assert deadline.left() == 6
    clock.now += 7
    assert deadline.left() == -1


def test_bytes_move_a_deadline_at_their_rate_but_no_further_than_the_timeout(clock: Clock) -> None:
    deadline = Deadline(10, rate=100)
    clock.now += 4
    deadline.received(200)
    assert deadline.began
    assert deadline.left() == 8
    deadline.received(100_000)
    assert deadline.left() == 10
    clock.now += 3
    assert deadline.left() == 7


def test_the_time_to_connect_does_not_count_as_far_as_the_allowance_goes(clock: Clock) -> None:
    deadline = Deadline(10, rate=100, connect_allowance=5)
    with deadline.connecting():
        clock.now += 3
        assert deadline.left() == 10
        clock.now += 4
        assert deadline.left() == 8
    assert deadline.left() == 8
    with deadline.connecting():
        clock.now += 2
        assert deadline.left() == 6
    assert deadline.left() == 6


def test_several_connections_share_the_allowance(clock: Clock) -> None:
    deadline = Deadline(10, rate=100, connect_allowance=5)
    for seconds, left in ((2, 10), (2, 10), (2, 9)):
        with deadline.connecting():
            clock.now += seconds
        assert deadline.left() == left


def test_without_an_allowance_the_time_to_connect_counts(clock: Clock) -> None:
    deadline = Deadline(10, rate=100)
    with deadline.connecting():
        clock.now += 4
        assert deadline.left() == 6
    assert deadline.left() == 6


def test_a_connection_that_fails_is_over(clock: Clock) -> None:
    deadline = Deadline(10, rate=100, connect_allowance=5)

    def fail() -> None:
        with deadline.connecting():
            clock.now += 1
            raise OSError("x")

    with pytest.raises(OSError, match="x"):
        fail()
    clock.now += 1
    assert deadline.left() == 9


# ---- waiting for work -----------------------------------------------------------------------------------------------


class Work:
    """Work that goes on until it is cut, and a little longer."""

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.cut = threading.Event()
        self.daemon = self.ended = False
        self._during = during

    def __call__(self) -> str:
        self._during()
        self.cut.wait(2)
        time.sleep(0.02)
        self.ended = True
        return "late"


def test_the_result_of_work_is_returned_and_nothing_is_cut() -> None:
    deadline, cut = Deadline(5, rate=1), threading.Event()
    assert within(deadline, lambda: "done", cancelled=threading.Event(), cut=cut.set) == "done"
    assert not cut.is_set()
    assert not deadline.passed


def test_work_that_takes_most_of_its_time_is_in_time() -> None:
    deadline = Deadline(0.9, rate=1)
    work = SimpleNamespace(seen=threading.Event())
    assert within(deadline, lambda: work.seen.wait(0.05), cancelled=threading.Event(), cut=work.seen.set) is False


def test_the_thread_of_work_does_not_keep_the_program_alive() -> None:
    seen: list[bool] = []
    within(
        Deadline(5, rate=1),
        lambda: seen.append(threading.current_thread().daemon),
        cancelled=threading.Event(),
        cut=lambda: None,
    )
    assert seen == [True]


def test_work_is_cut_at_the_deadline_and_waited_for() -> None:
    deadline, work = Deadline(0.02, rate=1), Work()
    with pytest.raises(ExpiredError):
        within(deadline, work, cancelled=threading.Event(), cut=work.cut.set)
    assert deadline.passed
    assert work.ended


def test_work_that_is_no_longer_needed_is_cut() -> None:
    deadline, cancelled = Deadline(5, rate=1), threading.Event()
    work = Work(cancelled.set)
    with pytest.raises(CancelledError):
        within(deadline, work, cancelled=cancelled, cut=work.cut.set)
    assert deadline.passed
    assert work.ended


def test_work_that_is_not_needed_does_not_begin() -> None:
    cancelled, deadline, began = threading.Event(), Deadline(5, rate=1), threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        within(deadline, began.set, cancelled=cancelled, cut=lambda: None)
    assert not began.is_set()
    assert not deadline.passed


# ---- the pool -------------------------------------------------------------------------------------------------------


def test_a_meter_grows_by_what_is_expected_and_counts_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = SimpleNamespace(total=None, came=[], closed=0)
    bar.update = bar.came.append
    bar.close = lambda: setattr(bar, "closed", bar.closed + 1)

    def make(total: int, description: str) -> Any:
        assert description == "downloading"
        bar.total = total
        return bar

    monkeypatch.setattr("imgkit.host.progress.bar", make)
    with Meter("downloading") as meter:
        assert bar.total == 0
        meter.expect(5)
        meter.expect(0)
        meter.expect(7)
        assert bar.total == 12
        bar.total = None
        meter.expect(3)
        assert bar.total == 3
        meter.advance(4)
        meter.advance(-4)
        assert bar.came == [4, -4]
        assert not bar.closed
    assert bar.closed == 1


def test_the_threads_of_a_pool_do_not_keep_the_program_alive() -> None:
    assert in_parallel([lambda stop: threading.current_thread().daemon], workers=1) == [True]


def test_a_pool_whose_threads_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread(threading.Thread):
        started = 0

        def start(self) -> None:
            Thread.started += 1
            if Thread.started > 1:
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr("imgkit.fetch.pool.threading.Thread", Thread)
    ended: list[bool] = []

    def job(stop: threading.Event) -> None:
        ended.append(stop.wait(2))

    with pytest.raises(RuntimeError, match="can't start new thread"):
        in_parallel([job, job], workers=2)
    assert ended == [True], "the one that had begun was told to stop, and was waited for"


def test_no_job_begins_once_the_others_are_told_to_stop() -> None:
    begun: list[int] = []

    def fails(stop: threading.Event) -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        in_parallel([fails, lambda stop: stop.wait(2), lambda stop: begun.append(1)], workers=1)
    assert begun == []
