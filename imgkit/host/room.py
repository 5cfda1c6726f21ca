"""Room on the host's disks: how much is free, and the errors where it is too little::

check_room(folder, 1 << 30, "unpacking the packages")
"""

from __future__ import annotations

import os
from errno import EDQUOT, ENOSPC
from pathlib import Path

from imgkit.errors import HostError

MAKE_ROOM = "make room, or choose another folder for scratch files with WORK_DIR, or for everything with --out"
"""The hint for a disk of the host that is full during a build."""


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the filesystem of ``folder``."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def show_room(size: int) -> str:
    """Return ``size`` bytes in whole MiB, rounded up."""
    return f"{-(-size // (1 << 20))} MiB"


def no_room(error: OSError) -> bool:
    """Return whether an error says that a disk, or a quota, is full."""
    return error.errno in (ENOSPC, EDQUOT)


def check_room(folder: Path, needed: int, work: str) -> None:
    """Check that there is room for ``needed`` bytes.

    Args:
        work: what needs them, for the message.

    Raises:
        HostError: there is not.
    """
    free = free_bytes(folder)
    if free < needed:
        message = f"{folder}: only {show_room(free)} free, and {work} needs {show_room(needed)}"
        raise HostError(message, hint=MAKE_ROOM)


def no_room_for(folder: Path, contents: str) -> HostError:
    """Return the error for a disk that became full while ``contents`` were written."""
    return HostError(f"{folder}: no space left for {contents} ({show_room(free_bytes(folder))} free)", hint=MAKE_ROOM)
