"""Read contents of a Tree in several threads, and open each file of the host once::

    with SharedFiles() as files:
        files.read_into(view, content, start)

Most contents of a Tree are parts of a few large files, into which packages were unpacked, but there may be any number
of files; so those that were not read for the longest time are closed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from imgkit.errors import HostError
from imgkit.tree.nodes import Content, Slice

_MOST_OPEN = 64  # files that stay open though nobody reads them
_SKIPPED = 1 << 20  # bytes that are skipped at a time


@dataclass
class _Open:
    """An open file, and how many threads are reading it."""

    descriptor: int
    readers: int = 0


class SharedFiles:
    """Files of the host that are open for reading. Leaving the block closes them; no thread may read then."""

    def __init__(self) -> None:
        self._open: dict[Path, _Open] = {}  # the one that was not used for the longest time first
        self._lock = threading.Lock()

    def __enter__(self) -> SharedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def read_into(self, view: memoryview, content: Content, start: int) -> None:
        """Fill ``view`` with the bytes of ``content`` from ``start`` on.

        Raises:
            HostError: the content cannot be read, or is shorter than it was.
        """
        try:
            if isinstance(content, Slice):
                self._read_slice(view, content.path, content.offset + start)
            else:
                _read_stream(view, content, start)
        except EOFError as cause:
            raise changed(content) from cause
        except OSError as cause:
            raise HostError(f"{_name(content)}: cannot be read: {cause.strerror}") from cause

    def sha256(self, content: Content, buffer: memoryview) -> bytes:
        """Return the SHA-256 of a whole content, which is read through ``buffer``.

        Raises:
            HostError: the content cannot be read, or is shorter than it was.
        """
        digest = hashlib.sha256()
        for start in range(0, content.size, len(buffer)):
            part = buffer[: min(len(buffer), content.size - start)]
            self.read_into(part, content, start)
            digest.update(part)
        return digest.digest()

    def stamp(self, content: Content) -> object:
        """Return what is different when the file that has a content was written to: its size and times.

        Raises:
            HostError: the file cannot be opened.
        """
        if not isinstance(content, Slice):
            return None
        try:
            with self._reading(content.path) as descriptor:
                status = os.fstat(descriptor)
        except OSError as cause:
            raise HostError(f"{_name(content)}: cannot be read: {cause.strerror}") from cause
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _read_slice(self, view: memoryview, path: Path, offset: int) -> None:
        with self._reading(path) as descriptor:
            while view:
                count = os.preadv(descriptor, [view], offset)
                if not count:
                    raise EOFError
                view, offset = view[count:], offset + count

    @contextmanager
    def _reading(self, path: Path) -> Iterator[int]:
        """Yield a descriptor of a file, which stays open during the block."""
        with self._lock:
            file = self._open.pop(path, None) or _Open(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._open[path] = file
            file.readers += 1
            self._close_idle()
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.readers -= 1

    def _close_idle(self) -> None:
        """Close the files that were not used for the longest time, as long as there are too many."""
        if len(self._open) <= _MOST_OPEN:
            return
        for path, file in list(self._open.items())[: len(self._open) - _MOST_OPEN]:
            if not file.readers:
                del self._open[path]
                os.close(file.descriptor)


def _read_stream(view: memoryview, content: Content, start: int) -> None:
    with content.open() as source:
        if source.seekable():
            source.seek(start)
        else:
            while start > 0 and (skipped := len(source.read(min(start, _SKIPPED)))):
                start -= skipped
        while view:
            data = source.read(len(view))
            if not data:
                raise EOFError
            view[: len(data)] = data
            view = view[len(data) :]


def changed(content: Content) -> HostError:
    """Return the error for a content that is not what it was when the Tree was made."""
    return HostError(f"{_name(content)}: changed while the image was made", hint="build the image again")


def _name(content: Content) -> str:
    return str(content.path) if isinstance(content, Slice) else "a file of the image"
