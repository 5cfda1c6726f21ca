"""The host application of the contract's tests (tests/hostapp.py): which failures it tries again."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import hostapp
from tests.hostapp import EmulationError, Machine, booted

PROGRAM = """
import sys, time
from pathlib import Path
console, note, says = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
tries = len(note.read_text()) if note.exists() else 0
note.write_text("x" * (tries + 1))
console.write_text(says[min(tries, len(says) - 1)])
time.sleep(60)
"""
CRASH = "[    0.1] Oops: int3: 0000 [#1] SMP\n"


def attach(machine: Machine, _: ExitStack) -> str:
    return str(machine.wait("a word", lambda: "ready" in machine.tail() and machine.tail(), 30))


def argv(folder: Path, *says: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(folder / "console"), str(folder / "note"), *says]


def test_a_crash_of_the_emulation_is_tried_again(tmp_path: Path) -> None:
    with booted(argv(tmp_path, CRASH, "ready\n"), tmp_path / "console", attach) as text:
        assert text == "ready\n"
    assert (tmp_path / "note").read_text() == "xx"


def test_a_crash_is_tried_three_times(tmp_path: Path) -> None:
    with pytest.raises(EmulationError), booted(argv(tmp_path, CRASH), tmp_path / "console", attach):
        pass
    assert len((tmp_path / "note").read_text()) == hostapp.TRIES == 3


def test_other_failures_are_failures(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit(1)"]
    with pytest.raises(AssertionError, match="QEMU ended"), booted(words, tmp_path / "console", attach):
        pass
