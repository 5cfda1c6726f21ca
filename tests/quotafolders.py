"""What the tests of quotas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgkit.vm.shares import usage
from tests.files import noise

HANG = 60.0
"""Seconds after which a wait that should end within one or two counts as a hang."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL", 0.02)


def written(path: Path, size: int) -> int:
    """Write so many bytes, and return how many they are on the disk."""
    with path.open("wb") as sink:
        sink.write(noise(size))
        sink.flush()
        os.fsync(sink.fileno())
    return path.stat().st_blocks * 512
