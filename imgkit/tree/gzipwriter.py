"""Write gzip files (RFC 1952) on all processors, always with the same bytes.

Every piece of the input is deflated on its own, with the last 32 KiB of the piece before as its dictionary, and ends at
a byte boundary, as pigz does it. Each has a compressor of its own, since a compressor of zlib-ng that is used again
remembers what it did before. The bytes are the same for any number of threads, and on every machine that has the same
version of zlib-ng; :mod:`zlib` is whatever zlib the host has::

    with GzipSink(file, level=6) as sink:
        sink.write(data)
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, TypeAlias

from zlib_ng import zlib_ng

from imgkit.host.processors import usable_processors

Piece: TypeAlias = bytes | memoryview

VERSION: str = zlib_ng.ZLIBNG_RUNTIME_VERSION  # type: ignore[assignment]  # its stub says int
"""The version of the library, on which the bytes depend."""
_PIECE = 1 << 19  # bytes that are deflated together; the result depends on it
_MOST_THREADS = 8
_WINDOW = 32 << 10  # of deflate
_RAW = -15  # wbits: that window, and neither header nor trailer
_MEMORY = 9
_HEADER = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"  # RFC 1952: no name, no time, no hint, unknown system
_LAST_BLOCK = b"\x03\x00"  # RFC 1951: an empty block that is the last one


class GzipPieces:
    """One member of gzip, whose pieces are deflated side by side.

    Args:
        level: of zlib-ng, 0 to 9.
        threads: that deflate.
    """

    def __init__(self, level: int, threads: int) -> None:
        self._level = level
        self._pool = ThreadPoolExecutor(max(1, threads), "imgkit-gzip")
        self._ahead = 2 * threads + 2  # pieces that may be in work
        self._deflated: deque[Future[bytes]] = deque()
        self._dictionary = b""
        self._crc = 0
        self._size = 0
        self._header = _HEADER

    def __enter__(self) -> GzipPieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def feed(self, piece: Piece) -> Iterator[bytes]:
        """Compress a piece; yield what is ready."""
        data = bytes(piece)
        self._crc = zlib_ng.crc32(data, self._crc)
        self._size += len(data)
        self._deflated.append(self._pool.submit(_deflate, data, self._dictionary, self._level))
        self._dictionary = data[-_WINDOW:]
        yield from self._results(self._ahead)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest."""
        yield from self._results(0)
        yield _LAST_BLOCK + struct.pack("<II", self._crc, self._size % (1 << 32))

    def _results(self, ahead: int) -> Iterator[bytes]:
        """Yield what comes next in the file, until at most ``ahead`` pieces are in work."""
        header, self._header = self._header, b""
        yield header
        while len(self._deflated) > ahead:
            yield self._deflated.popleft().result()


def _deflate(piece: bytes, dictionary: bytes, level: int) -> bytes:
    """Return the deflated form of a piece, which ends at a byte boundary (RFC 1951, blocks without contents)."""
    settings = (level, zlib_ng.DEFLATED, _RAW, _MEMORY, zlib_ng.Z_DEFAULT_STRATEGY)
    compressor = zlib_ng.compressobj(*settings, dictionary) if dictionary else zlib_ng.compressobj(*settings)
    return compressor.compress(piece) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)


class GzipSink:
    """Compresses what is written to it into a file, in pieces of a fixed size. It is open within a ``with`` block."""

    def __init__(self, file: BinaryIO, level: int) -> None:
        self._file = file
        self._pieces = GzipPieces(level, usable_processors(_MOST_THREADS))
        self._waiting = bytearray()

    def __enter__(self) -> GzipSink:
        return self

    def write(self, data: bytes) -> None:
        """Compress ``data``."""
        self._waiting += data
        while len(self._waiting) >= _PIECE:
            self._feed(bytes(self._waiting[:_PIECE]))
            del self._waiting[:_PIECE]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the rest, unless the block failed."""
        with self._pieces:
            if error is None:
                self._feed(bytes(self._waiting))
                for data in self._pieces.finish():
                    self._file.write(data)

    def _feed(self, piece: bytes) -> None:
        for data in self._pieces.feed(piece):
            self._file.write(data)
