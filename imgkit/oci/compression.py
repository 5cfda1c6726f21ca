"""Compress the tar archive of a layer by gzip or zstd on all processors, and compute its digests on the way::

    blob = compress(archive(entries), path, Compression("gzip"))
    blob.descriptor.digest, blob.diff_id

The bytes are the same for any number of processors, and on every machine that has the same version of the library, for
which reason :mod:`zlib` is not used: it is whatever zlib the host has.

* zstd: libzstd splits the input into jobs by the parameters of the level, not by the number of threads; but one thread
  is not the same as none, so there is always one at least.
* gzip: every piece of the input is deflated on its own, with the last 32 KiB of the piece before as its dictionary, and
  ends at a byte boundary, as pigz does it. Each has a compressor of its own, since a compressor of zlib-ng that is used
  again remembers what it did before.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeAlias

import zstandard
from zlib_ng import zlib_ng

from imgkit.host.processors import usable_processors
from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor

Algorithm: TypeAlias = Literal["gzip", "zstd"]
Piece: TypeAlias = bytes | memoryview

# benchmarks/oci.py: one level more takes a fifth more time and saves 2 % (gzip), twice the time and 2 % (zstd)
_LEVELS: dict[Algorithm, int] = {"gzip": 3, "zstd": 3}
_MEDIA_TYPES: dict[Algorithm, str] = {"gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}
_MOST_THREADS = 16  # each takes about 10 MiB of memory
_WINDOW = 32 << 10  # of deflate
_RAW = -15  # wbits: that window, and neither header nor trailer
_MEMORY = 9
_GZIP_HEADER = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"  # RFC 1952: no name, no time, no hint, unknown system
_LAST_BLOCK = b"\x03\x00"  # RFC 1951: an empty block that is the last one


@dataclass(frozen=True)
class Compression:
    """How a layer is compressed. ``level`` is the library's; 0 takes the one that is best for layers."""

    algorithm: Algorithm = "gzip"
    level: int = 0

    @property
    def effective_level(self) -> int:
        """The level that is used."""
        return self.level or _LEVELS[self.algorithm]

    @property
    def media_type(self) -> str:
        """The media type of the layers."""
        return _MEDIA_TYPES[self.algorithm]

    @property
    def identity(self) -> str:
        """A text that is different wherever the compressed bytes may be: algorithm, level, version of the library."""
        version = zlib_ng.ZLIBNG_RUNTIME_VERSION if self.algorithm == "gzip" else zstandard.ZSTD_VERSION
        return f"{self.algorithm} {self.effective_level} {version} 1"


@dataclass(frozen=True)
class LayerBlob:
    """A layer as a blob.

    Attributes:
        descriptor: of the compressed archive.
        diff_id: the digest of the archive when it is not compressed.
    """

    descriptor: Descriptor
    diff_id: str


def processors() -> int:
    """Return the number of processors that this process may use, at most 16."""
    return min(usable_processors(), _MOST_THREADS)


def compress(
    pieces: Iterable[Piece], target: Path, compression: Compression, *, threads: int | None = None
) -> LayerBlob:
    """Write the compressed form of a tar archive to a new file, in one pass.

    Args:
        pieces: the archive. The result depends on where it is split into pieces, so they must have a fixed size, as
            those of :func:`imgkit.tree.tarwriter.archive`. A piece may be changed when the next one is asked for.
        threads: that compress; by default one for each processor.

    Raises:
        OSError: the file cannot be written.
    """
    threads = processors() if threads is None else threads
    with target.open("xb") as file, _compressor(compression, threads) as compressor:
        diff_id, sink = hashlib.sha256(), _HashingSink(file)
        for piece in pieces:
            diff_id.update(piece)
            for data in compressor.feed(piece):
                sink.write(data)
        for data in compressor.finish():
            sink.write(data)
        return LayerBlob(Descriptor(compression.media_type, sink.digest(), sink.size), f"sha256:{diff_id.hexdigest()}")


class _Compressor(Protocol):
    """Compresses pieces; the results come later, in order."""

    def __enter__(self) -> _Compressor: ...

    def __exit__(self, *_: object) -> None: ...

    def feed(self, piece: Piece) -> Iterator[bytes]:
        """Compress a piece; yield what is ready."""
        ...

    def finish(self) -> Iterator[bytes]:
        """Yield the rest."""
        ...


def _compressor(compression: Compression, threads: int) -> _Compressor:
    if compression.algorithm == "gzip":
        return _Gzip(compression.effective_level, threads)
    return _Zstd(compression.effective_level, threads)


class _Zstd:
    """One frame of zstd (RFC 8878). libzstd has threads of its own."""

    def __init__(self, level: int, threads: int) -> None:
        self._frame = zstandard.ZstdCompressor(level=level, threads=max(1, threads)).compressobj()

    def __enter__(self) -> _Zstd:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def feed(self, piece: Piece) -> Iterator[bytes]:
        """Compress a piece; yield what is ready."""
        yield self._frame.compress(piece)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest."""
        yield self._frame.flush()


class _Gzip:
    """One member of gzip (RFC 1952), whose pieces are deflated side by side."""

    def __init__(self, level: int, threads: int) -> None:
        self._level = level
        self._pool = ThreadPoolExecutor(max(1, threads), "imgkit-gzip")
        self._ahead = 2 * threads + 2  # pieces that may be in work
        self._deflated: deque[Future[bytes]] = deque()
        self._dictionary = b""
        self._crc = 0
        self._size = 0
        self._header = _GZIP_HEADER

    def __enter__(self) -> _Gzip:
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


class _HashingSink:
    """A file that is written, hashed and measured at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write ``data`` to the file."""
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)

    def digest(self) -> str:
        """Return the digest of what was written."""
        return f"sha256:{self._hash.hexdigest()}"
