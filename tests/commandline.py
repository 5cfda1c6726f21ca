"""Run imgkit as its users do, and find everything that it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Replaces libguestfs' bindings where an error must be reported before the appliance is ready: this one never is.
NEVER_READY = """
import time
EVENT_APPLIANCE = 1
class GuestFS:
    def __init__(self, python_return_dict): pass
    def __getattr__(self, name): return lambda *arguments, **options: None
    def launch(self): time.sleep(600)
"""

# Runs imgkit and adds its peak memory to standard error. What wait4 says of a child is no less than what this process
# used when it forked.
MEASURED = """
import atexit, re, runpy, sys
atexit.register(lambda: print(re.search("VmHWM.*", open("/proc/self/status").read())[0], file=sys.stderr))
runpy.run_module("imgkit", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Ran:
    """The exit status of a run, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def hints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hint: ")]

    def json(self) -> Any:
        return json.loads(self.out)


class Place:
    """The folders of a test: a home, a cache, temporary files, ``out``. Their paths are short, as they hold sockets."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.out, self.cache, self.tmp = base / "out", base / "cache", base / "tmp"
        self.modules, self.recipe = base / "modules", base / "recipe.py"
        for folder in (self.cache, self.tmp, self.modules):
            folder.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(base),
            "TMPDIR": str(self.tmp),
            "IMGKIT_CACHE": str(self.cache),
            "IMGKIT_APPLIANCE": "stock",
            "PYTHONPATH": f"{self.modules}{os.pathsep}{ROOT}",
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),  # the probe's verdict
        }
        self.never_ready()

    def never_ready(self) -> None:
        """Put the stand-in for the bindings in front of the real ones."""
        (self.modules / "guestfs.py").write_text(NEVER_READY)

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "imgkit", *map(str, words)]

    def run(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        cwd: Path | None = None,
        measured: bool = False,
    ) -> Ran:
        """Run ``imgkit WORD…`` to its end."""
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, words)] if measured else self.command(*words),
            env={**self.environment, **(env or {})},
            cwd=cwd or self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    @contextmanager
    def running(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``imgkit WORD…`` during the block; what it writes goes to the file ``log``."""
        with (self.base / "log").open("wb") as log:
            child = subprocess.Popen(
                self.command(*words),
                env={**self.environment, **(env or {})},
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield child
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def processes(self) -> list[str]:
        """Return the command lines of the living processes that were started with this place's home."""
        mark = f"HOME={self.base}".encode()
        command_lines = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    command_lines.append(words.decode(errors="replace"))
        return command_lines

    def left_over(self) -> list[str]:
        """Return what a failed run must not leave: processes, output and scratch files. The cache may have grown."""
        deadline = time.monotonic() + 30
        while (alive := self.processes()) and time.monotonic() < deadline:  # killed, and not gone yet
            time.sleep(0.05)
        scratch = [*self.tmp.iterdir(), *self.cache.glob("tmp/*"), *self.base.glob(".imgkit-*")]
        outputs = [self.out, *self.out.rglob("*")] if self.out.exists() else []
        return alive + [str(path) for path in [*scratch, *outputs]]


@contextmanager
def place() -> Iterator[Place]:
    """Yield a place that is removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="ik-"))
    try:
        yield Place(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def path_without(here: Place, program: str) -> dict[str, str]:
    """Return a PATH that has every program except ``program``."""
    folder = here.base / "bin"
    folder.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for path in Path(entry).iterdir() if Path(entry).is_dir() else ():
            if path.name != program and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    return {"PATH": str(folder)}


def check_failure(ran: Ran, place: Place, status: int, error: str, hint: str | None = None) -> None:
    """Check a failure: its status, a single error line that contains ``error``, its hint, and that nothing is left.

    ``hint`` is a part of the hint line, "" if there must be no hint, and None if it does not matter.
    """
    assert ran.status == status, ran.err
    assert len(ran.errors) == 1, ran.err
    assert error in ran.errors[0], ran.err
    assert "Traceback" not in ran.err
    assert len(ran.hints) <= 1, ran.err
    assert ran.out == "", ran.out
    if hint is not None:
        assert hint in "".join(ran.hints), ran.err
        assert bool(hint) == bool(ran.hints), ran.err
    assert place.left_over() == []
