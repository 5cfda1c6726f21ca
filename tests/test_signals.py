"""What a signal does at each moment of the command line. No signal is sent here: the handler is called as Python would.

Real signals at every step of real commands are in test_interrupts.py.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from imgkit.host import interrupts
from imgkit.host.interrupts import SIGNALS

Handlers = dict[signal.Signals, object]


def handlers() -> Handlers:
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.fixture(autouse=True)
def restored() -> Iterator[Handlers]:
    """Begin with handlers of which none is ignored, check that a test leaves them like that, and restore our own.

    Our own parent may ignore signals, as nohup(1) does.
    """
    ours = handlers()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    before = handlers()
    try:
        yield before
        assert handlers() == before
        assert (interrupts._handler.held, interrupts._handler.pending) == (False, False)
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        interrupts._handler.held = interrupts._handler.pending = False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time, which tests move."""
    time = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def arrives() -> None:
    """Do what Python does when a signal arrives: call its handler."""
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler), handler
    handler(signal.SIGTERM, None)


def in_a_thread(action: Callable[[], object]) -> None:
    """Run ``action`` in a thread, and raise here what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


def test_the_signals_that_end_a_program() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def test_a_signal_raises_in_the_block(restored: Handlers) -> None:
    with interrupts.raised():
        assert handlers() == dict.fromkeys(SIGNALS, interrupts._handler)
        with pytest.raises(KeyboardInterrupt):
            arrives()
    assert handlers() == restored
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        arrives()
    assert handlers() == restored


def test_a_new_handler_raises_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupts._Handler()(signal.SIGINT, None)


def test_what_the_parent_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.raised():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is interrupts._handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_further_signals_do_nothing_for_fifteen_seconds(clock: list[float]) -> None:
    with interrupts.raised():
        with pytest.raises(KeyboardInterrupt):
            arrives()
        clock[0] += 14.9
        arrives()
        clock[0] += 0.1
        with pytest.raises(KeyboardInterrupt):
            arrives()
        arrives()
    with interrupts.raised(), pytest.raises(KeyboardInterrupt):
        arrives()  # of another block, however early


def test_a_signal_in_a_few_quick_steps_raises_at_their_end() -> None:
    steps = []

    def work() -> None:
        with interrupts.held_back():
            arrives()
            steps.append("held")
        steps.append("never")

    with interrupts.raised(), pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["held"]


def test_a_failure_of_the_steps_comes_first_and_the_signal_later() -> None:
    def fail() -> None:
        arrives()
        raise ZeroDivisionError

    with interrupts.raised():
        with pytest.raises(ZeroDivisionError), interrupts.held_back():
            fail()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()


def test_steps_within_steps_raise_at_the_outer_end() -> None:
    def steps() -> None:
        with interrupts.held_back():
            arrives()
        assert interrupts._handler.pending

    with interrupts.raised(), pytest.raises(KeyboardInterrupt), interrupts.held_back():
        steps()


def test_a_postponed_signal_waits_for_the_check() -> None:
    with interrupts.raised():
        with interrupts.postponed():
            arrives()
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        assert not interrupts._handler.pending
    interrupts.check()


def test_signals_are_for_the_main_thread_only(restored: Handlers) -> None:
    def elsewhere() -> None:
        with interrupts.raised():
            assert handlers() == restored
        interrupts.ignore()
        assert handlers() == restored

    in_a_thread(elsewhere)
    with interrupts.raised():
        with interrupts.postponed():
            arrives()

        def other() -> None:
            interrupts.check()
            with interrupts.postponed():
                assert not interrupts._handler.held

        in_a_thread(other)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_the_result_of_the_work_and_what_follows(restored: Handlers) -> None:
    steps: list[str] = []

    def ignoring(step: str) -> str:
        assert handlers() == dict.fromkeys(SIGNALS, signal.SIG_IGN)
        steps.append(step)
        return step

    def work() -> str:
        assert handlers() == dict.fromkeys(SIGNALS, interrupts._handler)
        steps.append("work")
        return "done"

    assert interrupts.run(work, interrupted=lambda: "no", clean_up=lambda: ignoring("clean")) == "done"
    assert steps == ["work", "clean"]
    assert handlers() == restored

    def stopped() -> str:
        arrives()
        return "done"

    steps.clear()
    result = interrupts.run(stopped, interrupted=lambda: ignoring("stop"), clean_up=lambda: ignoring("clean"))
    assert (result, steps) == ("stop", ["stop", "clean"])


def test_a_signal_that_comes_before_the_work_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    release = interrupts._release

    def late() -> None:
        arrives()  # while signals are still held back
        release()

    monkeypatch.setattr(interrupts, "_release", late)
    result = interrupts.run(lambda: "work", interrupted=lambda: "stopped", clean_up=lambda: None)
    assert result == "stopped"


def test_what_was_pending_before_is_forgotten() -> None:
    interrupts._handler.pending = True
    with interrupts.raised():
        interrupts.check()


def test_a_handler_that_python_does_not_know_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """``signal.getsignal`` returns None for a handler that was not set from Python."""
    installed: list[tuple[int, object]] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append((number, handler)))
    with interrupts.raised():
        assert installed == [(number, interrupts._handler) for number in SIGNALS]
        installed.clear()
    assert installed == [(number, signal.SIG_DFL) for number in SIGNALS]


def test_a_signal_ends_the_process_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    previous = handlers()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupts.exit_on_signals(130)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with monkeypatch.context() as patch:
            patch.setattr(os, "_exit", ended.append)
            arrives()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
    assert ended == [130]


def chained(depth: int, last: BaseException, link: str) -> BaseException:
    """Return an error with ``depth`` others between it and ``last``."""
    error = last
    for _ in range(depth + 1):
        outer = ValueError()
        setattr(outer, link, error)
        error = outer
    return error


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
@pytest.mark.parametrize("depth", [0, 1, 48])
def test_an_interrupt_is_preferred_to_what_it_caused(link: str, depth: int) -> None:
    error = chained(depth, KeyboardInterrupt(), link)
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupts.prefer(error)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [ValueError(), chained(3, ValueError(), "__cause__"), chained(100, KeyboardInterrupt(), "__cause__")]
)
def test_other_errors_are_left_as_they_are(error: BaseException) -> None:
    interrupts.prefer(error)


def test_a_cause_counts_more_than_a_context() -> None:
    error = ValueError()
    error.__context__ = KeyboardInterrupt()
    error.__cause__ = ValueError()
    interrupts.prefer(error)


def test_a_chain_may_be_a_circle() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    interrupts.prefer(first)
