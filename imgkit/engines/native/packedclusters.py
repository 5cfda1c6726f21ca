"""A chunk of the disk as it is stored: its clusters, each of them compressed, and the name of these bytes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from imgkit.engines.native.clustercompression import CLUSTER, ClusterCompression
from imgkit.engines.native.sparsedisk import PlannedChunk

_FORMAT = "imgkit clusters 1"  # changes with what the bytes depend on and the key does not have
_PIECE = struct.Struct(">II32sQ")


@dataclass(frozen=True)
class PackedClusters:
    """The clusters of a chunk.

    Attributes:
        sha256: of the bytes of the chunk; empty if they are zeros or not all in one region.
        lengths: bytes that are stored of each cluster. It is 0 for zeros, and that of a cluster if it is not
            compressed.
        payload: these bytes, without gaps.
    """

    sha256: bytes
    lengths: tuple[int, ...]
    payload: bytes | memoryview

    @classmethod
    def of(cls, sha256: bytes, clusters: Sequence[bytes]) -> PackedClusters:
        """Return the clusters, each given by the bytes that are stored of it."""
        return cls(sha256, tuple(map(len, clusters)), b"".join(clusters))


def chunk_key(chunk: PlannedChunk, compression: ClusterCompression) -> str:
    """Return a hash over all that the packed bytes of a chunk of files depend on, in hex."""
    assert not chunk.is_generated
    key = hashlib.sha256(f"{_FORMAT}\n{compression.identity}\n{CLUSTER} {chunk.size}\n".encode())
    for piece in chunk.pieces:
        key.update(_PIECE.pack(piece.at, piece.length, piece.data.sha256, piece.start))
    return key.hexdigest()
