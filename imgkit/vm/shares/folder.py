"""Folders shared with a guest, handled as hostile ground.

The guest can put anything into a share at any moment: links to the host's own files, FIFOs, enormous files, a link
where a folder was. So host code reaches into one only through :class:`SharedFolder`: every step is an open relative to
a descriptor that does not follow links, only regular files are read, and sizes are bounded.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgkit.errors import GuestError, HostError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ShareError(GuestError):
    """Something in a share is not what it must be: a link, a device, too big, a path that leaves the share."""


def split_path(path: str) -> list[str]:
    """The parts of a relative path, each a plain name.

    Raises:
        ShareError: it is absolute, empty, or has ``.``, ``..``, empty parts, NUL or a backslash in it.
    """
    names = path.split("/")
    if any(name in ("", ".", "..") or "\0" in name or "\\" in name for name in names) or len(path) > 4096:
        raise ShareError(f"{path[:200]!r} is not a path inside the share")
    return names


def _made(name: str, parent: int) -> bool:
    """Make a folder; whether it was not there."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o777, dir_fd=parent)
        return True
    return False


class SharedFolder:
    """One shared folder. Paths given to its methods are relative to it and use ``/``."""

    def __init__(self, path: Path) -> None:
        """Raises HostError if ``path`` is not a folder (or, itself, a link: name its target instead)."""
        self.path = path
        try:
            self._top = os.open(path.resolve(), _DIRECTORY)
            status = os.fstat(self._top)
            self._owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid != 0 else None
        except OSError as cause:
            raise HostError(f"{path}: cannot be shared: {cause.strerror}") from cause

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        top, self._top = self._top, -1
        if top >= 0:
            os.close(top)

    @contextmanager
    def _parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that ``path`` is in, reached without following a link, and the last name."""
        *folders, name = split_path(path)
        here = os.dup(self._top)
        try:
            for folder in folders:
                made = create and _made(folder, here)
                below = os.open(folder, _DIRECTORY, dir_fd=here)
                if made and not os.listdir(below):  # noqa: PTH208 - another may be in its place by now
                    self._give(below)
                os.close(here)
                here = below
            yield here, name
        except OSError as cause:
            if cause.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ShareError(f"{path}: a link or file is where a folder must be") from cause
            raise
        finally:
            os.close(here)

    def _give(self, descriptor: int) -> None:
        """What root puts into somebody's folder is that one's: QEMU may not be root, and could not read it."""
        if self._owner is not None:
            with suppress(PermissionError):  # a root without capabilities
                os.fchown(descriptor, *self._owner)

    def mkdir(self, path: str) -> None:
        """Make the folder ``path``, parents included; whatever else is in its place is an error."""
        with self._parent(f"{path}/x", create=True):
            pass

    def size(self, path: str) -> int | None:
        """Size in bytes of the regular file at ``path``; None if there is none."""
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def read(self, path: str, *, offset: int = 0, limit: int) -> bytes | None:
        """Up to ``limit`` bytes from ``offset`` of the regular file at ``path``; None if there is none.

        Raises:
            ShareError: it is no regular file, or a link is on the way.
        """
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            try:
                descriptor = os.open(name, _READ, dir_fd=folder)
            except OSError as cause:
                if cause.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
                    raise ShareError(f"{path}: not a regular file") from cause
                raise
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ShareError(f"{path}: not a regular file")
                return os.pread(descriptor, limit, offset)
            finally:
                os.close(descriptor)
        return None

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file as a whole: a new file under a temporary name, renamed over whatever was there.

        Parents are made. The temporary name starts with a dot and does not end in ``.json``.

        Raises:
            ShareError: a link is on the way, or a folder is in the place of the file.
        """
        with self._parent(path, create=True) as (folder, name):
            temporary = f".{secrets.token_hex(8)}.tmp"
            descriptor = os.open(temporary, _CREATE, mode, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    self._give(descriptor)
                    sink.write(data)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as cause:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                if cause.errno in (errno.EISDIR, errno.ENOTEMPTY):
                    raise ShareError(f"{path}: a folder is where a file must be") from cause
                raise

    def remove(self, path: str) -> None:
        """Remove the file or link at ``path`` if there is one; a folder stays."""
        with suppress(OSError, ShareError), self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)
