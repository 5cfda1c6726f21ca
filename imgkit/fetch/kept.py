"""Results that are kept for the next build, by a hash of everything that they depend on.

Each kind has a folder below the cache folder, beside those of :mod:`imgkit.fetch.cache`::

    unpacked/ab/abcd….record     a result: the SHA-256 of the rest, the length and the CRC-32 of its blob, its data
    unpacked/ab/abcd….blob       bytes that belong to it, where there are some
    tmp/                         blobs that are being written

A result is verified as a whole whenever it is taken. One that is damaged is removed, and made anew. Entries appear by
rename only, the record last, and equal keys mean equal bytes, so builds can share them. They are not settled on the
disk: what a power failure damages is found by its checksums. When results have been added, those that were not used for
the longest time are removed until the others have at most ``most_bytes``; what was used within the last hours stays in
any case, since a running build may refer to it::

    kept = Kept(cache.folder, "initramfs", 1 << 30)
    data = kept.take(key) or kept.store(key, make())
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zlib_ng import zlib_ng

from imgkit.errors import HostError
from imgkit.host import scratch
from imgkit.host.room import no_room

log = logging.getLogger("imgkit.fetch")

IN_USE = 6 * 3600.0
"""Seconds for which a result stays after its last use."""
_SEAL = hashlib.sha256().digest_size
_BLOB = struct.Struct(">QI")  # its length in bytes, and its CRC-32
_START = _SEAL + _BLOB.size
_NO_BLOB = _BLOB.pack(0, 0)
_PIECE = 1 << 18  # bytes that are read at a time; they stay in the caches of the processor


class Kept:
    """The results of one kind.

    Args:
        folder: that of the cache. It is made when something is stored.
        kind: the name of the folder in it.
        most_bytes: that are kept.
    """

    def __init__(self, folder: Path, kind: str, most_bytes: int) -> None:
        self._folder = folder
        self._kind = kind
        self._most_bytes = most_bytes

    def take(self, key: str) -> bytes | None:
        """Return a result, None if there is none. A damaged one is removed.

        Args:
            key: a SHA-256 in hex.
        """
        path = self._record(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        fault = self._damage(key, data)
        if fault is not None:
            self.forget(key, fault)
            return None
        with suppress(OSError):  # another build has removed it, or it belongs to another user
            os.utime(path)
        return data[_START:]

    def _damage(self, key: str, data: bytes) -> str | None:
        """Return why the result with this record cannot be used, None if it can."""
        if len(data) < _START or hashlib.sha256(memoryview(data)[_SEAL:]).digest() != data[:_SEAL]:
            return "its record has another SHA-256"
        blob = data[_SEAL:_START]
        try:
            return None if blob == _NO_BLOB or _stated(self.blob(key)) == blob else "its blob has another CRC-32"
        except OSError as cause:
            return f"its blob: {cause.strerror}"

    def blob(self, key: str) -> Path:
        """Return where the blob of a result is, or would be."""
        return self._record(key).with_suffix(".blob")

    def forget(self, key: str, fault: str) -> None:
        """Remove a result that cannot be used, and log the reason."""
        log.warning("%s: damaged in the cache, and deleted: %s", self._record(key), fault)
        with suppress(OSError):
            self._record(key).unlink(missing_ok=True)
            self.blob(key).unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder for blobs on the filesystem of the cache, and remove it after the block.

        Raises:
            OSError: the cache cannot be written.
        """
        place = self._folder / "tmp"
        place.mkdir(parents=True, exist_ok=True)
        with scratch.folder(place, "") as folder:
            yield folder

    def store(self, key: str, data: bytes, blob: Path | None = None) -> bytes:
        """Keep a result, and return its data. A cache that cannot be written is logged, no more.

        Args:
            blob: a file in a folder of :meth:`scratch`, which is moved.
        """
        try:
            self.add(key, data, blob)
        except OSError as fault:
            say_unkept(log, f"{self._folder}: a result", fault)
        return data

    def add(self, key: str, data: bytes, blob: Path | None = None) -> None:
        """Keep a result like :meth:`store`.

        Raises:
            OSError: the cache cannot be written.
        """
        record = self._record(key)
        record.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch() as work:
            data = (_NO_BLOB if blob is None else _stated(blob)) + data
            (work / "record").write_bytes(hashlib.sha256(data).digest() + data)
            if blob is not None:
                blob.replace(self.blob(key))
            (work / "record").replace(record)

    def shrink(self) -> None:
        """Remove what was not used for the longest time, until the results have at most the bytes that they may."""
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for used, size, paths in sorted(entries):
            if total <= self._most_bytes or time.time() - used < IN_USE:
                return
            for path in paths:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            total -= size

    def _entries(self) -> list[tuple[float, int, list[Path]]]:
        """Return when each result was last used, its bytes, and its files, the record first."""
        found: dict[str, list[tuple[Path, os.stat_result]]] = {}
        for path in (self._folder / self._kind).glob("*/*"):
            with suppress(OSError):  # another build removes results as well
                found.setdefault(path.stem, []).append((path, path.stat()))
        return [
            (
                max(status.st_mtime for _, status in files),
                sum(status.st_size for _, status in files),
                sorted((path for path, _ in files), reverse=True),
            )
            for files in found.values()
        ]

    def _record(self, key: str) -> Path:
        return self._folder / self._kind / key[:2] / f"{key}.record"


def _stated(blob: Path) -> bytes:
    """Return the length and the CRC-32 of a blob, as records have them.

    Raises:
        OSError: it cannot be read.
    """
    length = checksum = 0
    with blob.open("rb", buffering=0) as source:
        while piece := source.read(_PIECE):
            length += len(piece)
            checksum = zlib_ng.crc32(piece, checksum)
    return _BLOB.pack(length, checksum)


def say_unkept(log: logging.Logger, what: str, fault: OSError | HostError) -> None:
    """Log that something is not kept for the next build. That is a warning, unless the host's disk is full.

    Then the build does not get far either, and the one line that says so is enough.
    """
    cause = fault if isinstance(fault, OSError) else fault.__cause__
    is_full = isinstance(cause, OSError) and no_room(cause)
    reason = fault.strerror if isinstance(fault, OSError) else fault.message
    log.log(logging.DEBUG if is_full else logging.WARNING, "%s is not kept for the next build: %s", what, reason)
