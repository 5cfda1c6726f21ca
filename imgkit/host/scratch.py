"""Folders for scratch files, which are removed when the work in them ends or fails::

    with scratch.folder(out, ".imgkit-") as work:
        (work / "disk.raw").write_bytes(data)

A block may fail to remove its folder, since an interrupt can come in the middle of any cleanup; :func:`remove_all`
removes what is left at the end of the process. If a process is killed outright, its folders are removed by the next
process of the same user that makes a scratch folder in the same place: a living process holds a lock on each of its
folders, and the kernel releases the locks of a dead process.

The place may be ``/tmp``, where other users may make links, folders of the same name, and locks that they never
release. For that reason nothing here waits long for a lock of the place, a folder is examined through a descriptor
that was opened without following links, and only what belongs to this user is removed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgkit.errors import HostError
from imgkit.host import locks, lookup, walk

log = logging.getLogger("imgkit")

_LOCK_TIMEOUT = 2.0  # seconds to wait for the lock of a place; no process of imgkit holds it longer
_REMOVAL_TIMEOUT = 2.0  # seconds to repeat the removal of a folder that something still writes to
_ATTEMPTS = 10  # names that are tried for a new folder
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_folders: dict[Path, int | None] = {}  # scratch folders of this process, each with the descriptor that holds its lock
_removed: list[Path] = []  # former scratch folders of this process
_parents: list[Path] = []  # folders that :func:`parents` has made, outermost first


@contextmanager
def folder(place: Path | None = None, prefix: str = "imgkit-") -> Iterator[Path]:
    """Make a folder in ``place`` that only this user may enter, and remove it when the block ends.

    Args:
        place: an existing folder; None takes the one for temporary files.
        prefix: how the name of the folder begins. Folders in ``place`` with the same prefix whose process is dead are
            removed.

    Raises:
        HostError: there is no folder for temporary files.
        OSError: the folder cannot be made.
    """
    place = temporary() if place is None else place
    path = None
    try:
        path = _make(place.absolute(), prefix)
        remove_dead(path.parent, prefix)
        yield path
    finally:
        if path is not None:
            _remove(path)


def _make(place: Path, prefix: str) -> Path:
    """Make a folder whose lock this process holds.

    Before the new folder is locked another process may take it for one of a dead process, and remove it. Then the next
    name is tried.
    """
    for _ in range(_ATTEMPTS):
        path = place / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        _folders[path] = None  # noted before it exists, since an interrupt may come in between
        try:
            path.mkdir(mode=0o700)
            _folders[path] = descriptor = _claim(path)
        except (FileExistsError, FileNotFoundError, BlockingIOError):
            _folders.pop(path)
            if not place.is_dir():
                raise
            continue
        except OSError:
            _folders.pop(path)
            raise
        if descriptor is None or os.fstat(descriptor).st_nlink:
            return path
        _unlock(_folders.pop(path))
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place / f"{prefix}*"))


def temporary() -> Path:
    """Return the folder for temporary files, chosen as :func:`tempfile.gettempdir` does, but without writing to it.

    That function makes a file in each candidate to try it. A process that is killed leaves that file behind, and on a
    full disk the function chooses the current folder.

    Raises:
        HostError: this user may write to none of the candidates.
    """
    candidates = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    for place in (*candidates, "/tmp", "/var/tmp"):  # noqa: S108 - the names of the folders that are made there cannot be guessed
        if place and lookup.sees_folder(Path(place)) and os.access(place, os.W_OK | os.X_OK):
            return Path(place).absolute()
    raise HostError("no folder for temporary files may be written to", hint="set TMPDIR to one that may")


@contextmanager
def alone(place: Path) -> Iterator[bool]:
    """Hold the lock of the folder ``place`` during a short block.

    Yields:
        Whether the lock could be taken. The block must be harmless without it.
    """
    descriptor = _locked(place)
    try:
        yield descriptor is not None
    finally:
        _unlock(descriptor)


@contextmanager
def parents(path: Path) -> Iterator[None]:
    """Make the folder ``path`` and its parents for the block; those that are new and empty at its end are removed.

    Raises:
        OSError: a folder cannot be made.
    """
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    _parents.extend(missing)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        _remove_empty(missing)


def remove_all() -> None:
    """Remove every scratch folder of this process that still exists. Call it at the end of the process."""
    for path in list(_folders):
        _remove(path)
    for path in _removed:  # a folder that could not be removed, or that something has made again
        if _is_ours(path):
            walk.remove(path)
    _removed.clear()
    _remove_empty(list(_parents))


def _remove_tree(path: Path) -> None:
    """Remove a folder of this user with everything in it; see :func:`imgkit.host.walk.remove`.

    The removal is repeated for two seconds, for a folder that something still writes to (a download that was given up).
    A folder that cannot be removed is logged.
    """
    if walk.remove(path):
        return
    deadline = time.monotonic() + _REMOVAL_TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if walk.remove(path):
            return
    log.warning("%s: could not be removed", path)


def _remove(path: Path) -> None:
    if _is_ours(path):
        _remove_tree(path)
    _unlock(_folders.pop(path, None))
    _removed.append(path)


def _is_ours(path: Path) -> bool:
    """Return whether the folder exists and belongs to this user, since another user may have taken its name."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        with suppress(OSError):  # it has something in it, or was never made
            path.rmdir()
        with suppress(ValueError):
            _parents.remove(path)


def remove_dead(place: Path, prefix: str) -> None:
    """Remove those scratch folders of this user in ``place`` whose process is dead."""
    scratch_name = re.compile(re.escape(prefix) + r"[0-9]+-[0-9a-f]{8}")
    with suppress(OSError), os.scandir(place) as entries:
        names = [entry.name for entry in entries if scratch_name.fullmatch(entry.name)]
        for name in names:
            if place / name not in _folders:
                with suppress(OSError):
                    _remove_if_dead(place, name)


def _remove_if_dead(place: Path, name: str) -> None:
    """Remove one scratch folder if its process is dead.

    Raises:
        OSError: the name is that of a link or a file, or another process holds the lock of the folder.
    """
    above = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = os.open(name, _FOLDER, dir_fd=above)
        try:
            if os.fstat(folder).st_uid != os.geteuid():
                return
            locks.acquire(folder, timeout=0)
            log.info("%s: left by a process that was killed, removed", place / name)
            walk.empty(folder)
            os.rmdir(name, dir_fd=above)
        finally:
            os.close(folder)
    finally:
        os.close(above)


def _claim(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a new folder, or None if the filesystem has no locks.

    Raises:
        BlockingIOError: another process has the lock.
        FileNotFoundError: the folder is gone.
    """
    descriptor = os.open(path, _FOLDER)
    try:
        locks.acquire(descriptor, timeout=0)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder; None if another process keeps it or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        locks.acquire(descriptor, timeout=_LOCK_TIMEOUT)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)
