"""Copies of the repository in which changes are made and tested, one change at a time in each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mutation.change import Change
from mutation.nodetests import Scripts
from mutation.server import ELSEWHERE, NOTICED

ROOT = Path(__file__).parents[1]
GONE = "gone"
"""Answer of a process that has ended."""


class Copy:
    """A copy of the repository in which one change at a time is made and tested."""

    def __init__(self, folder: Path, timeout: float, scripts: Scripts | None = None) -> None:
        """Copy the repository to ``folder``; all tests of one change may take ``timeout`` seconds."""
        self._scripts = scripts
        self.root = folder / "imgkit"
        ignored = shutil.ignore_patterns(".venv", ".git", "out", ".hypothesis", "__pycache__")
        shutil.copytree(ROOT, self.root, ignore=ignored, symlinks=True)
        self._python = _environment(folder / "venv", self.root)
        self._timeout = timeout
        self._trusted: set[str] = set()
        self._server: _Server | None = None

    def close(self) -> None:
        """End the process whose forks run tests."""
        if self._server:
            self._server.close()

    def noticed(self, change: Change, tests: Sequence[str], *, fork: bool = False) -> bool:
        """Return True if one of the tests fails, or does not end, with this change made.

        Args:
            change: what is changed.
            tests: the tests that are run, until one fails.
            fork: the changed code has not been executed before a test begins, so that forks will do.

        Raises:
            SystemExit: the test that failed does so on the unchanged code as well, so that it proves nothing.
        """
        noticed = self._noticed_by_fork(change, tests) if fork else None
        if noticed is None:
            with self._changed(change):
                noticed = self.fails(tests)
            if noticed:
                self._check(self._failed(tests))
        return noticed

    def _noticed_by_fork(self, change: Change, tests: Sequence[str]) -> bool | None:
        """Return the same as :meth:`noticed`, or None if forks cannot tell."""
        if self._server is None:
            return None
        with self._changed(change):
            answer = self._server.ask(change.path, tests)
        if answer["result"] == GONE:
            self._server.close()
            self._server = None
            return None
        if answer["result"] != NOTICED:
            return None if answer["result"] == ELSEWHERE else False
        test = answer["test"]
        if test not in self._trusted and self._server.ask(change.path, [test])["result"] == NOTICED:
            return None  # this test does not run in a fork
        self._trusted.add(test)
        return True

    @contextmanager
    def _changed(self, change: Change) -> Iterator[None]:
        target = self.root / change.path
        target.write_bytes(change.apply((ROOT / change.path).read_bytes()))
        try:
            yield
        finally:
            shutil.copy2(ROOT / change.path, target)

    def _failed(self, tests: Sequence[str]) -> str:
        """Return the test that failed last, or the first one if none could be run."""
        lines = self._output.read_text(errors="replace").splitlines()
        named = (test for test in tests for line in lines if line.startswith((f"FAILED {test}", f"ERROR {test}")))
        return next(named, tests[0])

    def _check(self, test: str) -> None:
        if test not in self._trusted and self.fails([test]):
            raise SystemExit(f"error: {test} fails in a copy of the unchanged code")
        self._trusted.add(test)

    @property
    def _output(self) -> Path:
        return self.root.parent / "output.txt"

    def fails(self, tests: Sequence[str]) -> bool:
        """Return True if one of the tests fails, or does not end, with the code as it is in the copy."""
        if self._scripts and ".test.js::" in tests[0]:
            batches = self._scripts.batches(tests)
            return any(self._ends_badly(batch.command(), min(self._timeout, batch.limit)) for batch in batches)
        listed = self.root.parent / "tests.txt"
        listed.write_text("".join(f"{test}\n" for test in tests))
        try:
            return self._ends_badly([*self._pytest("folders"), "-x", f"@{listed}"], self._timeout)
        finally:
            subprocess.run(["rm", "-rf", self.root.parent / "folders"], check=False)  # deeper than Python can go

    def _ends_badly(self, command: Sequence[str], timeout: float) -> bool:
        with self._output.open("wb") as output:
            child = self._start(command, output)
        try:
            return child.wait(timeout) != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            _end(child)

    def _pytest(self, folder: str) -> list[str]:
        command = [str(self._python), "-m", "pytest", "-q", "-n", "0", "--timeout", "60", "-m", ""]
        return [*command, "-p", "no:cacheprovider", f"--basetemp={self.root.parent / folder}"]

    def _start(self, command: Sequence[str], output: BinaryIO, pipes: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a program in the copy."""
        if os.geteuid() == 0:  # changed code of root's could end all processes of this computer
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(self.root.parent)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pipes,
        )

    def serve(self, tests: Sequence[str]) -> None:
        """Start the process whose forks run these files of tests from now on, where forks can."""
        questions, answers = os.pipe(), os.pipe()
        pipes = (questions[0], answers[1])
        command = [*self._pytest("forks"), "-p", "mutation.server", f"--changes={pipes[0]},{pipes[1]}"]
        with (self.root.parent / "server.txt").open("wb") as output:
            child = self._start([*command, f"--change-timeout={self._timeout}", *tests], output, pipes)
        for pipe in pipes:
            os.close(pipe)
        self._server = _Server(child, questions[1], answers[0])


class _Server:
    """The other end of :mod:`mutation.server`."""

    def __init__(self, child: subprocess.Popen[bytes], writing: int, reading: int) -> None:
        self._child = child
        self._questions = os.fdopen(writing, "w")
        self._answers = os.fdopen(reading)
        self._answers.readline()

    def ask(self, path: str, tests: Sequence[str]) -> dict[str, str]:
        """Return the answer to what these tests say of the file ``path`` as it is now."""
        try:
            self._questions.write(json.dumps({"path": path, "tests": tests}) + "\n")
            self._questions.flush()
            answer: dict[str, str] = json.loads(self._answers.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        return answer or {"result": GONE}

    def close(self) -> None:
        """End it."""
        with suppress(BrokenPipeError):
            self._questions.close()
        self._answers.close()
        _end(self._child)


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _environment(folder: Path, root: Path) -> Path:
    """Make a virtual environment that has the packages of the running one, and imgkit from ``root``."""
    venv.create(folder, system_site_packages=True, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    present = [path for path in sys.path if path.endswith("site-packages")]
    (site / "imgkit-changed.pth").write_text("".join(f"{path}\n" for path in [str(root), *present]))
    return folder / "bin" / "python"
