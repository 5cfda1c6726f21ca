"""The "newc" cpio archive, which the kernel unpacks as the initramfs.

Format: ``Documentation/driver-api/early-userspace/buffer-format.rst`` of the kernel. A member is a header of the magic
``070701`` and thirteen 32-bit numbers in hexadecimal, the name with its NUL, and the contents; name and contents are
each padded so that what follows starts at a multiple of four bytes. A member named ``TRAILER!!!`` ends the archive.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from imgkit.tree import Content, Device, Directory, File, HardLink, Node, Symlink

MAGIC = b"070701"
TRAILER = b"TRAILER!!!"
BLOCK = 512  # archives end at a multiple of this, as GNU cpio's do with its default for newc
_LIMIT = 1 << 32  # every number in a header has eight hexadecimal digits
_CHUNK = 1 << 18
_DEVICES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class Sink(Protocol):
    """Whatever takes bytes: an open file, a compressor."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""
        ...


@dataclass(frozen=True)
class Member:
    """One member of an archive. ``name`` is relative (``.`` for the root); the contents of hard links are repeated."""

    name: str
    node: Node


class _Counter:
    """A sink that knows how much went through it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.position = 0

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self.position += len(data)
        return len(data)

    def align(self, boundary: int) -> None:
        self.write(b"\0" * (-self.position % boundary))


def write_newc(sink: Sink, members: Iterable[Member]) -> int:
    """Write an archive of ``members`` in the order given and return its length in bytes.

    Inodes are numbered from 1, every member has its own. Extended attributes are not part of the format.

    Raises:
        ValueError: a hard link (give the file instead), a name that is empty or has a NUL in it, or a number that
            does not fit into 32 bits.
    """
    out = _Counter(sink)
    for inode, member in enumerate(members, 1):
        _member(out, inode, member)
    _header(out, TRAILER, {"nlink": 1})
    out.align(BLOCK)
    return out.position


def _member(out: _Counter, inode: int, member: Member) -> None:
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
    _header(out, member.name.encode(errors="surrogateescape"), fields)
    if content:
        _copy(out, content)
    out.write(target)
    out.align(4)


def _copy(out: _Counter, content: Content) -> None:
    start = out.position
    with content.open() as source:
        shutil.copyfileobj(source, out, _CHUNK)
    if out.position - start != content.size:
        raise ValueError(f"content has {out.position - start} bytes where {content.size} were announced")


def _type(member: Member) -> int:
    node = member.node
    if isinstance(node, HardLink):
        raise ValueError(f"{member.name}: hard links are written as the file that they name")
    if isinstance(node, Device):
        return _DEVICES[node.kind]
    return {Directory: stat.S_IFDIR, File: stat.S_IFREG, Symlink: stat.S_IFLNK}[type(node)]


_FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"),
    *("devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"),
)


def _header(out: _Counter, name: bytes, fields: dict[str, int]) -> None:
    if not name or b"\0" in name:
        raise ValueError(f"{name!r} is no name for a member of an archive")
    numbers = {**fields, "namesize": len(name) + 1}
    for field, number in numbers.items():
        if not 0 <= number < _LIMIT:
            raise ValueError(f"{name.decode(errors='replace')}: {field} {number} does not fit into 32 bits")
    out.write(MAGIC + b"".join(b"%08X" % numbers.get(field, 0) for field in _FIELDS) + name + b"\0")
    out.align(4)
