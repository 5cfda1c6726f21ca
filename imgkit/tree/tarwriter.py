"""Write tar archives of nodes: POSIX ustar, with pax extended headers for what does not fit into it.

Equal nodes make equal bytes: owners are numbers, times are those of the nodes, records are sorted. Format:
POSIX.1-2017, pax, sections "ustar Interchange Format" and "pax Extended Header"; extended attributes are
``SCHILY.xattr.*`` records, as GNU tar and container engines write them. An attribute whose value is empty is written as
well, but many readers ignore it, since to POSIX an empty record is none::

    for piece in archive([("etc", Directory()), ("etc/motd", File(content=Inline(b"welcome\\n")))]):
        sink.write(piece)

This module does what :mod:`tarfile` could do as well, because a header takes a quarter of the time, and contents are
read into the place from which they are compressed (``benchmarks/oci.py``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from imgkit.tree.nodes import Content, Device, Directory, File, HardLink, Inline, Node, Slice, Symlink
from imgkit.tree.paths import TreeError, encoded

PIECE = 256 << 10
"""Bytes of each piece of an archive but the last: a multiple of :data:`BLOCK` that fits into a processor's cache."""
BLOCK = 512
XATTR = "SCHILY.xattr."
"""What the names of the records of extended attributes begin with."""

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32x32x8s8s155s12x")
_BLANK_CHECKSUM = b" " * 8  # how the field counts while the checksum is computed
_MAGIC = b"ustar\00000"
_END = bytes(2 * BLOCK)
_NAME, _PREFIX, _LINK = 100, 155, 100  # bytes of the fields
_LARGEST_ID = 0o7777777
_LARGEST = 0o77777777777  # of a size or a time
_SECOND = 1_000_000_000  # nanoseconds
_KINDS: Mapping[type, bytes] = {File: b"0", HardLink: b"1", Symlink: b"2", Directory: b"5"}
_DEVICE_KINDS = {"c": b"3", "b": b"4", "p": b"6"}
_EXTENDED = b"x"
_EXTENDED_NAME = b"././@PaxHeader"


def archive(entries: Iterable[tuple[str, Node]], prefix: str = "") -> Iterator[memoryview]:
    """Yield an archive of ``entries`` in pieces of :data:`PIECE` bytes; the last one may be shorter.

    All pieces are in the same place: a piece must be used, or copied, before the next one is asked for. So the memory
    that this takes depends neither on the number of entries nor on the size of their contents.

    Args:
        entries: paths of a Tree and nodes, in the order of the archive; a file comes before the hard links to it.
        prefix: what is put before each path, such as ``./``. The root is ``./`` in any case.

    Raises:
        TreeError: a node has a number or a name that no archive can hold.
        EOFError: a file on the host is shorter than it was.
        OSError: a file on the host cannot be read.
    """
    pieces = _Pieces()
    with _Contents() as contents:
        for path, node in entries:
            yield from pieces.put(header(path, node, prefix))
            if isinstance(node, File):
                yield from pieces.copy(contents, node.content)
    yield from pieces.put(_END)
    yield from pieces.rest()


def header(path: str, node: Node, prefix: str = "") -> bytes:
    """Return what comes before the contents of an entry: one block, or more if something does not fit into that.

    Raises:
        TreeError: a number or a name of the node cannot be in an archive.
    """
    name, link, size = encoded(prefix + path if path else "./"), b"", 0
    kind = _KINDS.get(type(node), b"")
    if isinstance(node, File):
        size = node.content.size
    elif isinstance(node, Directory):
        name = name if name.endswith(b"/") else name + b"/"
    elif isinstance(node, Symlink):
        link = encoded(node.target)
    elif isinstance(node, HardLink):
        link = encoded(prefix + node.target)
    else:
        kind = _DEVICE_KINDS[node.kind]
    records: dict[str, bytes] = {}
    folder, name = _fitted_name(name, records)
    link = _fitted_link(link, records)
    _add_attributes(records, node.xattrs, path)
    numbers = (
        _octal(node.mode & 0o7777, 7),
        _octal(_fitted("uid", node.uid, _LARGEST_ID, records), 7),
        _octal(_fitted("gid", node.gid, _LARGEST_ID, records), 7),
        _octal(_fitted("size", size, _LARGEST, records), 11),
        _octal(_fitted("mtime", node.mtime, _LARGEST, records), 11),
    )
    if node.nanoseconds:
        records["mtime"] = time_text(node.mtime, node.nanoseconds).encode()
    device = (_device(path, node.major), _device(path, node.minor)) if isinstance(node, Device) else _NO_DEVICE
    block = _block(name, numbers, kind, link, device, folder)
    return _extended(records) + block if records else block


def time_text(seconds: int, nanoseconds: int) -> str:
    """Return a time as a decimal number. One before 1970 is negative as a whole: -1 s and 750,000,000 ns are -0.25."""
    total = seconds * _SECOND + nanoseconds
    whole, fraction = divmod(abs(total), _SECOND)
    return ("-" if total < 0 else "") + (f"{whole}.{fraction:09d}".rstrip("0") if fraction else str(whole))


def padding(size: int) -> int:
    """Return the number of zeros that follow ``size`` bytes of contents."""
    return -size % BLOCK


# ---- one header ------------------------------------------------------------------------------------------------------


def _octal(number: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits, number)


_NO_DEVICE = (b"", b"")


