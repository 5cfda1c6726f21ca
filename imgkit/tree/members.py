"""Members of a tar archive as nodes of a Tree. The contents of files are kept in a spool, a file on the host::

with Spool(path) as spool:
    for header in stream:
        tree.add(header.name, node_of(header, spool.keep(header, stream)))
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from imgkit.host.room import no_room, no_room_for
from imgkit.tree import tarstream
from imgkit.tree.nodes import START, Content, Device, Directory, File, HashedSlice, Inline, Node, Symlink
from imgkit.tree.tar import xattrs_of
from imgkit.tree.tarstream import Header, TarStream

_DEVICES = {tarstream.CHARACTER: "c", tarstream.BLOCK_DEVICE: "b", tarstream.FIFO: "p"}
_EMPTY = Inline(b"")


class Spool:
    """A new file that takes the contents of many files, one after the other. It is open within a ``with`` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = path.open("xb", buffering=0)  # a buffer would try to write again while it is being closed
        self._offset = 0

    def __enter__(self) -> Spool:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._sink.close()

    def keep(self, header: Header, stream: TarStream) -> Content:
        """Copy the contents of the stream's current member, and return a reference to the copy.

        Raises:
            TarError: the stream is truncated.
            HostError: the host has no space left for the contents.
        """
        if not header.size:
            return _EMPTY
        digest, start = hashlib.sha256(), b""
        for piece in stream.content():
            digest.update(piece)
            start = start if len(start) == START else start + bytes(piece[: START - len(start)])
            self._write(piece)
        content = HashedSlice(self._path, self._offset, header.size, digest.digest(), start)
        self._offset += header.size
        return content

    def _write(self, data: memoryview) -> None:
        """Write all of ``data``: a file without a buffer may take less at a time."""
        try:
            while data:
                data = data[self._sink.write(data) :]
        except OSError as cause:
            if no_room(cause):
                raise no_room_for(self._path.parent, "the contents of files") from cause
            raise


def node_of(header: Header, content: Content) -> Node | None:
    """Return the node that a member describes; None for a hard link, whose node depends on the Tree.

    Args:
        content: of a regular file; it is not used for other members.
    """
    node: Node
    if header.kind == tarstream.HARD_LINK:
        return None
    if header.kind == tarstream.DIRECTORY:
        node = Directory()
    elif header.kind == tarstream.SYMLINK:
        node = Symlink(target=header.link)
    elif header.kind == tarstream.REGULAR:
        node = File(content=content)
    else:
        node = Device(kind=_DEVICES[header.kind], major=header.major, minor=header.minor)
    return with_attributes(node, header)


def with_attributes(node: Node, header: Header) -> Node:
    """Return ``node`` with the mode, the owner, the time and, besides its own, the extended attributes of a member."""
    added = xattrs_of(header.pax)
    xattrs = {**node.xattrs, **added} if node.xattrs and added else added or node.xattrs
    return replace(
        node,
        mode=header.mode,
        uid=header.uid,
        gid=header.gid,
        mtime=header.mtime,
        nanoseconds=header.nanoseconds,
        xattrs=xattrs,
    )
