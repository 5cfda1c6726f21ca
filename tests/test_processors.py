"""How many threads do the work."""

from __future__ import annotations

import os

import pytest

from imgkit.host import processors


def test_at_most_sixteen_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert processors.usable_processors() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert processors.usable_processors() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert processors.usable_processors() == 5
