"""The folder in which a build keeps its scratch files and its unfinished results."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgkit.errors import HostError
from imgkit.host import scratch
from imgkit.host.room import MAKE_ROOM, free_bytes, no_room, show_room

SCRATCH_PREFIX = ".imgkit-"
"""How the names of scratch folders in the output folder begin."""
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def workspace(out: Path, work: Path | None) -> Iterator[Path]:
    """Yield a folder for scratch files and results, which is removed when the block ends.

    Args:
        out: the folder for the results.
        work: the folder for scratch files; None makes one in ``out``.

    Raises:
        HostError: the folder cannot be made, or the disk is full or fails during the block.
    """
    parent = work or out
    with ExitStack() as stack:
        try:
            for folder in (out, parent):
                stack.enter_context(scratch.parents(folder))
            scratch_folder = stack.enter_context(scratch.folder(parent, SCRATCH_PREFIX))
        except OSError as cause:
            hint = "choose another with " + ("WORK_DIR" if work else "--out")
            raise HostError(f"{cause.filename or parent}: {cause.strerror}", hint=hint) from cause
        with _disk_faults(parent):
            yield scratch_folder


@contextmanager
def _disk_faults(folder: Path) -> Iterator[None]:
    """Turn every error of a full or broken disk in the block into HostError."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in _DISK_FAULTS:
            raise
        reason = f"no space left ({show_room(free_bytes(folder))} free)" if no_room(cause) else cause.strerror
        where = cause.filename or folder
        raise HostError(f"{where}: {reason}", hint=MAKE_ROOM) from cause