def _block(
    name: bytes,
    numbers: tuple[bytes, bytes, bytes, bytes, bytes],
    kind: bytes,
    link: bytes,
    device: tuple[bytes, bytes],
    folder: bytes,
) -> bytes:
    """Return a header block with its checksum, which is the sum of all bytes."""
    block = _HEADER.pack(name, *numbers, _BLANK_CHECKSUM, kind, link, _MAGIC, *device, folder)
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])


def _fitted_name(name: bytes, records: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Return the fields ``prefix`` and ``name``. A name that they cannot hold is put into ``records`` as well."""
    if not name.isascii():
        records["path"] = name
        return b"", name[:_NAME]
    if len(name) <= _NAME:
        return b"", name
    slash = name.rfind(b"/", 1, min(_PREFIX + 1, len(name) - 1))
    if slash > 0 and len(name) - slash - 1 <= _NAME:
        return name[:slash], name[slash + 1 :]
    records["path"] = name
    return b"", name[:_NAME]


def _fitted_link(link: bytes, records: dict[str, bytes]) -> bytes:
    """Return the field ``linkname``. A target that it cannot hold is put into ``records`` as well."""
    if len(link) <= _LINK and link.isascii():
        return link
    records["linkpath"] = link
    return link[:_LINK]


def _fitted(field: str, number: int, largest: int, records: dict[str, bytes]) -> int:
    """Return ``number`` if a field has room for it; otherwise 0, and the number is in ``records``."""
    if 0 <= number <= largest:
        return number
    records[field] = b"%d" % number
    return 0


def _device(path: str, number: int) -> bytes:
    if not 0 <= number <= _LARGEST_ID:
        raise TreeError(f"{path}: device number {number} cannot be in a tar archive")
    return _octal(number, 7)


def _add_attributes(records: dict[str, bytes], xattrs: Mapping[str, bytes], path: str) -> None:
    for name, value in xattrs.items():
        if "=" in name or "\0" in name:
            raise TreeError(f"{path}: the extended attribute {name!r} cannot be in a tar archive")
        records[XATTR + name] = value


def _extended(records: Mapping[str, bytes]) -> bytes:
    """Return the extended header of ``records``, which comes before the header that it is about."""
    body = b"".join(_record(encoded(key), value) for key, value in sorted(records.items()))
    numbers = (_octal(0, 7), _octal(0, 7), _octal(0, 7), _octal(len(body), 11), _octal(0, 11))
    block = _block(_EXTENDED_NAME, numbers, _EXTENDED, b"", _NO_DEVICE, b"")
    return block + body + bytes(padding(len(body)))


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``length key=value`` and a newline. ``length`` counts the whole record, its own digits included."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


# ---- pieces ----------------------------------------------------------------------------------------------------------


class _Pieces:
    """Bytes that are collected until there are enough of them for a piece."""

    def __init__(self) -> None:
        self._piece = memoryview(bytearray(PIECE))
        self._used = 0

    def put(self, data: bytes) -> Iterator[memoryview]:
        """Add ``data``; yield the pieces that are complete then."""
        while len(data) >= PIECE - self._used:
            room = PIECE - self._used
            self._piece[self._used :] = data[:room]
            data = data[room:]
            yield self._full()
        self._piece[self._used : self._used + len(data)] = data
        self._used += len(data)

    def copy(self, contents: _Contents, content: Content) -> Iterator[memoryview]:
        """Add the bytes of a file and the zeros after them; yield the pieces that are complete then."""
        done = 0
        while done < content.size:
            count = min(content.size - done, PIECE - self._used)
            contents.read_into(self._piece[self._used : self._used + count], content, done)
            done += count
            self._used += count
            if self._used == PIECE:
                yield self._full()
        yield from self.put(bytes(padding(content.size)))

    def rest(self) -> Iterator[memoryview]:
        """Yield what has been added since the last complete piece, if there is anything."""
        if self._used:
            yield self._piece[: self._used]

    def _full(self) -> memoryview:
        self._used = 0
        return self._piece


class _Contents:
    """Reads contents piece by piece. A file on the host is opened once for all its slices that follow each other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file = -1
        self._other: Content | None = None
        self._stream: BinaryIO | None = None

    def __enter__(self) -> _Contents:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read_into(self, view: memoryview, content: Content, start: int) -> None:
        """Fill ``view`` with the bytes of ``content`` from ``start`` on. The parts of a content are read in order."""
        if isinstance(content, Inline):
            view[:] = content.data[start : start + len(view)]
        elif isinstance(content, Slice):
            self._read_slice(view, content, start)
        else:
            self._read_stream(view, content, start)

    def _read_slice(self, view: memoryview, content: Slice, start: int) -> None:
        if content.path is not self._path and content.path != self._path:
            self._close()
            self._file = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC)
            self._path = content.path
        offset = content.offset + start
        while view:
            count = os.preadv(self._file, [view], offset)
            if not count:
                raise EOFError(f"{content.path}: file is shorter than it was")
            view = view[count:]
            offset += count

    def _read_stream(self, view: memoryview, content: Content, start: int) -> None:
        if not start:
            self._close()
            self._stream = content.open()
        assert self._stream is not None
        while view:
            data = self._stream.read(len(view))
            if not data:
                raise EOFError("a file is shorter than it was")
            view[: len(data)] = data
            view = view[len(data) :]

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._file)
        if self._stream is not None:
            self._stream.close()
        self._path = self._stream = None
