"""Compress the tar archive of a layer by gzip or zstd on all processors, and compute its digests on the way::

    blob = compress(archive(entries), path, Compression("gzip"))
    blob.descriptor.digest, blob.diff_id

The bytes are the same for any number of processors, and on every machine that has the same version of the library, for
which reason :mod:`zlib` is not used: it is whatever zlib the host has.

* zstd: libzstd splits the input into jobs by the parameters of the level, not by the number of threads; but one thread
  is not the same as none, so there is always one at least.
* gzip: :mod:`imgkit.tree.gzipwriter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeAlias

import zstandard
from zlib_ng import zlib_ng

from imgkit.host.processors import usable_processors
from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor
from imgkit.tree.gzipwriter import GzipPieces, Piece

Algorithm: TypeAlias = Literal["gzip", "zstd"]

# benchmarks/oci.py: one level more takes a fifth more time and saves 2 % (gzip), twice the time and 2 % (zstd)
_LEVELS: dict[Algorithm, int] = {"gzip": 3, "zstd": 3}
_MEDIA_TYPES: dict[Algorithm, str] = {"gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}

_MOST_THREADS = 16  # each takes about 10 MiB of memory


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
    threads = usable_processors(_MOST_THREADS) if threads is None else threads
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
        return GzipPieces(compression.effective_level, threads)
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
