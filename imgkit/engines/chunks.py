"""Hash the chunks of a raw disk, holes skipped."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgkit.disk.regions import CHUNK, Chunk, DiskMap, Region, chunk_at
from imgkit.errors import InputError

_ZEROS = bytes(CHUNK)
_SEEK_DATA: int | None = getattr(os, "SEEK_DATA", None)  # Linux, macOS


def map_disk(path: Path, regions: Sequence[Region]) -> DiskMap:
    """The map of a raw disk.

    Args:
        regions: of the whole disk, in order.
    """
    hashes = {chunk.start: hashlib.sha256(data).hexdigest() for chunk, data in chunks(path, regions)}
    return DiskMap(tuple(regions), hashes)


def chunks(
    path: Path, regions: Sequence[Region], *, most: int | None = None, deadline: float | None = None
) -> Iterator[tuple[Chunk, bytes]]:
    """Each chunk of a raw disk that is not all zeros, in order, with its bytes.

    Args:
        regions: what lies where, in order; what is behind them is not read.
        most: bytes of such chunks at most.
        deadline: in the time of :func:`time.monotonic`.

    Raises:
        InputError: there is more on the disk than ``most``, or it took too long.
    """
    size, at = 0, 0
    with path.open("rb", buffering=0) as source:
        while (at := _next_data(source.fileno(), at, regions[-1].end)) < regions[-1].end:
            chunk = chunk_at(regions, at)
            data = os.pread(source.fileno(), chunk.end - chunk.start, chunk.start)
            at = chunk.end
            if deadline is not None and time.monotonic() > deadline:
                raise InputError(f"{path}: could not be read in time", hint="--timeout gives it more")
            if data == _ZEROS[: len(data)]:
                continue
            size += len(data)
            if most is not None and size > most:
                raise InputError(f"{path}: more than {most} bytes of data", hint="--limit reads more")
            yield chunk, data


def _next_data(descriptor: int, at: int, end: int) -> int:
    """The first byte from ``at`` on that is not in a hole; ``end`` if there is none before it."""
    if _SEEK_DATA is None:
        return at
    try:
        return min(os.lseek(descriptor, at, _SEEK_DATA), end)
    except OSError as cause:
        if cause.errno == errno.ENXIO:
            return end
        return at  # a filesystem that does not know: everything is read
