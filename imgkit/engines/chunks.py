"""Read and hash the chunks of a raw disk. Holes are skipped, so that a sparse disk is read quickly."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgkit.disk.regions import CHUNK, Chunk, DiskMap, Region, chunk_at
from imgkit.engines.engineerrors import LimitError
from imgkit.engines.limits import MORE_BYTES, MORE_TIME

_ZEROS = bytes(CHUNK)
# macOS has it as well, but is reported to skip data (QEMU's bug 1776920). Not tried here; reading all of it is safe.
_SEEK_DATA: int | None = None if sys.platform == "darwin" else getattr(os, "SEEK_DATA", None)


def map_disk(path: Path, regions: Sequence[Region]) -> DiskMap:
    """Make the map of a raw disk.

    Args:
        regions: the regions of the whole disk, in order.
    """
    hashes = {chunk.start: hashlib.sha256(data).hexdigest() for chunk, data in chunks(path, regions)}
    return DiskMap(tuple(regions), hashes)


def chunks(
    path: Path, regions: Sequence[Region], *, most: int | None = None, deadline: float | None = None
) -> Iterator[tuple[Chunk, bytes]]:
    """Yield each chunk of a raw disk that is not all zeros, in order, with its bytes.

    Args:
        regions: the regions of the disk, in order. Bytes behind the last one are not read.
        most: the bytes that these chunks may have in total.
        deadline: in the time of :func:`time.monotonic`.

    Raises:
        LimitError: there is more on the disk than ``most``, or reading took too long.
    """
    size, at = 0, 0
    with path.open("rb", buffering=0) as source:
        while (at := _next_data(source.fileno(), at, regions[-1].end)) < regions[-1].end:
            chunk = chunk_at(regions, at)
            data = os.pread(source.fileno(), chunk.end - chunk.start, chunk.start)
            at = chunk.end
            if deadline is not None and time.monotonic() > deadline:
                raise LimitError(f"{path}: could not be read in time", hint=MORE_TIME)
            if data == _ZEROS[: len(data)]:
                continue
            size += len(data)
            if most is not None and size > most:
                raise LimitError(f"{path}: more than {most} bytes of data", hint=MORE_BYTES)
            yield chunk, data


def _next_data(descriptor: int, at: int, end: int) -> int:
    """Return the offset of the first byte from ``at`` on that is not in a hole; ``end`` if there is none before it."""
    if _SEEK_DATA is None:
        return at
    try:
        return min(os.lseek(descriptor, at, _SEEK_DATA), end)
    except OSError as cause:
        if cause.errno == errno.ENXIO:
            return end
        return at  # the filesystem does not know of holes, so everything is read
