"""Look up whether a path of the host is there, where the user who runs imgkit may not look everywhere.

    if not lookup.is_file(image):
        raise InputError(f"{image}: no such image")

``Path.is_file`` and its kin raise PermissionError in a folder that may not be entered, and OSError for a name that is
too long (Python before 3.14; from 3.14 on they return False). Neither says what the user has to know.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path

from imgkit.errors import HostError

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What ``stat`` answers if nothing is there."""


def is_file(path: Path) -> bool:
    """Return whether there is a file, or a link to one.

    Raises:
        HostError: that cannot be looked up.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether there is a folder, or a link to one.

    Raises:
        HostError: that cannot be looked up.
    """
    return stat.S_ISDIR(_mode(path))


def exists(path: Path) -> bool:
    """Return whether there is anything, or a link to it.

    Raises:
        HostError: that cannot be looked up.
    """
    return _mode(path) != 0


def file_fault(path: Path) -> str | None:
    """Return a sentence on why a path is not that of a file; None if it is."""
    return _fault(path, is_file, "file")


def folder_fault(path: Path) -> str | None:
    """Return a sentence on why a path is not that of a folder; None if it is."""
    return _fault(path, is_folder, "folder")


def _fault(path: Path, is_right: Callable[[Path], bool], kind: str) -> str | None:
    try:
        if is_right(path):
            return None
        return f"{path} is not a {kind}" if exists(path) else f"{path} does not exist"
    except HostError as refused:
        return refused.message


def _mode(path: Path) -> int:
    """Return the mode of what is there, which is never 0; 0 if nothing is there."""
    try:
        return path.stat().st_mode
    except OSError as cause:
        if cause.errno in _MISSING:
            return 0
        raise HostError(f"{path}: cannot be looked up: {cause.strerror}") from cause
    except ValueError:  # a zero byte, which no path has
        return 0
