"""What a guest left in a share that would give rights, taken away afterwards.

It is for hosts where it cannot be prevented (:mod:`imgkit.vm.callfilter`), and runs when the guest is gone.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = getattr(os, "O_PATH", 0)
_SPECIAL = stat.S_ISUID | stat.S_ISGID


@dataclass
class _Level:
    """A folder on the way down: which one it is, and what of it is still to be looked at."""

    name: str
    identity: tuple[int, int]
    names: list[str]


def drop_special_bits(folder: Path, *, since: float) -> list[Path]:
    """Take set-user-id and set-group-id from files, and device nodes away, if they changed after ``since`` (Unix time).

    Folders may be nested as deeply as they like: one descriptor is open at a time.

    Returns:
        What was changed or removed.

    Raises:
        OSError: ``folder`` cannot be read, or somebody moved a part of it away meanwhile.
    """
    changed = []
    here = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        levels = [_level("", here)]
        while levels:
            if not levels[-1].names:
                levels.pop()
                here, last = _up(here, levels), here
                os.close(last)
                continue
            name = levels[-1].names.pop()
            if _defused(name, here, since):
                changed.append(Path(folder, *(level.name for level in levels), name))
            below = _below(name, here, since)
            if below is not None:
                os.close(here)
                here = below
                levels.append(_level(name, here))
    finally:
        if here >= 0:
            os.close(here)
    return changed


def _level(name: str, folder: int) -> _Level:
    return _Level(name, _identity(folder), os.listdir(folder))


def _below(name: str, folder: int, since: float) -> int | None:
    """The folder ``name``, if it is one. One that its owner may not list is opened to the owner if it is new."""
    with suppress(OSError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            return None
        if status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_ctime >= since - 1:
            _chmod(name, stat.S_IMODE(status.st_mode) | stat.S_IRWXU, folder)
        return os.open(name, _FOLDER, dir_fd=folder)
    return None


def _up(here: int, levels: list[_Level]) -> int:
    """The folder above; -1 above the first."""
    if not levels:
        return -1
    above = os.open("..", _FOLDER, dir_fd=here)
    if _identity(above) != levels[-1].identity:
        os.close(above)
        raise OSError(f"{levels[-1].name or 'the share'}: was moved while it was looked through")
    return above


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _defused(name: str, folder: int, since: float) -> bool:
    with suppress(OSError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_ctime < since - 1:
            return False
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.unlink(name, dir_fd=folder)
            return True
        if stat.S_ISREG(status.st_mode) and status.st_mode & _SPECIAL:
            _chmod(name, stat.S_IMODE(status.st_mode) & ~_SPECIAL, folder)
            return True
    return False


def _chmod(name: str, mode: int, folder: int) -> None:
    """Of the very file or folder, which may not be readable: a link that takes its place meanwhile is an OSError."""
    if not _PATH:  # macOS
        os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)
        return
    descriptor = os.open(name, _PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101 - of a descriptor
    finally:
        os.close(descriptor)
