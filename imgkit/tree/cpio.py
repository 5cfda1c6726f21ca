"""Write "newc" cpio archives, which the kernel unpacks as the initramfs.

    archive = newc(Member("init", File(content=Inline(b"#!/bin/sh\\n"), mode=0o755)))

Format: ``Documentation/driver-api/early-userspace/buffer-format.rst`` of the kernel. A member is a header of the magic
``070701`` and thirteen 32-bit numbers in hexadecimal, the name with its NUL, and the contents; name and contents are
each padded so that what follows starts at a multiple of four bytes. A member named ``TRAILER!!!`` ends the archive.
"""

from __future__ import annotations

import io
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from imgkit.tree import Content, Device, Directory, File, HardLink, Node, Symlink

_MAGIC = b"070701"
_TRAILER = b"TRAILER!!!"
_BLOCK = 512  # archives end at a multiple of this, as GNU cpio's do with its default for newc
_LIMIT = 1 << 32  # every number in a header has eight hexadecimal digits
_DEVICES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"),
    *("devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"),
)


class Sink(Protocol):
    """An object to which bytes can be written, such as an open file or a compressor."""

    def write(self, data: bytes, /) -> object:
        """Write all of ``data``."""
        ...


@dataclass(frozen=True)
class Member:
    """One member of an archive. ``name`` is relative (``.`` for the root); the contents of hard links are repeated."""

    name: str
    node: Node


class _CountingSink:
    """A sink that counts the bytes that pass through it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.position = 0

    def write(self, data: bytes) -> None:
        """Pass ``data`` on."""
        self._sink.write(data)
        self.position += len(data)

    def align(self, boundary: int) -> None:
        """Write zeros up to the next multiple of ``boundary`` bytes."""
        self.write(b"\0" * (-self.position % boundary))


def write_newc(sink: Sink, members: Iterable[Member]) -> int:
    """Write an archive of ``members`` in the order given.

    Inodes are numbered from 1, and every member has its own. Extended attributes are not part of the format.

    Returns:
        The length of the archive in bytes.

    Raises:
        ValueError: a member is a hard link (pass the file instead), its name is empty or has a NUL in it, one of its
            numbers does not fit into 32 bits, or its content does not have the size that it announces.
    """
    out = _CountingSink(sink)
    for inode, member in enumerate(members, 1):
        _write_member(out, inode, member)
    _write_header(out, _TRAILER, {"nlink": 1})
    out.align(_BLOCK)
    return out.position


def newc(*members: Member) -> bytes:
    """Return an archive of ``members``; see :func:`write_newc`."""
    sink = io.BytesIO()
    write_newc(sink, members)
    return sink.getvalue()


def _write_member(out: _CountingSink, inode: int, member: Member) -> None:
    node = member.node
    target = node.target.encode(errors="surrogateescape") if isinstance(node, Symlink) else b""
    content: Content | None = node.content if isinstance(node, File) else None
    fields = {
        "ino": inode,
        "mode": _type(member) | stat.S_IMODE(node.mode),
        "uid": node.uid,
        "gid": node.gid,
        "nlink": 2 if isinstance(node, Directory) else 1,
        "mtime": node.mtime,
        "filesize": content.size if content else len(target),
    }
    if isinstance(node, Device):
        fields |= {"rdevmajor": node.major, "rdevminor": node.minor}
    _write_header(out, member.name.encode(errors="surrogateescape"), fields)
    if content:
        _copy(out, content)
    out.write(target)
    out.align(4)


def _copy(out: _CountingSink, content: Content) -> None:
    start = out.position
    with content.open() as source:
        shutil.copyfileobj(source, out)
    if out.position - start != content.size:
        raise ValueError(f"content has {out.position - start} bytes where {content.size} were announced")


def _type(member: Member) -> int:
    """Return the file type bits of a member's mode."""
    node = member.node
    if isinstance(node, HardLink):
        raise ValueError(f"{member.name}: hard links are written as the file that they name")
    if isinstance(node, Device):
        return _DEVICES[node.kind]
    return {Directory: stat.S_IFDIR, File: stat.S_IFREG, Symlink: stat.S_IFLNK}[type(node)]


def _write_header(out: _CountingSink, name: bytes, fields: dict[str, int]) -> None:
    if not name or b"\0" in name:
        raise ValueError(f"{name!r} cannot be the name of a member of an archive")
    numbers = {**fields, "namesize": len(name) + 1}
    for field, number in numbers.items():
        if not 0 <= number < _LIMIT:
            raise ValueError(f"{name.decode(errors='replace')}: {field} {number} does not fit into 32 bits")
    out.write(_MAGIC + b"".join(b"%08X" % numbers.get(field, 0) for field in _FIELDS) + name + b"\0")
    out.align(4)
