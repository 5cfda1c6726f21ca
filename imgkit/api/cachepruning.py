"""Remove what was not used for long from the folder of caches, also while builds run.

A process that uses the cache shares a lock on it (:meth:`imgkit.fetch.cache.Cache.fetch_all`), machines and appliances
have locks of their own. If somebody holds the cache's lock, then what was used within the last day stays, since a build
may be about to use it; a machine or an appliance that is in use stays in any case::

    removed = prune(default_folder(), older_than=30 * 86400)
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from imgkit.api.cacheentries import CacheEntry, cache_entries
from imgkit.fetch.cache import IN_USE
from imgkit.host import locks

SAFE_AGE = 86400.0
"""Seconds for which an entry stays after its last use while the cache is in use."""


def prune(
    folder: Path,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[CacheEntry]:
    """Remove entries, those that were not used for the longest time first, and return them.

    Args:
        folder: the cache's.
        older_than: remove what was not used for so many seconds.
        max_size: then remove further entries until the others have at most so many bytes.
        everything: remove all that can be made or downloaded again.
        dry_run: remove nothing; return what would be removed.
    """
    with _alone(folder) as alone:
        now = time.time()
        entries = cache_entries(folder)
        removable = [entry for entry in entries if entry.kind != "kept" and (alone or now - entry.used > SAFE_AGE)]
        chosen = _chosen(entries, removable, now, older_than=older_than, max_size=max_size, everything=everything)
        return [entry for entry in chosen if dry_run or _remove(folder, entry)]


def _chosen(
    entries: Sequence[CacheEntry],
    removable: Sequence[CacheEntry],
    now: float,
    *,
    older_than: float | None,
    max_size: int | None,
    everything: bool,
) -> Iterator[CacheEntry]:
    left = sum(entry.size for entry in entries)
    for entry in removable:
        is_old = older_than is not None and now - entry.used > older_than
        if everything or is_old or (max_size is not None and left > max_size):
            left -= entry.size
            yield entry


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Keep other processes from using the cache during the block, and yield True; yield False if one uses it."""
    descriptor = None
    with suppress(OSError):  # BlockingIOError, or the cache cannot be written
        (folder / IN_USE).parent.mkdir(parents=True, exist_ok=True)
        descriptor = locks.lock_file(folder / IN_USE, timeout=0)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove(folder: Path, entry: CacheEntry) -> bool:
    """Remove an entry. Returns False if it is in use."""
    guarded = {"machine": _remove_machine, "appliance": _remove_appliance, "unfinished download": _remove_machine}
    remove = guarded.get(entry.kind)
    if remove is not None:
        return remove(folder / entry.path)
    for path in entry.paths:
        _delete(folder / path)
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_machine(path: Path) -> bool:
    """Remove a folder that those who use it have locked, and the lock that is held while it is made."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        locks.acquire(descriptor, timeout=0)
        _delete(path)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return not path.exists()


def _remove_appliance(path: Path) -> bool:
    """Remove an appliance, or what it is made of, unless one is being made, or this one is used.

    libguestfs makes ``.guestfs-UID`` itself and has no lock that we could take, so it stays for a day.
    """
    if path.name.startswith(".guestfs-") and time.time() - path.stat().st_mtime < SAFE_AGE:
        return False
    try:
        with locks.locked(path.parent / "lock", timeout=0):
            if path.name.startswith("ready-"):
                os.close(locks.lock_file(path / "in-use", timeout=0))
            _delete(path)
    except OSError:
        return False
    return True
