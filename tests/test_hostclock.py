"""The frequency of the host's time stamp counter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imgkit.vm.qemu import hostclock
from imgkit.vm.qemu.machines import host_arch


@pytest.mark.parametrize(
    ("ticks", "nanoseconds", "khz"),
    [
        (2_596_098_000, 1_000_000_000, 2_596_098),
        (100_000, 1_000_000, 100_000),
        (99_999, 1_000_000, None),
        (20_000_000, 1_000_000, 20_000_000),
        (20_000_001, 1_000_000, None),
        (-5, 1_000_000, None),
        (5, 0, None),
    ],
)
def test_frequencies(ticks: int, nanoseconds: int, khz: int | None) -> None:
    assert hostclock.frequency(ticks, nanoseconds) == khz


def test_another_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostclock, "host_arch", lambda: "arm64")
    assert hostclock.tsc_khz.__wrapped__() is None


def test_a_host_without_executable_memory_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hostclock, "host_arch", lambda: "amd64")
    monkeypatch.setattr("mmap.mmap", refuse)
    assert hostclock.tsc_khz.__wrapped__() is None


@pytest.mark.skipif(host_arch() != "amd64", reason="for hosts with a TSC")
def test_two_measurements_agree() -> None:
    """The counters of today's processors run at one frequency, whatever that of the processor is at the moment."""
    first, second = (hostclock.tsc_khz.__wrapped__() for _ in range(2))
    assert first is not None
    assert second is not None
    assert abs(first - second) < first / 1000
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags is not None
    assert "tsc" in flags[1].split()
