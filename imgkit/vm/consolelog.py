"""Follow the console file of a running machine, which QEMU writes and this process reads as it grows.

    with closing(ConsoleLog(path)) as log:
        start QEMU with log.writing
        log.refresh()
        print(log.text)

Both use descriptors that were opened before the machine was started, so it does not matter which file the name refers
to later.
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
"""Number of bytes at the end of the console that are kept in memory and searched for messages."""
MAX_FILE = 64 << 20
"""Maximum length of one machine's part of the file, in bytes. A longer part is emptied, because a guest must not fill
the host's disk."""
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last two if it is not a regular file
_MAX_LINKS = 40  # as many as Linux follows


class ConsoleLog:
    """Follows a file that QEMU appends to. Text of earlier machines in the file is ignored.

    Attributes:
        text: the end of the console so far, without control sequences.
        stage: the furthest stage that the console has shown.
        times: seconds from the start until each stage showed.
        writing: the file descriptor for QEMU, opened for appending.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and create it if it is missing.

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
        self._lock = threading.Lock()  # the monitor's thread shortens the file that this thread reads
        self._closed = False
        self.writing, self._reading = _opened(path)
        self._begin = self._offset = os.fstat(self._reading).st_size
        self._started = self._changed = time.monotonic()

    @property
    def quiet(self) -> float:
        """Seconds since the console last grew."""
        return time.monotonic() - self._changed

    def refresh(self) -> bool:
        """Read up to 1 MiB of new text. Return True if there was any."""
        with self._lock:
            return not self._closed and self._read()

    def shorten(self) -> None:
        """Empty this machine's part of the file if it is longer than :data:`MAX_FILE`, after reading the end of it."""
        with self._lock:
            if self._closed or os.fstat(self._reading).st_size - self._begin <= MAX_FILE:
                return
            self._offset = max(self._offset, os.fstat(self._reading).st_size - KEEP)
            self._read()
            self._empty()

    def close(self) -> None:
        """Close the descriptors. ``text``, ``stage`` and ``times`` keep their values."""
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
            if reached > self.stage:  # several at once, if the file was not read for a while
                self.stage = reached
                self.times[reached] = self._changed - self._started
        return True

    def _empty(self) -> None:
        # A QEMU that was started without append mode has switched it off for every descriptor of the open file.
        flags = fcntl.fcntl(self.writing, fcntl.F_GETFL)
        fcntl.fcntl(self.writing, fcntl.F_SETFL, flags | os.O_APPEND)
        os.ftruncate(self.writing, self._begin)
        self._offset = self._begin


def _opened(path: Path) -> tuple[int, int]:
    """Open a regular file, and return a descriptor for appending, which is for QEMU, and one for reading."""
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
    """Yield every folder that the lookup of ``path`` passes through, including those behind symbolic links.

    A user who may write to one of them decides which file ``path`` refers to.

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
