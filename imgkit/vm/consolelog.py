"""Follow the console file of a running machine, which QEMU writes and this process reads as it grows.

    with closing(ConsoleLog(path)) as log:
        start QEMU with log.writing
        log.refresh()
        print(log.text)

Both use descriptors that were opened here before the machine was started, so it does not matter which file has the
name later.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from imgkit.errors import HostError, UsageError
from imgkit.vm import console
from imgkit.vm.console import Stage

KEEP = 256 << 10
"""Bytes from the end of the console that are kept in memory and looked at."""
MAX_FILE = 64 << 20
"""Bytes of one machine's part of the file. A longer part is emptied: a guest must not fill the host's disk."""
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last two if it is not a regular file
_MAX_LINKS = 40  # as many as Linux follows


class ConsoleLog:
    """Follows a file that QEMU appends to. What was in the file before is an earlier machine's, and is not looked at.

    Attributes:
        text: the end of the console so far, without control sequences.
        stage: the furthest stage that the console has shown.
        times: seconds from the start until each stage showed.
        writing: the file descriptor for QEMU, opened for appending.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is missing.

        Args:
            path: its last part must not be a symbolic link.

        Raises:
            HostError: the file cannot be opened.
            UsageError: the path is not that of a regular file.
        """
        self.text = ""
        self.stage = Stage.NOTHING
        self.times: dict[Stage, float] = {}
        self._raw = b""
        self._lock = threading.Lock()  # the monitor's thread shortens what this one reads
        self._closed = False
        self.writing, self._reading = _opened(path)
        self._begin = self._offset = os.fstat(self._reading).st_size
        self._started = self._changed = time.monotonic()

    @property
    def quiet(self) -> float:
        """Seconds since the console last grew."""
        return time.monotonic() - self._changed

    def refresh(self) -> bool:
        """Read what is new, at most a MiB. Returns True if there was something."""
        with self._lock:
            return not self._closed and self._read()

    def shorten(self) -> None:
        """Empty this machine's part of the file if it is longer than :data:`MAX_FILE`. Its end is read before."""
        with self._lock:
            if self._closed or os.fstat(self._reading).st_size - self._begin <= MAX_FILE:
                return
            self._offset = max(self._offset, os.fstat(self._reading).st_size - KEEP)
            self._read()
            self._empty()

    def close(self) -> None:
        """Close the descriptors. What was read stays."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.writing)
                os.close(self._reading)

    def _read(self) -> bool:
        data = os.pread(self._reading, KEEP * 4, self._offset)
        if not data:
            return False
        self._offset += len(data)
        if self._offset - self._begin > MAX_FILE:
            self._empty()
        self._changed = time.monotonic()
        self._raw = (self._raw + data)[-KEEP:]  # not cleaned: a control sequence may come in two pieces
        self.text = console.clean(self._raw.decode(errors="replace"))
        for reached in console.stages(self.text):
            if reached > self.stage:  # several at once, if nobody looked for a while
                self.stage = reached
                self.times[reached] = self._changed - self._started
        return True

    def _empty(self) -> None:
        # A QEMU that was not asked to append has switched that off, for all who share the open file.
        flags = fcntl.fcntl(self.writing, fcntl.F_GETFL)
        fcntl.fcntl(self.writing, fcntl.F_SETFL, flags | os.O_APPEND)
        os.ftruncate(self.writing, self._begin)
        self._offset = self._begin


def _opened(path: Path) -> tuple[int, int]:
    """Open a regular file, and return two descriptors: for appending, which QEMU gets, and for reading."""
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE, 0o666))
        _check_regular(path, descriptors[0])
        descriptors.append(os.open(path, os.O_RDONLY | _SAFE))
        if not os.path.samestat(*map(os.fstat, descriptors)):
            raise HostError(f"{path}: was exchanged while it was opened")
    except BaseException as cause:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(cause, OSError):
            raise HostError(f"{path}: cannot be written to and read: {cause.strerror}") from cause
        raise
    return descriptors[0], descriptors[1]


def _check_regular(path: Path, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError(f"{path}: no regular file, so no place for a console")


def folders_on_the_way(path: Path) -> Iterator[Path]:
    """Yield each folder that is passed on the way to ``path``, including those behind symbolic links.

    Whoever may write to one of them decides which file ``path`` is.

    Raises:
        OSError: a link cannot be read, or there are more links than Linux follows.
    """
    path = path.absolute()
    for _ in range(_MAX_LINKS):
        steps = [*reversed(path.parents), path]
        yield from steps[:-1]
        link = next((step for step in steps if step.is_symlink()), None)
        if link is None:
            return
        path = link.parent / os.readlink(link) / path.relative_to(link)  # noqa: PTH115 - joined, not resolved
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
