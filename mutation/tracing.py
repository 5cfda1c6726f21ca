"""A pytest plugin: which test executes which line of the package, as JSON, one file for each worker.

    pytest -p mutation.tracing --executed FOLDER

The lines stay in memory until the end. coverage.py's own data file does not survive every test: it is a database that
is open all the time, also in processes that a test forks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where to write."""
    parser.addoption("--executed", type=Path, metavar="FOLDER", help="write which test executes which line")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to measure, where tests run."""
    folder = config.getoption("--executed")
    if folder is not None and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        config.pluginmanager.register(_Tracing(folder))


class _Tracing:
    def __init__(self, folder: Path) -> None:
        self._target = folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.json"
        self._process = os.getpid()
        self._measure = coverage.Coverage(data_file=None, source=["imgkit"], config_file=False)
        self._measure.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Say whose lines come next."""
        self._measure.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._measure.switch_context("")

    def pytest_sessionfinish(self) -> None:
        """Write the lines, unless this is a process that a test forked."""
        if os.getpid() != self._process:
            return
        self._measure.stop()
        data = self._measure.get_data()
        lines = {Path(name).as_posix(): data.contexts_by_lineno(name) for name in data.measured_files()}
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._target.write_text(json.dumps(lines))
