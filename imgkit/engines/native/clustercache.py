"""A cache of compressed chunks: a chunk of the disk that has the same bytes of the same files is not read again.

Layout below the cache folder, as in :mod:`imgkit.fetch.cache`::

    clusters/ab/abcd…    the clusters of a chunk, named by their key (:func:`~.packedclusters.chunk_key`)
    tmp/                 objects that are being written

An object is a header and the stored bytes of the clusters one after the other, and in front of both their CRC-32. That
is verified whenever the object is taken, and an object that is damaged is deleted. Equal keys mean equal bytes, so
several builds may write an object at the same time; objects appear by rename only. When some were added, those that
were not used for the longest time are removed until the others have at most :data:`MOST_BYTES`::

    with ClusterCache(folder) as cache:
        clusters = cache.take(key) or make()
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from types import TracebackType

from zlib_ng import zlib_ng

from imgkit.disk.regions import CHUNK
from imgkit.engines.native.clustercompression import CLUSTER
from imgkit.engines.native.packedclusters import PackedClusters
from imgkit.host import scratch

log = logging.getLogger("imgkit.engines")

FOLDER = "clusters"
"""The name of the folder below that of the cache."""
MOST_BYTES = 4 << 30
"""Bytes of all objects that are kept."""

_CLUSTERS = CHUNK // CLUSTER
_MAGIC = b"imgkitC2"
_HEADER = struct.Struct(
    f">8s32s32sB{_CLUSTERS}I"
)  # magic, key, SHA-256 of the chunk, clusters and the stored bytes of each
_SEAL = struct.Struct(">I")  # the CRC-32 of the rest
_START = _SEAL.size + _HEADER.size
_NO_HASH = bytes(32)  # of a chunk of zeros
_USED_AGAIN = 3600.0  # seconds after which the time of use is renewed


class ClusterCache:
    """The compressed chunks below a cache folder, which is made when something is stored.

    Several threads may take and store objects. Leaving the block removes what is too much.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._scratch: Path | None = None
        self._broken = False
        self._numbers = count()

    def __enter__(self) -> ClusterCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._scratch is not None:
            self._scratch = None
            with suppress(OSError):
                self._shrink()

    def take(self, key: str) -> PackedClusters | None:
        """Return a chunk; None if the cache does not have it, or has it no longer because it was damaged."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as source:
                status = os.fstat(source.fileno())
                start, payload = source.read(_START) or b"", source.read(CHUNK + 1) or b""
                if time.time() - status.st_mtime > _USED_AGAIN:
                    with suppress(OSError):  # it belongs to another user
                        os.utime(source.fileno())
        except FileNotFoundError:
            return None
        except OSError as fault:
            log.debug("%s: not taken from the cache: %s", path, fault.strerror)
            return None
        clusters = _parsed(start, payload, bytes.fromhex(key))
        if clusters is None:
            log.warning("%s: damaged in the cache, and deleted", path)
            with suppress(OSError):
                path.unlink()
        return clusters

    def store(self, key: str, clusters: PackedClusters) -> None:
        """Keep a chunk for the next build. A cache that cannot be written is logged once, no more."""
        if self._broken:
            return
        path = self._path(key)
        try:
            new = self._scratch_folder() / str(next(self._numbers))
            new.write_bytes(_packed(bytes.fromhex(key), clusters))
            try:
                new.replace(path)  # not settled on the disk: what a power failure damages is made anew
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                new.replace(path)
        except OSError as fault:
            with self._lock:
                was_broken, self._broken = self._broken, True
            if not was_broken:
                log.warning("%s: compressed clusters are not kept for the next build: %s", self._folder, fault.strerror)

    def _path(self, key: str) -> Path:
        return self._folder / FOLDER / key[:2] / key

    def _scratch_folder(self) -> Path:
        """Return the folder for objects that are being written; the first call makes it."""
        with self._lock:
            if self._scratch is None:
                place = self._folder / "tmp"
                place.mkdir(parents=True, exist_ok=True)
                self._scratch = self._stack.enter_context(scratch.folder(place, ""))
            return self._scratch

    def _shrink(self) -> None:
        """Remove the objects that were not used for the longest time, until the others are few enough."""
        used: list[tuple[float, int, str]] = []
        for part in (self._folder / FOLDER).iterdir():
            with suppress(NotADirectoryError, FileNotFoundError), os.scandir(part) as objects:
                for found in objects:
                    with suppress(FileNotFoundError):  # another build removes objects as well
                        status = found.stat()
                        used.append((status.st_mtime, status.st_size, found.path))
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= self._most_bytes:
                return
            with suppress(FileNotFoundError):
                Path(path).unlink()
            total -= size


def _packed(key: bytes, clusters: PackedClusters) -> bytes:
    """Return the bytes of an object."""
    lengths = clusters.lengths + (0,) * (_CLUSTERS - len(clusters.lengths))
    header = _HEADER.pack(_MAGIC, key, clusters.sha256 or _NO_HASH, len(clusters.lengths), *lengths)
    return b"".join((_seal(header, clusters.payload), header, clusters.payload))


def _seal(header: bytes, payload: bytes | memoryview) -> bytes:
    return _SEAL.pack(zlib_ng.crc32(payload, zlib_ng.crc32(header)))


def _parsed(start: bytes, payload: bytes, key: bytes) -> PackedClusters | None:
    """Return the chunk of an object; None if it is not what was written for ``key``."""
    header = start[_SEAL.size :]
    if len(start) < _START or _seal(header, payload) != start[: _SEAL.size]:
        return None
    magic, written_for, sha256, clusters, *lengths = _HEADER.unpack(header)
    if magic != _MAGIC or written_for != key or sum(lengths) != len(payload) or max(lengths) > CLUSTER:
        return None
    return PackedClusters(b"" if sha256 == _NO_HASH else sha256, tuple(lengths[:clusters]), payload)
