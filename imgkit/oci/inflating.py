"""Inflate the layers of an image: plain tar, gzip and zstd, as a stream of bounded pieces.

The first bytes decide, as in containerd and Podman, not the media type: images are found whose manifests call a layer
gzip that is not. The digest of what is inflated (the diff id) is compared in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from imgkit.errors import InputError
from imgkit.tree.gzipmembers import GZIP_MAGIC, GzipMembers

_READ = 1 << 18  # bytes of compressed data read at a time
_PIECE = 1 << 20  # bytes inflated at a time, so that a bomb costs no memory
_WINDOW = 1 << 27  # what `zstd --ultra -22` needs; RFC 8878 recommends 8 MiB at least
_UNLIMITED = 1 << 62
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def inflated(source: BinaryIO, name: str, limit: int) -> Iterator[bytes]:
    """Yield what a layer inflates to, in pieces of at most 1 MiB.

    Args:
        source: the layer, open at its start.
        name: what messages call it.
        limit: bytes that it may inflate to.

    Raises:
        InputError: the layer is damaged, or inflates to more than ``limit`` bytes.
    """
    total = 0
    for piece in _inflate(source, name):
        total += len(piece)
        if total > limit:
            raise InputError(f"{name}: inflates to more than {limit} bytes")
        yield piece


def _inflate(source: BinaryIO, name: str) -> Iterator[bytes]:
    head = source.read(4)
    source.seek(0)
    if head.startswith(GZIP_MAGIC):
        return _gzip(source, name)
    if _is_zstd(head):
        return _zstd(source, name)
    return iter(lambda: source.read(_PIECE), b"")


def _is_zstd(head: bytes) -> bool:
    """Return whether a file begins with a frame of zstd, or with one that is skipped (RFC 8878, section 3.1.2)."""
    return head == _ZSTD_MAGIC or (head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5)


def _gzip(source: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the data of all gzip members: pigz, eStargz and others write several."""
    members = GzipMembers(source, name)
    while members.more():
        yield from members.member(_UNLIMITED)  # the caller counts all members together


def _zstd(source: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the data of all zstd frames; zstd:chunked writes several, and frames that are skipped."""
    inflater = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    with inflater.stream_reader(source, read_size=_READ, read_across_frames=True, closefd=False) as stream:
        try:
            while piece := stream.read(_PIECE):
                yield piece
        except zstandard.ZstdError as cause:
            raise InputError(f"{name}: is damaged ({cause})") from cause
