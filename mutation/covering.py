"""Which tests execute which line: measured once by coverage.py, asked for every change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import coverage

RINGS = "not mirror and not vm"


def measure(root: Path, data: Path, rings: str = RINGS) -> None:
    """Run these tests below ``root`` once, and write which lines each of them executed to ``data``.

    Raises:
        SystemExit: a test fails on the unchanged code.
    """
    settings = data.with_name(f"settings-of-{data.name}")  # pytest-cov removes what begins with the name of its data
    settings.write_text(f"[run]\nsource = imgkit\ndata_file = {data}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", rings, "-p", "no:cacheprovider"]
    command.append(f"--basetemp={data.with_name(f'folders-of-{data.name}')}")
    command += [f"--cov-config={settings}", "--cov", "--cov-context=test", "--cov-report="]
    if subprocess.run(command, cwd=root, env={**os.environ, "CI": "1"}, check=False).returncode:
        raise SystemExit("error: tests fail on the unchanged code")


class Covering:
    """Answers from the data of :func:`measure`."""

    def __init__(self, data: Path) -> None:
        self._data = coverage.CoverageData(str(data))
        self._data.read()
        self._measured = {Path(name).as_posix().partition("/imgkit/")[2]: name for name in self._data.measured_files()}

    def tests(self, path: str, line: int, most: int) -> Sequence[str]:
        """Return the tests that execute this line; tests named after the module come first.

        For a line that is executed on import only (a constant, a default), these are all tests that execute anything of
        the module. At most ``most`` are returned.
        """
        name = self._measured.get(path.removeprefix("imgkit/"))
        if name is None:
            return []
        lines = self._data.contexts_by_lineno(name)
        contexts = set(lines.get(line, ()))
        if "" in contexts:
            contexts = {context for each in lines.values() for context in each}
        tests = {context.rpartition("|")[0] for context in contexts} - {""}
        stem = Path(path).stem
        return sorted(tests, key=lambda test: (stem not in test.partition("::")[0], test))[:most]
