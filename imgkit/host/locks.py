"""Locks between processes, which the kernel releases when their owner ends, even if it is killed.

All locks of imgkit are flock(2) locks that are taken here. Two uses rule out the package filelock: a scratch folder is
its own lock, so that nothing is left beside it (filelock makes a file), and a quick appliance is locked by all the
builds that use it at a time (filelock has no shared locks)::

    with locked(cache / "lock"):
        ...                                       # no other process is in such a block
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL = 0.02  # seconds between two attempts


def acquire(descriptor: int, *, shared: bool = False, timeout: float | None = None) -> None:
    """Take the lock of an open file or folder. Closing the descriptor releases it.

    Args:
        shared: several processes may hold the lock at a time, if all of them share it.
        timeout: seconds to wait while another process holds the lock; None waits as long as it takes.

    Raises:
        BlockingIOError: another process still holds the lock.
        OSError: the filesystem has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if timeout is None:
        fcntl.flock(descriptor, kind)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL)


def lock_file(path: Path, *, shared: bool = False, timeout: float | None = None) -> int:
    """Take the lock of a file, which is made if there is none, and return a descriptor that holds it.

    Args:
        path: the file; it stays when the lock is released, so that all processes lock the same file.
        shared, timeout: as for :func:`acquire`.

    Raises:
        BlockingIOError: another process still holds the lock.
        OSError: the file cannot be opened, or the filesystem has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        acquire(descriptor, shared=shared, timeout=timeout)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path, *, shared: bool = False, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock of a file for the block; arguments and errors are those of :func:`lock_file`."""
    descriptor = lock_file(path, shared=shared, timeout=timeout)
    try:
        yield
    finally:
        os.close(descriptor)
