"""Compress the clusters of a qcow2 file, each on its own.

The bytes are the same on every machine that has the same version of the library. For that reason :mod:`zlib` is not
used: it is whatever zlib the host has.

* zstd: a frame (RFC 8878) of the level that qemu-img uses.
* zlib: deflate (RFC 1951) without a header, in a window of 4 KiB (QEMU's block/qcow2-threads.c). Each cluster gets a
  compressor of its own, since a compressor of zlib-ng that is used again remembers what it did before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import zstandard
from zlib_ng import zlib_ng

from imgkit.engines.interface import Compression

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
"""Bytes of a cluster: those that are compressed together, and the least that a guest reads of it."""

Compress: TypeAlias = Callable[[memoryview], bytes]
"""Returns the compressed bytes of a cluster. It must not be called in two threads at a time."""

_ZSTD_LEVEL = 3
_ZLIB_LEVEL = 9  # zlib-ng's makes what zlib's 6 makes in less time; its own lower levels make 2 % more
_RAW_WINDOW = -12  # wbits: 4 KiB, and neither header nor trailer
_MEMORY = 9


@dataclass(frozen=True)
class ClusterCompression:
    """How clusters are compressed; None leaves them as they are."""

    algorithm: Compression | None = "zstd"

    @property
    def identity(self) -> str:
        """A text that is different wherever the compressed bytes may be: algorithm, level, version of the library."""
        if self.algorithm == "zstd":
            return f"zstd {_ZSTD_LEVEL} {zstandard.ZSTD_VERSION}"
        return f"zlib {_ZLIB_LEVEL} {zlib_ng.ZLIBNG_RUNTIME_VERSION}" if self.algorithm else "none"

    def compressor(self) -> Compress:
        """Return a function that compresses clusters, for one thread."""
        if self.algorithm == "zstd":
            return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress
        return _deflate if self.algorithm else bytes


def _deflate(cluster: memoryview) -> bytes:
    compressor = zlib_ng.compressobj(_ZLIB_LEVEL, zlib_ng.DEFLATED, _RAW_WINDOW, _MEMORY, zlib_ng.Z_DEFAULT_STRATEGY)
    return compressor.compress(cluster) + compressor.flush()
