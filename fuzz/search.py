"""The search in one target, in the process that runs it."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fuzz.mutate import Mutator
from fuzz.target import SECONDS, Target, corpus
from fuzz.targets import TARGETS

_LONGEST = 1 << 16  # bytes of an input


class TooSlowError(Exception):
    """An input took more than :data:`fuzz.targets.SECONDS` of processor time."""


def _too_slow(_: int, __: FrameType | None) -> NoReturn:
    raise TooSlowError


def check(target: Target, data: bytes) -> None:
    """Run a target on one input, in limited time. Any exception that this raises is a fault."""
    signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.check(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def keep(folder: Path, data: bytes) -> Path:
    """Write an input to a file for people, as text if it is readable and as Base64 otherwise; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    readable = all(byte in b"\n\t" or 32 <= byte < 127 for byte in data)
    name = hashlib.sha256(data).hexdigest()[:12]
    path = folder / f"{name}.{'txt' if readable else 'b64'}"
    path.write_bytes(data if readable else base64.encodebytes(data))
    return path


class Search:
    """The search in one target: every input passes through :meth:`try_input`."""

    def __init__(self, name: str, seconds: float, folder: Path) -> None:
        self._target = TARGETS[name]
        self._name = name
        self._seconds = seconds
        self._end = 0.0  # the time counts from the first input on
        self._folder = folder
        self.seeds = [*self._target.seeds(), *(data for _, data in corpus(name))]
        self.count = 0

    def try_input(self, data: bytes) -> None:
        """Check one input, and end the process at a fault or when the time is up."""
        self._end = self._end or time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            self._finish()
        self.count += 1
        try:
            check(self._target, data)
        except BaseException as cause:  # noqa: BLE001 - whatever comes out is a fault
            path = keep(self._folder / self._name, data)
            traceback.print_exc()
            print(f"{self._name}: {type(cause).__name__} after {self.count} inputs: {path}", flush=True)
            sys.stdout.flush()
            _leave(1)

    def _finish(self) -> NoReturn:
        print(f"{self._name}: {self.count} inputs, no fault", flush=True)
        _leave(0)

    def at_random(self, seed: int) -> None:
        """Change seeds at random until the time is up."""
        for data in self.seeds:
            self.try_input(data)
        mutator = Mutator(self.seeds, self._target.words, seed)
        while True:
            self.try_input(mutator.next())

    def guided(self, atheris: Any, seed: int) -> None:
        """Let atheris (libFuzzer) search until the time is up."""
        with tempfile.TemporaryDirectory(prefix="imgkit-fuzz-") as name:
            for number, data in enumerate(self.seeds):
                (Path(name) / f"seed-{number}").write_bytes(data)
            words = Path(name).with_suffix(".dict")
            escaped = ["".join(f"\\x{byte:02x}" for byte in word[:64]) for word in self._target.words if word]
            words.write_text("".join(f'"{word}"\n' for word in escaped))
            options = [f"-dict={words}"] if self._target.words else []
            options += [f"-seed={seed}", f"-max_len={_LONGEST}", "-rss_limit_mb=0", "-verbosity=0"]
            try:
                atheris.Setup([sys.argv[0], *options, "-len_control=20", name], self.try_input)
                atheris.Fuzz()
            finally:
                words.unlink()


def _leave(status: int) -> NoReturn:
    os._exit(status)
