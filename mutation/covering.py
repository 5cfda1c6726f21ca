"""Measure once which tests execute which line (:mod:`mutation.tracing`), and look it up for every change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RINGS = "not mirror and not vm"


def measure(root: Path, folder: Path, rings: str = RINGS, tests: Sequence[str] = ()) -> None:
    """Run these tests (or all) below ``root`` once, and write to ``folder`` which lines each of them executed.

    Raises:
        SystemExit: a test fails on the unchanged code.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", rings, "-p", "no:cacheprovider"]
    command += [
        f"--basetemp={folder.with_name('folders')}",
        "-p",
        "mutation.tracing",
        f"--executed={unfinished}",
        *tests,
    ]
    if subprocess.run(command, cwd=root, env={**os.environ, "CI": "1"}, check=False).returncode:
        raise SystemExit("error: tests fail on the unchanged code")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


class Covering:
    """The tests of each line, read from the files of :func:`measure`."""

    def __init__(self, folder: Path) -> None:
        self._tests: dict[str, dict[int, set[str]]] = {}
        for file in folder.glob("*.json"):
            for name, lines in json.loads(file.read_text()).items():
                own = self._tests.setdefault(name.partition("/imgkit/")[2], {})
                for line, tests in lines.items():
                    own.setdefault(int(line), set()).update(tests)

    def on_import(self, path: str, line: int) -> bool:
        """Return True if this line is executed, perhaps among other times, when its module is imported."""
        return "" in self._tests.get(path.removeprefix("imgkit/"), {}).get(line, ())

    def tests(self, path: str, line: int, most: int) -> Sequence[str]:
        """Return the tests that execute this line; tests named after the module come first.

        For a line that is executed on import only (a constant, a default), these are all tests that execute anything of
        the module. At most ``most`` are returned.
        """
        lines = self._tests.get(path.removeprefix("imgkit/"), {})
        tests = lines.get(line, set())
        if "" in tests:
            tests = set().union(*lines.values())
        stem = Path(path).stem
        return sorted(tests - {""}, key=lambda test: (stem not in test.partition("::")[0], test))[:most]
