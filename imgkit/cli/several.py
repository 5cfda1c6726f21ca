"""Several architectures in one go: each is built by a process of its own, started as a user would start it.

Threads would not do. Composing is work of Python itself, of which one process does one thing at a time; and a signal
reaches the main thread only, while the others would have to be waited for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from imgkit.errors import GuestError, HostError, ImgkitError, InputError, RecipeError, UsageError
from imgkit.host import process, terminal

_POLL = 0.1
_PATIENCE = 15.0  # seconds that a build gets to clean up behind itself
_INTERRUPTED = 130
_KINDS = {kind.exit_status: kind for kind in (UsageError, RecipeError, InputError, HostError, GuestError)}
_writing = threading.Lock()


def at_once() -> int:
    """How many builds this host runs side by side: one a core. Each keeps between one and two of them busy."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_all(words: Sequence[str], arches: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Build every architecture, ``jobs`` at a time, and yield the results as they are ready.

    Args:
        words: the command line that asked for all of them.
        arches: their names, which no longer come from ``words``.

    Raises:
        ImgkitError: of the first build that failed; the others are ended then.
        KeyboardInterrupt: one of them was interrupted.
    """
    waiting = list(arches)
    running: list[_Build] = []
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(stack.enter_context(_started(words, waiting.pop(0))))
            time.sleep(_POLL)
            for build in [each for each in running if each.child.poll() is not None]:
                running.remove(build)
                yield build.result()


def words_for(words: Sequence[str], arch: str) -> list[str]:
    """The command line for one architecture alone, with its result as JSON."""
    kept = [word for word in words if not word.startswith("--arch=")]
    while "--arch" in kept:
        at = kept.index("--arch")
        del kept[at : at + 2]
    return [*kept, *([] if "--json" in kept else ["--json"]), "--arch", arch]


@dataclass
class _Build:
    """A running build. Its messages are passed on, line by line, with the architecture in front."""

    arch: str
    child: subprocess.Popen[bytes]
    printed: bytearray = field(default_factory=bytearray)
    readers: list[threading.Thread] = field(default_factory=list)

    def follow(self) -> None:
        """Begin to read what it writes."""
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        for target, pipe in ((self._collect, self.child.stdout), (self._pass_on, self.child.stderr)):
            self.readers.append(threading.Thread(target=target, args=(pipe,), name=f"build {self.arch}", daemon=True))
            self.readers[-1].start()

    def _collect(self, source: IO[bytes]) -> None:
        with suppress(ValueError, OSError):  # closed under us
            while piece := os.read(source.fileno(), 1 << 16):
                self.printed += piece

    def _pass_on(self, source: IO[bytes]) -> None:
        """Whole lines that came together stay together: tables. What follows ``error:`` is told by this process."""
        pending, silent = b"", False
        with suppress(ValueError, OSError):
            while piece := os.read(source.fileno(), 1 << 16):
                whole, _, pending = (pending + piece).rpartition(b"\n")
                text = whole.decode(errors="replace")
                lines = [line for line in text.split("\n") if line and not (silent := silent or _is_error(line))]
                with _writing:
                    sys.stderr.write("".join(f"{self.arch}: {terminal.line(line)}\n" for line in lines))
                    sys.stderr.flush()

    def result(self) -> dict[str, Any]:
        """The result of a build that has ended."""
        for reader in self.readers:
            reader.join(_PATIENCE)
        status = self.child.returncode
        if status == _INTERRUPTED:
            raise KeyboardInterrupt
        try:
            answer = json.loads(self.printed)
        except ValueError:
            raise HostError(f"{self.arch}: its build {process.ending(status)}") from None
        if status != 0:
            raise _failure(self.arch, answer["error"])
        (result,) = answer
        return dict(result)

    def end(self) -> None:
        """Ask it to stop, and let it clean up."""
        if self.child.poll() is None:
            self.child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(_PATIENCE)


@contextmanager
def _started(words: Sequence[str], arch: str) -> Iterator[_Build]:
    argv = [sys.executable, "-m", "imgkit", *words_for(words, arch)]
    with process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        build = _Build(arch, child)
        build.follow()
        try:
            yield build
        finally:
            build.end()


def _is_error(line: str) -> bool:
    return line.startswith("error: ")


def _failure(arch: str, error: dict[str, Any]) -> ImgkitError:
    """The error that a build reported, once more."""
    message = f"{arch}: {error['message']}"
    kind = _KINDS.get(error["status"])
    if kind is None:
        raise RuntimeError(message)
    if kind is RecipeError:
        problems = error["problems"]
        whole = "; ".join([f"{message}: {problems[0]}", *problems[1:]]) if problems else message
        return RecipeError(whole, hint=error["hint"], problems=problems)
    return kind(message, hint=error["hint"])
