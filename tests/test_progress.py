"""Steps and bars."""

from __future__ import annotations

import gc
import io
import logging
import signal
import sys
from typing import Any

import pytest
from tqdm import tqdm

from imgkit.host import interrupts
from imgkit.host.progress import Steps, bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time of each look at the clock, one after the other."""
    times: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: times.pop(0))
    return times


def test_steps_are_timed_and_listed_in_order_of_their_start(clock: list[float]) -> None:
    clock += [101.0, 102.5, 103.0, 104.25, 110.0]
    steps = Steps(_origin=100.0)
    with steps.step("outer"), steps.step("a longer name"):
        pass
    assert [(step.name, step.start, step.seconds) for step in steps.finished] == [
        ("a longer name", 2.5, 0.5),
        ("outer", 1.0, 3.25),
    ]
    assert steps.table().splitlines() == [
        "outer             3.2 s",
        "a longer name     0.5 s",
        "total            10.0 s",
    ]


def test_the_table_is_as_wide_as_its_last_line(clock: list[float]) -> None:
    clock += [0.0, 1.0, 1.0]
    steps = Steps(_origin=0.0)
    with steps.step("a"):
        pass
    assert steps.table().splitlines() == ["a         1.0 s", "total     1.0 s"]


def test_a_step_that_fails_is_in_the_table_too() -> None:
    steps = Steps()
    with pytest.raises(ZeroDivisionError), steps.step("broken"):
        1 / 0  # noqa: B018
    assert "broken" in steps.table()


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(10, "work") as progress:
        progress.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its description, cut at 60 characters, and bytes in units; a bar that is closed leaves nothing."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with bar(10_000, "d" * 60) as progress:
        progress.update(5000)
        progress.refresh()
        assert f"\r{'d' * 60}: " in screen.getvalue()
        assert "5.00k/10.0k" in screen.getvalue()
    assert screen.getvalue().endswith(" \r")
    with bar(10_000, "d" * 61, unit=" files") as progress:
        progress.update(5000)
        progress.refresh()
    assert f"{'d' * 60} … (1 characters more): " in screen.getvalue()
    assert "5000/10000" in screen.getvalue()
    assert " files/s" in screen.getvalue()


@pytest.mark.slow
def test_an_interrupt_waits_until_the_bar_is_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """tqdm complains about a bar without its fields when Python removes it."""
    made = []

    def init(self: Any, **_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        self.disable = True
        made.append(True)

    monkeypatch.setattr(tqdm, "__init__", init)
    with interrupts.raised(), pytest.raises(KeyboardInterrupt):
        bar(10, "work")
    gc.collect()
    assert made
    assert capfd.readouterr().err == ""


def test_a_silent_program_shows_no_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    caplog.set_level(logging.ERROR, "imgkit")
    with bar(10, "work") as progress:
        progress.update(5)
        progress.refresh()
    assert screen.getvalue() == ""


def test_a_step_is_announced_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgkit")
    steps = Steps()
    with steps.step("compress"):
        assert caplog.messages == ["compress …"]
        assert steps.finished == []
    assert caplog.messages == ["compress …"]


def test_a_table_without_steps(clock: list[float]) -> None:
    clock += [3.0, 7.5]
    steps = Steps(_origin=0.0)
    assert steps.table() == "total     3.0 s"
    assert steps.elapsed == 7.5
