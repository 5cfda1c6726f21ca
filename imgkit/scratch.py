"""Folders for scratch files, which go away with their work, however that ends.

A folder that its block could not remove (an interrupt can strike in the middle of any cleaning up) is removed by
:func:`remove_all` at the end of the process. What a process leaves that was killed outright is removed by the next one
that wants scratch space in the same place: whoever lives holds a lock on its folder, and the kernel takes that back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("imgkit")

_PATIENCE = 2.0  # seconds to wait for the lock of a place; whoever holds it longer is not one of us

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
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    path = place.absolute() / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    _folders[path] = None  # known before it is there: an interrupt may come in between
    try:
        with alone(path.parent) as locked:  # so that nobody takes the new folder for a dead one's
            path.mkdir(mode=0o700)
            _folders[path] = _locked(path)
            if locked:
                _remove_dead(path.parent, prefix)
        yield path
    finally:
        _remove(path)


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
    for path in [*_folders, *_removed]:
        _remove(path)
    _removed.clear()
    _remove_empty(list(_parents))


def remove_tree(path: Path) -> None:
    """Remove a folder of this user's with all that is in it, folders without permissions included.

    Links are not followed. What still writes to it (a download that was given up) must end soon.
    """
    deadline = time.monotonic() + _PATIENCE
    _try_to_remove(path)
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        _try_to_remove(path)
    if path.exists():
        log.warning("%s: could not be removed", path)


def _try_to_remove(path: Path) -> None:
    for here, names, _ in os.walk(path):
        for name in names:
            child = Path(here, name)
            if not child.is_symlink():
                with suppress(OSError):
                    child.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.exists():
        remove_tree(path)
    _unlock(_folders.pop(path, None))
    _removed.append(path)


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        with suppress(OSError):  # others have put something there, or it was never made
            path.rmdir()
        with suppress(ValueError):
            _parents.remove(path)


def _remove_dead(place: Path, prefix: str) -> None:
    """Remove the folders in ``place`` whose process is no more. The caller holds the lock of ``place``."""
    ours = re.compile(re.escape(prefix) + r"[0-9]+-[0-9a-f]{8}")
    for path in place.iterdir():
        if not ours.fullmatch(path.name) or path in _folders or path.is_symlink() or not path.is_dir():
            continue
        descriptor = _locked(path)
        if descriptor is not None:
            log.info("%s: left by a build that was killed, removed", path)
            remove_tree(path)
            _unlock(descriptor)


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
