"""The summary of a test run counts the tests on real data that were skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commandline import ROOT
from tests.files import ALPINE_FILES, NEEDS_ALPINE, skipped_for_alpine


@pytest.mark.slow
def test_skipped_tests_on_real_data_are_counted() -> None:
    assert skipped_for_alpine(["needs qemu", "needs another thing"]) == []
    lines = skipped_for_alpine(["needs qemu", f"('x.py', 5, '{NEEDS_ALPINE} in /x')", NEEDS_ALPINE])
    assert lines[0].startswith("2 tests on files of Alpine's own were skipped.")
    assert sum(line.startswith("    v3.") for line in lines) == len(ALPINE_FILES)


@pytest.mark.slow
def test_a_run_without_the_files_says_so(tmp_path: Path) -> None:
    """By a fixture that is asked for, and by a mark."""
    tests = ["tests/test_index.py::test_the_real_index_is_reproduced_to_the_byte", "tests/test_minirootfs.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "real", *tests],
        cwd=ROOT,
        env={**os.environ, "IMGKIT_SHARED": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 skipped" in done.stdout
    assert "3 tests on files of Alpine's own were skipped." in done.stdout
    assert f"{tmp_path}/alpine" in done.stdout
    assert "IMGKIT_SHARED" in done.stdout
