"""Remove set-user-id bits, set-group-id bits and device nodes that a guest left in a share.

Hosts with a seccomp filter prevent them from being created (:mod:`imgkit.vm.sandbox.seccomp`). On other hosts they are
removed by this module when the machine has ended.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from imgkit.host.walk import FolderEntry, Walk, change_mode

_SPECIAL = stat.S_ISUID | stat.S_ISGID


def drop_special_bits(folder: Path, *, since: float) -> list[Path]:
    """Remove device nodes, and clear the set-user-id and set-group-id bits of files, that changed since a time.

    Folders that changed since then, and that lack permissions for their owner, get them, so that they can be searched.

    Args:
        folder: the shared folder.
        since: Unix time in seconds. One second is allowed for the resolution of the filesystem's times.

    Returns:
        The paths that were changed or removed, except folders.

    Raises:
        OSError: ``folder`` cannot be read, or a part of it was moved meanwhile.
    """
    changed = []
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = Walk(descriptor)
        for entry in tree:
            if entry.status.st_ctime >= since - 1 and _clear(entry):
                changed.append(folder / tree.path(entry.name))
    finally:
        os.close(descriptor)
    return changed


def _clear(entry: FolderEntry) -> bool:
    """Remove a device node or special mode bits. Return whether there were any."""
    mode = entry.status.st_mode
    with suppress(OSError):
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            os.unlink(entry.name, dir_fd=entry.folder)
            return True
        if stat.S_ISREG(mode) and mode & _SPECIAL:
            change_mode(entry.name, stat.S_IMODE(mode) & ~_SPECIAL, entry.folder)
            return True
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            change_mode(entry.name, stat.S_IMODE(mode) | stat.S_IRWXU, entry.folder)
    return False
