"""What a guest left in a share that would give rights, taken away afterwards.

It is for hosts where it cannot be prevented (:mod:`imgkit.vm.sandbox.seccomp`), and runs when the guest is gone.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from imgkit.host.walk import FolderEntry, Walk, change_mode

_SPECIAL = stat.S_ISUID | stat.S_ISGID


def drop_special_bits(folder: Path, *, since: float) -> list[Path]:
    """Take set-user-id and set-group-id from files, and device nodes away, if they changed after ``since`` (Unix time).

    Folders that changed since then, and that their owner may not read, are opened to the owner.

    Returns:
        What was changed or removed.

    Raises:
        OSError: ``folder`` cannot be read, or somebody moved a part of it away meanwhile.
    """
    changed = []
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = Walk(top)
        for entry in tree:
            if entry.status.st_ctime >= since - 1 and _defused(entry):
                changed.append(folder / tree.path(entry.name))
    finally:
        os.close(top)
    return changed


def _defused(entry: FolderEntry) -> bool:
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
