"""How many processors are used."""

from __future__ import annotations

import os

import pytest

from imgkit.host import processors


def test_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert processors.usable_processors(16) == 16
    assert processors.usable_processors() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert processors.usable_processors() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert processors.usable_processors() == 5
