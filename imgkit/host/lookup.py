"""Look up whether a path of the host is there, where the user who runs imgkit may not look everywhere.

    if not lookup.is_file(image, InputError):
        raise InputError(f"{image}: no such image")

``Path.is_file`` and its kin raise PermissionError in a folder that may not be entered, and OSError for a name that is
too long (Python before 3.14; from 3.14 on they return False). Neither says what the user has to know. The questions
here take the class of error that says so: that of a path where nothing is, since the fault is the same party's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from imgkit.errors import ImgkitError

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What ``stat`` answers if nothing is there."""


def is_file(path: Path, error: type[ImgkitError]) -> bool:
    """Return whether there is a file, or a link to one.

    Raises:
        ImgkitError: of the class ``error``: that cannot be looked up.
    """
    return stat.S_ISREG(_mode(path, error))


def is_folder(path: Path, error: type[ImgkitError]) -> bool:
    """Return whether there is a folder, or a link to one.

    Raises:
        ImgkitError: of the class ``error``: that cannot be looked up.
    """
    return stat.S_ISDIR(_mode(path, error))


def exists(path: Path, error: type[ImgkitError]) -> bool:
    """Return whether there is anything, or a link to it.

    Raises:
        ImgkitError: of the class ``error``: that cannot be looked up.
    """
    return _mode(path, error) != 0


def sees_folder(path: Path) -> bool:
    """Return whether there is a folder that this user can look up, for a search that goes on elsewhere without it."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for what is in another user's home


def real(path: Path) -> Path:
    """Return the absolute path without symbolic links, as far as they can be followed.

    ``Path.resolve`` raises RuntimeError for a link to itself (Python before 3.13), and ValueError for a zero byte.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        return path.absolute()


def file_fault(path: Path) -> str | None:
    """Return a sentence on why a path is not that of a file that this user may read; None if it is."""
    return _fault(path, is_file, "file", os.R_OK)


def folder_fault(path: Path) -> str | None:
    """Return a sentence on why a path is not that of a folder that this user may read; None if it is."""
    return _fault(path, is_folder, "folder", os.R_OK | os.X_OK)


def _fault(path: Path, is_right: Callable[[Path, type[ImgkitError]], bool], kind: str, rights: int) -> str | None:
    try:
        if is_right(path, ImgkitError):
            return None if os.access(path, rights) else f"{path} may not be read by this user"
        return f"{path} is not a {kind}" if exists(path, ImgkitError) else f"{path} does not exist"
    except ImgkitError as refused:
        return refused.message


def _mode(path: Path, error: type[ImgkitError]) -> int:
    """Return the mode of what is there, which is never 0; 0 if nothing is there."""
    try:
        return path.stat().st_mode
    except OSError as cause:
        if cause.errno in _MISSING:
            return 0
        raise error(f"{path}: cannot be looked up: {cause.strerror}") from cause
    except ValueError:  # a zero byte, which no path has
        return 0
