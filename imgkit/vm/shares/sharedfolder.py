"""Read and write files in a folder that is shared with a guest, without trusting what the guest put there.

The guest can put anything into a share at any moment: a link to a file of the host, a FIFO, an enormous file, or a link
in place of a folder. Host code therefore accesses a share only through :class:`SharedFolder`, which opens every part of
a path relative to the descriptor of the folder above without following links, reads regular files only, and never reads
more bytes than the caller allows::

    folder = SharedFolder(Path("work"))
    folder.write("results/summary.txt", b"done")
    data = folder.read("results/summary.txt", limit=1 << 20)
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

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH = 4096  # characters


class ShareError(GuestError):
    """A path leaves the share, or something in the share is a link, a device or a folder where it must not be."""


def split_path(path: str) -> list[str]:
    """Split a relative path into the names of its folders and its file.

    Raises:
        ShareError: the path is absolute, empty or longer than 4096 characters, or one of its parts is empty, ``.`` or
            ``..``, or contains NUL or a backslash.
    """
    names = path.split("/")
    if any(name in ("", ".", "..") or "\0" in name or "\\" in name for name in names) or len(path) > _MAX_PATH:
        raise ShareError(f"{path[:200]!r} is not a path inside the share")
    return names


def _make_folder(name: str, parent: int) -> bool:
    """Make a folder in ``parent`` unless something of that name exists. Return whether it was made."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o777, dir_fd=parent)
        return True
    return False


class SharedFolder:
    """A shared folder. Paths are relative to it and are separated by ``/``.

    All methods but :meth:`close` and :meth:`remove` raise ShareError for a path that :func:`split_path` refuses or that
    leads through a link or a file, and OSError if the filesystem fails.
    """

    def __init__(self, path: Path) -> None:
        """Open the folder ``path``. If ``path`` itself is a link, the folder that it leads to is opened.

        Raises:
            HostError: ``path`` is not a folder, or cannot be opened.
        """
        self.path = path
        try:
            self._top = os.open(path.resolve(), _OPEN_DIRECTORY)
            status = os.fstat(self._top)
            self._owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid != 0 else None
        except OSError as cause:
            raise HostError(f"{path}: cannot be shared: {cause.strerror}") from cause

    def close(self) -> None:
        """Close the folder. It may be closed twice."""
        top, self._top = self._top, -1
        if top != -1:
            os.close(top)

    @contextmanager
    def _parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that ``path`` is in without following links; yield its descriptor and the last name."""
        *folders, name = split_path(path)
        current = os.dup(self._top)
        try:
            for folder in folders:
                created = create and _make_folder(folder, current)
                child = os.open(folder, _OPEN_DIRECTORY, dir_fd=current)
                if created and not os.listdir(child):  # noqa: PTH208 - the guest may have replaced the folder by now
                    self._change_owner(child)
                os.close(current)
                current = child
            yield current, name
        except OSError as cause:
            if cause.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ShareError(f"{path}: a link or file is where a folder must be") from cause
            raise
        finally:
            os.close(current)

    def _change_owner(self, descriptor: int) -> None:
        """Give what root made to the owner of the shared folder: QEMU runs as the owner and must be able to read it."""
        if self._owner is not None:
            with suppress(PermissionError):  # this root lacks the capability, as in some containers
                os.fchown(descriptor, *self._owner)

    def mkdir(self, path: str) -> None:
        """Make the folder ``path`` and the folders above it. Folders that exist already are left as they are.

        Raises:
            ShareError: a link or a file is in the place of a folder.
        """
        with self._parent(f"{path}/x", create=True):
            pass

    def size(self, path: str) -> int | None:
        """Return the size of the regular file at ``path`` in bytes; None if there is no such file."""
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def read(self, path: str, *, offset: int = 0, limit: int) -> bytes | None:
        """Return up to ``limit`` bytes, from ``offset``, of the regular file at ``path``; None if there is no file.

        Raises:
            ShareError: it is not a regular file, or a link is on the way.
        """
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            try:
                descriptor = os.open(name, _OPEN_READ, dir_fd=folder)
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
        """Write a file atomically: write a new file under a temporary name, and rename it to ``path``.

        The folders above are made if they are missing. A file or link at ``path`` is replaced. The temporary name
        starts with a dot and does not end in ``.json``, so that agentd does not take it for a request.

        Raises:
            ShareError: a link is on the way, or a folder is in the place of the file.
        """
        with self._parent(path, create=True) as (folder, name):
            temporary = f".{secrets.token_hex(8)}.tmp"
            descriptor = os.open(temporary, _OPEN_CREATE, mode, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    self._change_owner(descriptor)
                    sink.write(data)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as cause:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                if cause.errno in (errno.EISDIR, errno.ENOTEMPTY):
                    raise ShareError(f"{path}: a folder is where a file must be") from cause
                raise

    def remove(self, path: str) -> None:
        """Remove the file or link at ``path``. A folder is left alone, and failures are ignored."""
        with suppress(OSError, ShareError), self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)
