"""The console file of a running machine: opened once, written by QEMU, read as it grows.

Both use descriptors that were opened here, before the machine was started: what has the file's name by the time that
somebody looks does not matter.
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
"""Bytes from the end that are looked at."""
MAX_FILE = 64 << 20
"""Bytes of one machine after which its part of the file is begun anew: a guest must not fill the host's disk."""
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last two for what turns out to be no file
_LINKS = 40  # as many as Linux follows


class ConsoleLog:
    """Follows a file that QEMU writes to. What was in it before is an earlier machine's, and is not looked at.

    ``times`` has the seconds since the start at which each stage showed; ``writing`` is the descriptor for QEMU, which
    appends.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is not there.

        Args:
            path: without links, at least in its last part.

        Raises:
            HostError: it cannot be opened. UsageError: it is no regular file.
        """
        self.text = ""
        self.stage = Stage.NOTHING
        self.times: dict[Stage, float] = {}
        self._raw = b""
        self._lock = threading.Lock()  # the watcher's thread shortens what this one reads
        self._closed = False
        self.writing, self._reading = _opened(path)
        self._begin = self._offset = os.fstat(self._reading).st_size
        self._started = self._changed = time.monotonic()

    @property
    def quiet(self) -> float:
        """Seconds since the console last grew."""
        return time.monotonic() - self._changed

    def refresh(self) -> bool:
        """Read what is new; whether there was something."""
        with self._lock:
            return not self._closed and self._read()

    def shorten(self) -> None:
        """Begin this machine's part of the file anew if it is too long, whether somebody reads it or not."""
        with self._lock:
            if self._closed or os.fstat(self._reading).st_size - self._begin <= MAX_FILE:
                return
            self._offset = max(self._offset, os.fstat(self._reading).st_size - KEEP)
            self._read()
            self._empty()

    def close(self) -> None:
        """Give back the descriptors. What was read stays."""
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
        self._raw = (self._raw + data)[-KEEP:]  # uncleaned: a control sequence may come in two pieces
        self.text = console.clean(self._raw.decode(errors="replace"))
        for reached in console.stages(self.text):
            if reached > self.stage:  # several at once, when nobody looked for a while
                self.stage = reached
                self.times[reached] = self._changed - self._started
        return True

    def _empty(self) -> None:
        # Where QEMU was not asked to append (style "host-app") it has switched that off, for all who share the file.
        flags = fcntl.fcntl(self.writing, fcntl.F_GETFL)
        fcntl.fcntl(self.writing, fcntl.F_SETFL, flags | os.O_APPEND)
        os.ftruncate(self.writing, self._begin)
        self._offset = self._begin


def _opened(path: Path) -> tuple[int, int]:
    """Descriptors of one regular file: for appending, which is all that QEMU gets, and for reading."""
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
    """Each folder that is passed on the way to ``path``, those behind links included.

    Whoever may write to one of them decides what ``path`` is.

    Raises:
        OSError: there is no end of links, or one cannot be read.
    """
    path = path.absolute()
    for _ in range(_LINKS):
        steps = [*reversed(path.parents), path]
        yield from steps[:-1]
        link = next((step for step in steps if step.is_symlink()), None)
        if link is None:
            return
        path = link.parent / os.readlink(link) / path.relative_to(link)  # noqa: PTH115 - joined, not resolved
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
