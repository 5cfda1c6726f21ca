"""A file that is several gzip members in a row: packages and package indexes of format version 2.

The members of such a file are inflated one after the other, each with a limit of its own, and the raw (compressed)
bytes of each are handed to whoever hashes them: signatures and identities of Alpine cover raw members, never what is
in them. Boundaries are where a member's own trailer ends (RFC 1952, section 2.3).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from imgkit.errors import InputError
from imgkit.fetch.checks import looks_like_html, refuse_version_3

_CHUNK = 1 << 18  # bytes read at a time
_PIECE = 1 << 20  # bytes inflated at a time, so that a bomb costs no memory
_GZIP = 16 + zlib.MAX_WBITS  # header and trailer with its checksum are zlib's work

GZIP_MAGIC = b"\x1f\x8b"


def refuse_foreign(head: bytes, name: str) -> None:
    """Refuse, by its first bytes, what can be no package or index of format version 2.

    Raises:
        InputError: a web page, the format of version 3, nothing at all, or something that is not gzip.
    """
    if head.startswith(GZIP_MAGIC):
        return
    refuse_version_3(head, name)
    if looks_like_html(head):
        raise InputError(f"{name}: is a web page", hint="check the mirror's URL, and whether a proxy or portal answers")
    raise InputError(f"{name}: is empty" if not head else f"{name}: is not gzip data")


class GzipMembers:
    """The gzip members of ``source``, one after the other.

    Args:
        source: an open binary file; it is read from where it stands.
        name: what the messages call it.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self._pending = b""

    def more(self) -> bool:
        """Whether anything follows the last member."""
        if not self._pending:
            self._pending = self._source.read(_CHUNK)
        return bool(self._pending)

    @property
    def offset(self) -> int:
        """Where in ``source`` the next member starts; only to be asked between members."""
        return self._source.tell() - len(self._pending)

    def member(self, limit: int, raw: Callable[[bytes], object] | None = None) -> Iterator[bytes]:
        """Inflate the next member in pieces of at most 1 MiB. It has to be read to its end.

        Args:
            limit: bytes that it may inflate to.
            raw: is given the compressed bytes of the member as they are read.

        Raises:
            InputError: it is truncated, damaged, not gzip at all, or inflates to more than ``limit`` bytes.
        """
        inflater = zlib.decompressobj(_GZIP)
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
        """All of the next member; see :meth:`member`."""
        return b"".join(self.member(limit, raw))

    def _inflate(self, inflater: zlib._Decompress, fed: bytes) -> bytes:
        try:
            return inflater.decompress(fed, _PIECE)
        except zlib.error as cause:
            raise InputError(f"{self._name}: is damaged ({cause})") from cause


def members_of(data: bytes, name: str) -> GzipMembers:
    """The members of a file that is in memory."""
    return GzipMembers(io.BytesIO(data), name)
