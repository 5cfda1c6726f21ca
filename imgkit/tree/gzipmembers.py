"""Read files that consist of several gzip members, from untrusted sources.

The members are inflated one after the other, each with a limit of its own. The raw (compressed) bytes of each can be
passed to a hash, since signatures and identities of Alpine cover raw members, never their contents. A member ends where
its own trailer ends (RFC 1952, section 2.3)::

    members = GzipMembers(file, "a.apk")
    while members.more():
        contents = members.read_member(limit=1 << 20)

zlib-ng inflates packages in two thirds of zlib's time, with the same results and the same messages.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from zlib_ng import zlib_ng

from imgkit.errors import InputError

_CHUNK = 1 << 18  # bytes read at a time
_PIECE = 1 << 20  # bytes inflated at a time, so that a bomb costs no memory
_GZIP = 16 + zlib_ng.MAX_WBITS  # zlib reads the header, and checks the trailer's checksum
_ZlibError: type[Exception] = zlib_ng.error  # type: ignore[assignment]  # its stub declares an instance

GZIP_MAGIC = b"\x1f\x8b"


class _Inflater(Protocol):
    """The part of a decompressor that is used here."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return up to ``max_length`` inflated bytes."""
        ...


class GzipMembers:
    """A reader of the gzip members of ``source``, one after the other.

    Args:
        source: an open binary file; it is read from its current position.
        name: what messages call it.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self._pending = b""

    def more(self) -> bool:
        """Return whether anything follows the last member."""
        if not self._pending:
            self._pending = self._source.read(_CHUNK)
        return bool(self._pending)

    @property
    def offset(self) -> int:
        """Where in ``source`` the next member starts. It is valid between members only."""
        return self._source.tell() - len(self._pending)

    def member(self, limit: int, raw: Callable[[bytes], object] | None = None) -> Iterator[bytes]:
        """Inflate the next member in pieces of at most 1 MiB. The caller has to read it to its end.

        Args:
            limit: bytes that it may inflate to.
            raw: called with the compressed bytes of the member as they are read.

        Raises:
            InputError: the member is truncated, damaged or not gzip, or inflates to more than ``limit`` bytes.
        """
        inflater = zlib_ng.decompressobj(_GZIP)
        total = 0
        while not inflater.eof:
            if not self.more():
                raise InputError(f"{self._name}: is truncated")
            fed, self._pending = self._pending, b""
            piece = self._inflate(inflater, fed)
            self._pending = inflater.unused_data or inflater.unconsumed_tail
            if raw is not None:
                raw(fed[: len(fed) - len(self._pending)])
            total += len(piece)
            if total > limit:
                raise InputError(f"{self._name}: inflates to more than {limit} bytes")
            if piece:
                yield piece

    def read_member(self, limit: int, raw: Callable[[bytes], object] | None = None) -> bytes:
        """Inflate all of the next member; arguments and errors are those of :meth:`member`."""
        return b"".join(self.member(limit, raw))

    def _inflate(self, inflater: _Inflater, fed: bytes) -> bytes:
        try:
            return inflater.decompress(fed, _PIECE)
        except _ZlibError as cause:
            raise InputError(f"{self._name}: is damaged ({cause})") from cause


def members_of(data: bytes, name: str) -> GzipMembers:
    """Return a reader of the members of a file that is in memory."""
    return GzipMembers(io.BytesIO(data), name)
