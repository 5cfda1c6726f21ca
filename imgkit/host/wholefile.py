"""Files that appear as a whole or not at all, whatever becomes of this process, and of the machine.

A file is written under another name in the same filesystem and renamed. A rename alone is enough for a process that is
killed; after a loss of power a filesystem may have kept the new name and not the bytes, so these are made to reach the
disk first (fsync(2)), and the folder with the new name in it afterwards. On macOS the disk's own cache is left out of
that (it would take ``F_FULLFSYNC``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from imgkit.host import scratch

_PREFIX = ".imgkit-"  # how the names of scratch folders beside a file begin
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # filesystems that have no fsync for folders


def write(path: Path, data: bytes) -> None:
    """Write the file ``path``: afterwards it has ``data``, or, whatever goes wrong, what it had before.

    Raises:
        OSError: it cannot be written.
    """
    with scratch.folder(path.parent, _PREFIX) as near:
        (near / path.name).write_bytes(data)
        place({near / path.name: path})


def place(moves: Mapping[Path, Path]) -> None:
    """Rename files or folders to their places, in this order, once all of their bytes are on the disk.

    What is in a place is replaced; folders may only replace empty ones.

    Raises:
        OSError: something cannot be written or renamed. What comes before it may be in its place.
    """
    settle(moves)
    rename(moves)


def settle(paths: Mapping[Path, Path]) -> None:
    """Wait until the bytes of ``paths`` (the keys), files or folders with all that is in them, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    for path in paths:
        _sync_all(path)


def rename(moves: Mapping[Path, Path]) -> None:
    """Rename what has been settled to its places.

    Raises:
        OSError: see :func:`place`.
    """
    for source, target in moves.items():
        source.replace(target)
    for folder in {target.parent for target in moves.values()}:
        _sync(folder)


def rename_together(moves: Mapping[Path, Path]) -> None:
    """Rename settled files that belong together, so that the last of them is never seen beside older ones.

    Its place is emptied first. If one cannot be renamed, none of the places has a file afterwards.

    Raises:
        OSError: one cannot be renamed.
    """
    list(moves.values())[-1].unlink(missing_ok=True)
    try:
        rename(moves)
    except OSError:
        for target in moves.values():
            with suppress(OSError):  # a folder is there
                target.unlink(missing_ok=True)
        raise


def _sync_all(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _sync_all(inner)
    if not path.is_symlink():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
