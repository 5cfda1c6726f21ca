"""The nodes of a Tree: directories, files, links and devices, and the contents of files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol, TypeAlias

NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})
"""The extended attributes of a node that has none."""
_PIECE = 1 << 20  # bytes hashed at a time


class Content(Protocol):
    """The bytes of a regular file, wherever they are kept."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def open(self) -> BinaryIO:
        """Open a stream of exactly ``size`` bytes, which the caller closes."""
        ...

    def read(self) -> bytes:
        """Read all bytes."""
        ...


@dataclass(frozen=True)
class Inline:
    """Content that is kept in memory, for small files that are generated."""

    data: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def open(self) -> BinaryIO:
        """Open a stream of the bytes."""
        return io.BytesIO(self.data)

    def read(self) -> bytes:
        """Return the bytes."""
        return self.data


@dataclass(frozen=True)
class Slice:
    """Content that is part of a file on the host: ``size`` bytes from ``offset`` on.

    The file may be an unpacked archive, or just a file (``offset`` 0). It must not change while the Tree is in use.
    """

    path: Path
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Open a stream of these bytes; reading raises EOFError if the file has become shorter."""
        return io.BufferedReader(_Window(self.path, self.offset, self.size))

    def read(self) -> bytes:
        """Read these bytes; raises EOFError if the file has become shorter."""
        return self.part(0, self.size)

    def part(self, start: int, size: int) -> bytes:
        """Read ``size`` of these bytes from ``start`` on; raises EOFError if the file has become shorter.

        A stream takes several times as long, which counts where the first bytes of thousands of files are looked at.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            place, end = self.offset + start, self.offset + start + size
            pieces = []
            while place < end:
                piece = os.pread(descriptor, end - place, place)
                if not piece:
                    raise EOFError(f"{self.path}: file is shorter than it was")
                pieces.append(piece)
                place += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(descriptor)


START = 4
"""Bytes of a content that a :class:`HashedSlice` notes."""


@dataclass(frozen=True)
class HashedSlice(Slice):
    """A slice of which some facts were noted when it was written.

    Attributes:
        sha256: of its bytes (32 bytes).
        start: its first bytes, four if it has so many: enough to tell what format a file has without opening it.
    """

    sha256: bytes
    start: bytes


def sha256_of(content: Content) -> bytes:
    """Return the SHA-256 of a content. It is computed only where it is not known.

    Raises:
        OSError, EOFError: a file on the host cannot be read, or is shorter than it was.
    """
    if isinstance(content, HashedSlice):
        return content.sha256
    if isinstance(content, Inline):
        return hashlib.sha256(content.data).digest()
    digest = hashlib.sha256()
    with content.open() as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
    return digest.digest()


class _Window(io.RawIOBase):
    """A raw stream of a part of a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._source = path.open("rb", buffering=0)
        self._source.seek(offset)
        self._left = size

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read bytes into ``buffer``; raise EOFError if the file has become shorter."""
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        count = self._source.readinto(view) or 0
        if not count:
            raise EOFError(f"{self._source.name}: file is shorter than it was")
        self._left -= count
        return count

    def close(self) -> None:
        """Close the file."""
        self._source.close()
        super().close()


@dataclass(frozen=True, kw_only=True)
class _Attributes:
    """The attributes of every node: permission bits, owner, time and extended attributes.

    Attributes:
        mtime: whole seconds since 1970, rounded down; negative before.
        nanoseconds: what the time has besides, less than 1,000,000,000.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nanoseconds: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: NO_XATTRS)


@dataclass(frozen=True, kw_only=True)
class Directory(_Attributes):
    """A directory; what is in it is known to the Tree."""

    mode: int = 0o755


@dataclass(frozen=True, kw_only=True)
class File(_Attributes):
    """A regular file."""

    content: Content
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Symlink(_Attributes):
    """A symbolic link to ``target``, which may be missing."""

    target: str
    mode: int = 0o777


@dataclass(frozen=True, kw_only=True)
class HardLink(_Attributes):
    """Another name of the regular file at ``target`` (a path of the Tree), whose attributes apply."""

    target: str
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Device(_Attributes):
    """A character device (``kind`` is "c"), a block device ("b") or a FIFO ("p")."""

    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o600


Node: TypeAlias = Directory | File | Symlink | HardLink | Device

_KINDS: Mapping[type, str] = {
    Directory: "directory",
    File: "file",
    Symlink: "symbolic link",
    HardLink: "hard link",
    Device: "device",
}


def kind(node: Node) -> str:
    """Return the kind of a node in words, such as "symbolic link"."""
    return _KINDS[type(node)]
