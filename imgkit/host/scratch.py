"""Folders for scratch files, which go away with their work, however that ends.

A folder that its block could not remove (an interrupt can strike in the middle of any cleaning up) is removed by
:func:`remove_all` at the end of the process. What a process leaves that was killed outright is removed by the next one
of the same user that wants scratch space in the same place: whoever lives holds a lock on its folder, and the kernel
takes that back.

The place may be ``/tmp``, where other users make what they like: links, folders of the same name, locks that they never
give back. So nothing here waits for a lock of the place, a folder is looked at through a descriptor that followed no
link, and only what belongs to this user is removed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgkit.errors import HostError
from imgkit.host import walk

log = logging.getLogger("imgkit")

_PATIENCE = 2.0  # seconds to wait for the lock of a place; whoever holds it longer is not one of us
_TRIES = 10  # names that are tried for a new folder
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_folders: dict[Path, int | None] = {}  # those of this process, each with the descriptor that holds its lock
_removed: list[Path] = []  # those that were this process's
_parents: list[Path] = []  # made by this process, outermost first


@contextmanager
def folder(place: Path | None = None, prefix: str = "imgkit-") -> Iterator[Path]:
    """A new folder in ``place`` that only this user may enter, removed when the block ends.

    Args:
        place: an existing folder; None is that for temporary files.
        prefix: how the names of such folders begin; those of dead processes in ``place`` are removed.

    Raises:
        HostError: there is no folder for temporary files.
        OSError: it cannot be made.
    """
    place = temporary() if place is None else place
    path = None
    try:
        path = _make(place.absolute(), prefix)
        _remove_dead(path.parent, prefix)
        yield path
    finally:
        if path is not None:
            _remove(path)


def _make(place: Path, prefix: str) -> Path:
    """A new folder whose lock this process holds.

    Between its making and its locking another process may take it for a dead one's: then there is another try.
    """
    for _ in range(_TRIES):
        path = place / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        _folders[path] = None  # known before it is there: an interrupt may come in between
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
    """The folder for temporary files: as :func:`tempfile.gettempdir` chooses it, but from what may be written to.

    That function makes a file in each folder to try it, which a process that is killed leaves there, and ends up in the
    current folder when the disk is full.

    Raises:
        HostError: there is none that this user may write to.
    """
    named = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    for place in (*named, "/tmp", "/var/tmp"):  # noqa: S108 - only folders with names that nobody guesses are made there
        if place and Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK):
            return Path(place).absolute()
    raise HostError("no folder for temporary files may be written to", hint="set TMPDIR to one that may")


@contextmanager
def alone(place: Path) -> Iterator[bool]:
    """Hold the lock of the folder ``place`` for a moment; False where that cannot be had, which must do no harm."""
    descriptor = _locked(place, patience=_PATIENCE)
    try:
        yield descriptor is not None
    finally:
        _unlock(descriptor)


@contextmanager
def parents(path: Path) -> Iterator[None]:
    """Have the folder ``path`` during the block. If it was made here and is empty at the end, it goes again.

    Raises:
        OSError: it cannot be made.
    """
    path = path.absolute()
    missing = [one for one in (path, *path.parents) if not one.exists()][::-1]
    _parents.extend(missing)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        _remove_empty(missing)


def remove_all() -> None:
    """Remove every folder of this process that is still there. For the very end of a process."""
    for path in list(_folders):
        _remove(path)
    for path in _removed:  # what came back since then, or could not be removed and was named in a warning
        if _is_ours(path):
            walk.remove(path)
    _removed.clear()
    _remove_empty(list(_parents))


def remove_tree(path: Path) -> None:
    """Remove a folder of this user's with all that is in it; see :func:`imgkit.host.walk.remove`.

    What still writes to it (a download that was given up) must end soon. What cannot be removed is logged.
    """
    if walk.remove(path):
        return
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if walk.remove(path):
            return
    log.warning("%s: could not be removed", path)


def _remove(path: Path) -> None:
    if _is_ours(path):
        remove_tree(path)
    _unlock(_folders.pop(path, None))
    _removed.append(path)


def _is_ours(path: Path) -> bool:
    """Whether there is such a folder and it is this user's. Whoever took the name since then keeps what is theirs."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        with suppress(OSError):  # others have put something there, or it was never made
            path.rmdir()
        with suppress(ValueError):
            _parents.remove(path)


def _remove_dead(place: Path, prefix: str) -> None:
    """Remove the folders in ``place`` whose process is no more, as far as they are this user's."""
    ours = re.compile(re.escape(prefix) + r"[0-9]+-[0-9a-f]{8}")
    with suppress(OSError), os.scandir(place) as entries:
        names = [entry.name for entry in entries if ours.fullmatch(entry.name)]
        for name in names:
            if place / name not in _folders:
                with suppress(OSError):
                    _remove_if_dead(place, name)


def _remove_if_dead(place: Path, name: str) -> None:
    """Raises OSError: it is a link, a file, or another process has its lock."""
    above = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = os.open(name, _FOLDER, dir_fd=above)
        try:
            if os.fstat(folder).st_uid != os.geteuid():
                return
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.info("%s: left by a process that was killed, removed", place / name)
            walk.empty(folder)
            os.rmdir(name, dir_fd=above)
        finally:
            os.close(folder)
    finally:
        os.close(above)


def _claim(path: Path) -> int | None:
    """A descriptor that holds the lock of a new folder, or None where there are no locks.

    Raises:
        BlockingIOError: another process has the lock. FileNotFoundError: the folder is gone.
    """
    descriptor = os.open(path, _FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _locked(path: Path, patience: float = 0) -> int | None:
    """A descriptor that holds the lock of a folder, or None where another has it or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
        time.sleep(0.02)


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)
