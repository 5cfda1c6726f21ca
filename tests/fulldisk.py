"""Run imgkit on a full disk again and again, each time with room for one more write.

    python -m tests.fulldisk full|once BASE WORD…

What takes room is counted where Python asks the kernel for it: writing to a file, making one, a folder or a link,
renaming, and fsync (a filesystem may find only then that there is no room). With ``full`` all of that fails from the
n-th time on, for every n, as on a disk on which nothing is deleted; with ``once`` the n-th alone does, for every third
n. Each run is a fork of this process. Now and then ``imgkit WORD…`` is run undisturbed, in the state that a failure
left.

The result is JSON, a list of objects: ``status`` and ``output`` of the run, ``undisturbed`` (the status of the run
after it, if there was one), and ``after``, the text of BASE/recipe.lock in between. The last run had enough room.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgkit.cli.main import main as imgkit

OLD = '{"lock": 1, "architectures": {}}'
"""Text of the lock file before each run."""


class Disk:
    """Counts the operations that take space, and lets them fail when the disk is full."""

    def __init__(self, room: int, *, once: bool) -> None:
        self.taken = 0
        self._room, self._once = room, once
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count an operation that takes space.

        Raises:
            OSError: there is no space left.
        """
        with self._lock:
            self.taken += 1
            full = self.taken == self._room + 1 if self._once else self.taken > self._room
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """Let all file operations of this process use this disk from now on."""
        for name in ("mkdir", "symlink", "link", "rename", "replace", "fsync", "sendfile", "copy_file_range"):
            if hasattr(os, name):
                setattr(os, name, self._taking(getattr(os, name)))
        self._install_open()
        real = os.open

        def os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.take()
            return real(path, flags, *arguments, **options)

        os.open = os_open

    def _taking(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def taking(*arguments: Any, **options: Any) -> Any:
            self.take()
            return real(*arguments, **options)

        return taking

    def _install_open(self) -> None:
        real, disk = io.open, self

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                disk.take()
                return super().write(data) or 0

        def opened(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
            if not set("wax+") & set(mode):
                return real(file, mode, buffering, *text, **options)
            if not isinstance(file, int):
                disk.take()
            more = {name: options.pop(name) for name in ("closefd", "opener") if name in options}
            raw = File(file, mode.replace("b", "").replace("t", ""), **more)
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, *text, **options)

        io.open = builtins.open = opened


def run(words: list[str], output: Path, disk: Disk | None = None) -> tuple[int, int]:
    """Run ``imgkit WORD…`` in a fork on ``disk``. Return its exit status and how many operations took space."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with output.open("wb") as sink:
            for descriptor in (1, 2):
                os.dup2(sink.fileno(), descriptor)
        if disk is not None:
            disk.install()
        status = imgkit(words)
        os.write(writing, str(disk.taken if disk else 0).encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as source:
        taken = int(source.read() or -1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), taken


def main(how: str, base: Path, words: list[str]) -> list[dict[str, Any]]:
    """Make all runs and return their results; see the module's docstring."""
    lock, output = base / "recipe.lock", base / "output"
    results = []
    for room in range(0, 10_000, 3 if how == "once" else 1):
        shutil.rmtree(base / "cache")
        (base / "cache").mkdir()
        lock.write_text(OLD)
        status, taken = run(words, output, Disk(room, once=how == "once"))
        result: dict[str, Any] = {"room": room, "status": status}
        result |= {"output": output.read_text(), "after": lock.read_text()}
        result["undisturbed"] = run(words, output)[0] if not room % 5 else 0
        result["left"] = [str(path) for path in [*(base / "tmp").iterdir(), *base.glob(".imgkit-*")]]
        results.append(result)
        if 0 <= taken <= room:
            break
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
