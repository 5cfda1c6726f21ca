"""A pytest plugin that records which lines of the package the tests execute, one file for each worker.

    pytest -p mutation.tracing --executed FOLDER     which test executes which line, as JSON
    pytest -p mutation.tracing --covered FOLDER      lines and branches, as data of coverage.py

The lines stay in memory until the end. coverage.py's own data file does not survive every test: it is a database that
stays open, and one test gives up its rights for a moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say where to write."""
    parser.addoption("--executed", type=Path, metavar="FOLDER", help="write which test executes which line")
    parser.addoption("--covered", type=Path, metavar="FOLDER", help="write which lines and branches are executed")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to measure in the processes that run tests."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # the tests run in workers
    if executed := config.getoption("--executed"):
        config.pluginmanager.register(_Executed(executed))
    if covered := config.getoption("--covered"):
        config.pluginmanager.register(_Covered(covered))


class _Covered:
    """A recorder of lines and branches."""

    def __init__(self, folder: Path, *, branch: bool = True) -> None:
        self.folder = folder
        self.worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        self._process = os.getpid()
        self.measure = coverage.Coverage(data_file=None, source=["imgkit"], branch=branch, config_file=False)
        self.measure.start()

    def pytest_sessionfinish(self) -> None:
        """Write what was recorded, unless this is a process that a test forked."""
        if os.getpid() != self._process:
            return
        self.measure.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(self.measure.get_data())

    def write(self, data: coverage.CoverageData) -> None:
        """Write what was recorded."""
        stored = coverage.CoverageData(str(self.folder / f"data.{self.worker}"))
        stored.loads(data.dumps())
        stored.write()


class _Executed(_Covered):
    """A recorder of lines, each with the tests that execute it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, branch=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Attribute the lines that are executed from now on to the next test."""
        self.measure.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.measure.switch_context("")

    def write(self, data: coverage.CoverageData) -> None:
        """Write the lines of each file."""
        lines = {Path(name).as_posix(): data.contexts_by_lineno(name) for name in data.measured_files()}
        (self.folder / f"{self.worker}.json").write_text(json.dumps(lines))
