"""Build several architectures side by side, each in a process of its own that is started as a user would start it.

Threads would not help: composing a root filesystem keeps the Python interpreter busy, which runs one thread at a time;
and a signal reaches only the main thread, which would have to wait for the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from imgkit.cli.reports.buildreport import BuildReport, parse_report
from imgkit.errors import (
    INTERRUPTED,
    GuestError,
    HostError,
    ImgkitError,
    InputError,
    RecipeError,
    UsageError,
)
from imgkit.host import process, statusline, terminal
from imgkit.host.processors import usable_processors
from imgkit.recipe import DiskOutput

_STEP = " …"  # the end of a line of the log that names a step (imgkit.host.progress)
_POLL = 0.1  # seconds between two looks at the running builds
_END_TIMEOUT = 15.0  # seconds that a build gets to clean up after itself
_KINDS = {kind.exit_status: kind for kind in (UsageError, RecipeError, InputError, HostError, GuestError)}
_stderr_lock = threading.Lock()


def at_once() -> int:
    """Return how many builds this host runs at a time: one for each processor that this process may use."""
    return usable_processors()


def build_all(
    words: Sequence[str], arches: Sequence[str], jobs: int, output: DiskOutput = "disk"
) -> Iterator[BuildReport]:
    """Build every architecture, ``jobs`` at a time, and yield the reports as they are ready.

    Args:
        words: the command line that asked for all of them.
        arches: the architectures; those in ``words`` are ignored.
        output: what is built; that in ``words`` is ignored.

    Raises:
        ImgkitError: the first build that failed, as the error that it reported. The other builds are ended.
        KeyboardInterrupt: one of the builds was interrupted.
        RuntimeError: a build failed because of a bug in imgkit.
    """
    waiting = list(arches)
    running: list[_Build] = []
    with ExitStack() as stack:
        say = stack.enter_context(statusline.doing("building"))
        while waiting or running:
            say("; ".join(f"{build.arch}: {build.step or 'begins'}" for build in running) or "building")
            while waiting and len(running) < jobs:
                running.append(stack.enter_context(_started(words, waiting.pop(0), output)))
            time.sleep(_POLL)
            for build in [build for build in running if build.child.poll() is not None]:
                running.remove(build)
                yield build.report()


def words_for(words: Sequence[str], arch: str, output: DiskOutput = "disk") -> list[str]:
    """Return the command line for one output of one architecture alone, with its report as JSON."""
    kept = _without(_without(words, "--arch"), "--output")
    if output != "disk":
        kept = _without(kept, "--format")
    return [*kept, *([] if "--json" in kept else ["--json"]), "--output", output, "--arch", arch]


def _without(words: Sequence[str], option: str) -> list[str]:
    """Return a command line without an option that takes a value."""
    kept = [word for word in words if not word.startswith(f"{option}=")]
    while option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return kept


@dataclass
class _Build:
    """A running build. Its messages are passed on line by line, with the architecture in front.

    Attributes:
        step: what it is doing, for the status line, which takes the place of the messages that say so.
    """

    arch: str
    child: subprocess.Popen[bytes]
    step: str = ""
    output: bytearray = field(default_factory=bytearray)
    readers: list[threading.Thread] = field(default_factory=list)

    def follow(self) -> None:
        """Begin to read what the build writes, in two threads."""
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        for target, pipe in ((self._collect, self.child.stdout), (self._pass_on, self.child.stderr)):
            self.readers.append(threading.Thread(target=target, args=(pipe,), name=f"build {self.arch}", daemon=True))
            self.readers[-1].start()

    def _collect(self, source: IO[bytes]) -> None:
        with suppress(ValueError, OSError):  # the pipe was closed while it was read
            while data := os.read(source.fileno(), 1 << 16):
                self.output += data

    def _pass_on(self, source: IO[bytes]) -> None:
        """Pass messages on. Lines that arrive together (a table) stay together.

        From the first ``error:`` line on nothing is passed on: this process raises the error, and reports it once.
        """
        pending, failed = b"", False
        with suppress(ValueError, OSError):
            while data := os.read(source.fileno(), 1 << 16):
                complete, _, pending = (pending + data).rpartition(b"\n")
                text = complete.decode(errors="replace")
                lines = [line for line in text.split("\n") if line and not (failed := failed or _is_error(line))]
                if statusline.active():
                    lines = self._without_steps(lines)
                with _stderr_lock, statusline.hidden():
                    sys.stderr.write("".join(f"{self.arch}: {terminal.line(line)}\n" for line in lines))
                    sys.stderr.flush()

    def _without_steps(self, lines: Sequence[str]) -> list[str]:
        """Return the lines that do not say which step begins, and remember the last one that does."""
        for line in lines:
            if line.endswith(_STEP):
                self.step = line.removesuffix(_STEP)
        return [line for line in lines if not line.endswith(_STEP)]

    def report(self) -> BuildReport:
        """Return the report of a build that has ended.

        Raises:
            ImgkitError, KeyboardInterrupt, RuntimeError: as :func:`build_all`.
        """
        for reader in self.readers:
            reader.join(_END_TIMEOUT)
        status = self.child.returncode
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        try:
            if status == 0:
                return parse_report(bytes(self.output))
            error = json.loads(self.output)["error"]
        except (ValueError, LookupError, TypeError):
            cause = process.ending(status) if status else "ended without a report"
            raise HostError(f"{self.arch}: its build {cause}") from None
        raise _failure(self.arch, error)

    def end(self) -> None:
        """Ask the build to stop if it still runs, and give it time to clean up."""
        if self.child.poll() is None:
            self.child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(_END_TIMEOUT)


@contextmanager
def _started(words: Sequence[str], arch: str, output: DiskOutput) -> Iterator[_Build]:
    argv = [sys.executable, "-m", "imgkit", *words_for(words, arch, output)]
    env = {**os.environ, "NO_COLOR": "1"}  # its messages are read here, and coloured when they are passed on
    with process.start(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        build = _Build(arch, child)
        build.follow()
        try:
            yield build
        finally:
            build.end()


def _is_error(line: str) -> bool:
    return line.startswith("error: ")


def _failure(arch: str, error: Mapping[str, object]) -> Exception:
    """Return the exception for an error that a build reported with ``--json``."""
    message = f"{arch}: {error['message']}"
    hint = None if error["hint"] is None else str(error["hint"])
    kind: type[ImgkitError] | None = _KINDS.get(_integer(error["status"]))
    if kind is None:
        return RuntimeError(message)
    problems = error["problems"]
    if kind is RecipeError and isinstance(problems, list):
        listed = [str(problem) for problem in problems]
        text = "; ".join([f"{message}: {listed[0]}", *listed[1:]]) if listed else message
        return RecipeError(text, hint=hint, problems=listed)
    return kind(message, hint=hint)


def _integer(value: object) -> int:
    return value if isinstance(value, int) else -1
