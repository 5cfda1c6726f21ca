"""A pytest plugin that tries one change after another in forks of a process that has collected the tests once.

    pytest -p mutation.server --changes READ,WRITE     numbers of two open pipes

Every line that is read is a question, every line that is written its answer:

    {"path": "imgkit/tree/walk.py", "tests": ["tests/test_walk.py::test_order", …]}
    {"result": "noticed", "test": "tests/test_walk.py::test_order"}

The caller has already made the change in the file, where processes that a test starts find it. The fork gives the same
code to the functions that exist. What a change outside of functions does is done when the module is imported: then the
answer is ``elsewhere``, and the caller must start a new process.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import NoReturn

import pytest

NOTICED, SURVIVED, ELSEWHERE = "noticed", "survived", "elsewhere"
_PAUSE = 0.005
"""Seconds between two looks at a fork."""
_MEMORY = 4 << 30
"""Bytes that a fork may allocate: a changed loop may never end."""
_exit = os._exit  # tests may replace it


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say where questions come from, and how long an answer may take."""
    parser.addoption("--changes", metavar="READ,WRITE", help="numbers of the pipes of questions and answers")
    parser.addoption("--change-timeout", type=float, default=180, help="seconds for the tests of one change")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Answer questions until there are no more, instead of running the tests once."""
    reading, writing = map(int, session.config.getoption("--changes").split(","))
    server = _Server(session)
    with os.fdopen(reading) as questions, os.fdopen(writing, "w") as answers:
        answers.write("{}\n")
        answers.flush()
        for line in questions:
            answers.write(json.dumps(server.answer(**json.loads(line))) + "\n")
            answers.flush()
    return True


def functions() -> dict[tuple[str, int, str], list[FunctionType]]:
    """Return the functions that exist in this process by the file, the first line and the name of their code."""
    found: dict[tuple[str, int, str], list[FunctionType]] = {}
    for value in gc.get_objects():
        if isinstance(value, FunctionType):
            code = value.__code__
            found.setdefault((code.co_filename, code.co_firstlineno, code.co_name), []).append(value)
    return found


def differing(old: CodeType, new: CodeType, *, function: bool = False) -> Iterator[tuple[CodeType, CodeType]]:
    """Yield the functions of a module whose code differs, outer ones first, each as it was and as it is.

    Raises:
        ValueError: what differs is outside of functions.
    """
    inner = [[value for value in code.co_consts if isinstance(value, CodeType)] for code in (old, new)]
    if len(inner[0]) != len(inner[1]):
        if not function:
            raise ValueError("a definition is gone")
        yield old, new
        return
    if function and old != new:
        yield old, new
    elif not function and _shallow(old) != _shallow(new):
        raise ValueError("the body of a module or of a class differs")
    for before, after in zip(*inner, strict=True):
        if before != after:
            yield from differing(before, after, function=bool(before.co_flags & 0x1))  # CO_OPTIMIZED: a function


def _shallow(code: CodeType) -> tuple[object, ...]:
    constants = tuple(repr(value) for value in code.co_consts if not isinstance(value, CodeType))
    return code.co_code, code.co_names, constants


class _Server:
    def __init__(self, session: pytest.Session) -> None:
        self._items = {item.nodeid: item for item in session.items}
        self._timeout: float = session.config.getoption("--change-timeout")
        self._folder: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        self._sources = {
            name: Path(name).read_bytes()
            for module in list(sys.modules.values())
            if (name := getattr(module, "__file__", None)) and "/imgkit/" in name and name.endswith(".py")
        }
        self._functions = functions()
        gc.freeze()  # a fork need not copy what its collector would touch

    def answer(self, path: str, tests: Sequence[str]) -> dict[str, str]:
        """Return what the tests say of the file ``path`` as it is now."""
        try:
            changed = self._changed(str(Path(path).absolute()))
        except ValueError:
            return {"result": ELSEWHERE}
        failed = self._try([self._items[test] for test in tests], changed)
        return {"result": NOTICED, "test": failed} if failed else {"result": SURVIVED}

    def _changed(self, path: str) -> list[tuple[FunctionType, CodeType]]:
        """Return the functions of a file that have other code now, each with it.

        Raises:
            ValueError: a fork cannot have this change.
        """
        if path not in self._sources:
            return []  # a fork imports it
        old = compile(self._sources[path], path, "exec", dont_inherit=True)
        new = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
        pairs = [
            (function, after)
            for before, after in differing(old, new)
            for function in self._functions.get((path, before.co_firstlineno, before.co_name), ())
        ]
        if any(function.__code__.co_freevars != after.co_freevars for function, after in pairs):
            raise ValueError("it uses other variables of the function around it")
        return pairs

    def _try(self, items: Sequence[pytest.Item], changed: Sequence[tuple[FunctionType, CodeType]]) -> str | None:
        """Return the first of the tests that fails, or does not end, in a fork with these functions changed."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            for function, code in changed:
                function.__code__ = code
            _run(items, writing)
        os.close(writing)
        status = self._wait(child)
        _end_all(child)
        subprocess.run(["find", self._folder, "-mindepth", "1", "-delete"], check=False)  # deeper than Python can go
        started = os.read(reading, 1 << 20).decode().split()
        os.close(reading)
        if status == 0:
            return None
        return items[len(started) - 1 if started else 0].nodeid

    def _wait(self, child: int) -> int | None:
        """Return the status of the fork, or None if it takes too long."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            time.sleep(_PAUSE)
        return None


def _end_all(child: int) -> None:
    """End everything that a fork has left; all processes but this one, if they have a PID namespace of their own."""
    alone = os.getpid() == 1
    with suppress(ProcessLookupError):
        if alone:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0 if alone else os.WNOHANG)[0]:
            pass


class _Watch:
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _exit(1)


def _run(items: Sequence[pytest.Item], writing: int) -> NoReturn:
    """Run these tests until one fails, with a line for each that begins, and end this process."""
    status = 1
    try:
        items[0].config.pluginmanager.register(_Watch())
        for item, following in zip(items, [*items[1:], None], strict=True):
            os.write(writing, b"begun\n")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        status = 0
    finally:  # a change may raise anything
        _exit(status)
