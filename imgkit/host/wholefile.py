"""Write files so that they appear complete or not at all, even if this process is killed or the power fails::

    wholefile.write(out / "linux.lock", text.encode())

A file is written under another name in the same filesystem, and renamed. That alone protects from a process that is
killed. After a power failure a filesystem may have the new name without the bytes; so the bytes are written to the disk
first (fsync(2)), and after the rename the folder is. On macOS the disk may still keep them in its own cache, for which
``F_FULLFSYNC`` would be needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from imgkit.host import scratch

_PREFIX = ".imgkit-"  # of the names of scratch folders beside a file
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # from filesystems that have no fsync for folders


def write(path: Path, data: bytes) -> None:
    """Write ``data`` to the file ``path``, which keeps its old contents if that fails.

    Raises:
        OSError: the file cannot be written.
    """
    with scratch.folder(path.parent, _PREFIX) as near:
        (near / path.name).write_bytes(data)
        place({near / path.name: path})


def place(moves: Mapping[Path, Path]) -> None:
    """Write the bytes of files or folders to the disk, and then rename them in order.

    Args:
        moves: path → its new path. Existing files are replaced; a folder can replace an empty folder only.

    Raises:
        OSError: something cannot be written or renamed. What comes before it may have been renamed.
    """
    settle(moves)
    rename(moves)


def settle(paths: Mapping[Path, Path]) -> None:
    """Wait until the bytes of files, and of folders with everything in them, are on the disk.

    Args:
        paths: a mapping with the paths as its keys, as for :func:`rename`.

    Raises:
        OSError: the bytes cannot be written.
    """
    for path in paths:
        _sync_all(path)


def rename(moves: Mapping[Path, Path]) -> None:
    """Rename files or folders that have been settled, and write the names to the disk; see :func:`place`.

    Raises:
        OSError: something cannot be renamed.
    """
    for source, target in moves.items():
        source.replace(target)
    for folder in {target.parent for target in moves.values()}:
        _sync(folder)


def rename_together(moves: Mapping[Path, Path]) -> None:
    """Rename settled files that belong together, so that the last one is never seen beside older ones.

    The old file in the place of the last one is removed first. If a file cannot be renamed, the files in all the places
    are removed.

    Raises:
        OSError: a file cannot be renamed.
    """
    list(moves.values())[-1].unlink(missing_ok=True)
    try:
        rename(moves)
    except OSError:
        for target in moves.values():
            with suppress(OSError):  # it is a folder
                target.unlink(missing_ok=True)
        raise


def _sync_all(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _sync_all(inner)
    if not path.is_symlink():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
