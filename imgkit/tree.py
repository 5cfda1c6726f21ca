"""The whole root filesystem as values: path → node.

Paths are relative to the root and use ``/`` (``etc/passwd``); the root itself is the empty string. File contents are
references (:class:`Inline` bytes or a :class:`Slice` of a file on the host), so a Tree of hundreds of megabytes costs
a few of memory. Owners and modes are data here: they never depend on what the host lets a process do.

Links are resolved inside the Tree only, as ``chroot`` would: an absolute target starts at the Tree's root and ``..``
cannot climb above it. Nothing here opens a path of the image on the host.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol, TypeAlias

from imgkit.errors import InputError

MAX_LINKS = 40  # symbolic links followed in one resolution, as Linux (MAXSYMLINKS)
MAX_PATH = 4095  # bytes of a path and of a link's target, as Linux (PATH_MAX without its final zero)
MAX_READ = 512 << 20  # bytes of a file that is read as a whole
MAX_TEXT = 64 << 20  # bytes of a text; the largest one that is read, the database of a large system, has a third of it
MAX_NAME = 255  # bytes of a name in a directory (NAME_MAX)
_XATTR = "SCHILY.xattr."  # pax records of GNU tar and star
_NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})


class TreeError(Exception):
    """A path or an operation that makes no sense in this Tree. Callers say whose fault it is."""


class Content(Protocol):
    """The bytes of a regular file, wherever they are."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def open(self) -> BinaryIO:
        """A stream of exactly ``size`` bytes; the caller closes it."""
        ...

    def read(self) -> bytes:
        """All of it."""
        ...


@dataclass(frozen=True)
class Inline:
    """Content held in memory: for small, generated files."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Slice:
    """Content that is ``size`` bytes at ``offset`` of a file on the host (a spooled archive, or the file itself)."""

    path: Path
    offset: int
    size: int

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Window(self.path, self.offset, self.size))

    def read(self) -> bytes:
        with self.open() as source:
            return source.read()


class _Window(io.RawIOBase):
    """Raw read-only view of a part of a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._source = path.open("rb", buffering=0)
        self._source.seek(offset)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        count = self._source.readinto(view) or 0
        if not count:
            raise EOFError(f"{self._source.name}: file is shorter than it was")
        self._left -= count
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


@dataclass(frozen=True, kw_only=True)
class _Attributes:
    """What every node has. ``mtime`` is whole seconds since 1970."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NO_XATTRS)


@dataclass(frozen=True, kw_only=True)
class Directory(_Attributes):
    mode: int = 0o755


@dataclass(frozen=True, kw_only=True)
class File(_Attributes):
    content: Content
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Symlink(_Attributes):
    target: str
    mode: int = 0o777


@dataclass(frozen=True, kw_only=True)
class HardLink(_Attributes):
    """Another name of the regular file at ``target`` (a path of the Tree); attributes are those of that file."""

    target: str
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Device(_Attributes):
    """A character (``kind`` "c"), block ("b") device, or a FIFO ("p")."""

    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o600


Node: TypeAlias = Directory | File | Symlink | HardLink | Device


def check_path(path: str) -> str:
    """Return ``path`` if it is a proper path of a Tree.

    Raises:
        TreeError: it is absolute, has empty, ``.`` or ``..`` parts, or control characters (apk refuses these too), or
            it is longer than a filesystem takes.
    """
    if len(path) > MAX_NAME // 4 and _is_too_long(path):  # a character has at most four bytes
        raise TreeError(f"{path[:80]!r}… is longer than a path may be")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise TreeError(f"{path!r} is not a path inside the root filesystem")
    if any(character < " " or character == "\x7f" for character in path):
        raise TreeError(f"{path!r} has control characters in it")
    return path


def _is_too_long(path: str) -> bool:
    return len(_raw(path)) > MAX_PATH or any(len(_raw(part)) > MAX_NAME for part in path.split("/"))


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def parent(path: str) -> str:
    """The directory that ``path`` is in."""
    return path.rpartition("/")[0]


class Tree:
    """A mutable mapping of paths to nodes with the invariant that every parent exists and is a directory."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"": Directory()}
        self._children: dict[str, set[str]] = {"": set()}
        self._names: dict[str, set[str]] = {}  # the hard links to a file

    def copy(self) -> Tree:
        """An independent Tree with the same nodes, which are shared: they never change."""
        other = Tree()
        other.replace_with(self)
        return other

    def replace_with(self, other: Tree) -> None:
        """Become equal to ``other``."""
        self._nodes = dict(other._nodes)
        self._children = {path: set(names) for path, names in other._children.items()}
        self._names = {path: set(names) for path, names in other._names.items()}

    # ---- looking -------------------------------------------------------------------------------------------------

    def __contains__(self, path: object) -> bool:
        """Whether there is a node at exactly this path; a dangling symbolic link counts (``lstat``)."""
        return path in self._nodes

    def __getitem__(self, path: str) -> Node:
        """The node at exactly this path (``lstat``); KeyError if there is none."""
        return self._nodes[path]

    def get(self, path: str) -> Node | None:
        """The node at exactly this path, or None."""
        return self._nodes.get(path)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[str]:
        """Every path in byte order, which puts directories before what is in them. The root comes first."""
        return iter(sorted(self._nodes, key=lambda path: path.split("/")))

    def items(self) -> Iterator[tuple[str, Node]]:
        """Paths and nodes in the order of iteration."""
        for path in self:
            yield path, self._nodes[path]

    def children(self, path: str) -> list[str]:
        """Full paths of what is in the directory at ``path`` (exactly), sorted; empty if it is no directory."""
        prefix = path + "/" if path else ""
        return sorted(prefix + name for name in self._children.get(path, ()))

    def count(self, path: str) -> int:
        """How many nodes are in the directory at ``path`` (exactly); 0 if it is no directory."""
        return len(self._children.get(path, ()))

    def walk(self, top: str) -> Iterator[tuple[str, Node]]:
        """The node at ``top`` and everything below it, parents first, sorted."""
        todo = [top]
        while todo:
            path = todo.pop()
            yield path, self._nodes[path]
            todo += reversed(self.children(path))

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """The path that ``path`` means once symbolic links are followed, whether or not something is there.

        Args:
            path: relative to the root; a leading ``/`` is accepted, ``.`` and ``..`` are walked as in a chroot.
            follow: also follow a link in the last place.

        Raises:
            TreeError: more than :data:`MAX_LINKS` links.
        """
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        here = ""
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                here = parent(here)
                continue
            there = f"{here}/{part}" if here else part
            node = self._nodes.get(there)
            if not isinstance(node, Symlink) or not (todo or follow):
                here = there
                continue
            links += 1
            if links > MAX_LINKS:
                raise TreeError(f"{path}: too many levels of symbolic links")
            if node.target.startswith("/"):
                here = ""
            todo.extend(part for part in reversed(node.target.split("/")) if part not in ("", "."))
        return here

    def stat(self, path: str) -> Node | None:
        """The node that ``path`` leads to with symbolic and hard links followed, or None."""
        node = self._nodes.get(self.resolve(path))
        return self._nodes.get(node.target) if isinstance(node, HardLink) else node

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """The contents of the regular file that ``path`` leads to.

        Raises:
            TreeError: there is no such file, or it is something else.
            InputError: it has more than ``limit`` bytes. Whoever made the file wants it to be read into memory.
        """
        node = self.stat(path)
        if not isinstance(node, File):
            raise TreeError(f"{path}: no such file" if node is None else f"{path}: not a regular file")
        if node.content.size > limit:
            raise InputError(f"/{path}: a file of {node.content.size} bytes, where at most {limit} are read")
        return node.content.read()

    def text(self, path: str) -> str:
        """:meth:`read` as UTF-8; bytes that are not survive a round trip (surrogateescape)."""
        return self.read(path, MAX_TEXT).decode(errors="surrogateescape")

    # ---- changing ------------------------------------------------------------------------------------------------

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``, in place of whatever non-directory was there.

        Parents are taken literally: they must be directories, not links to them (resolve first where links count).
        A directory over a directory replaces its attributes and keeps what is in it.

        Raises:
            TreeError: an improper path, a parent that is missing or no directory, a directory replaced by something
                else or the other way round, a hard link to something that is not a regular file of the Tree.
        """
        check_path(path)
        if path and not isinstance(self._nodes.get(parent(path)), Directory):
            raise TreeError(f"{path}: parent is missing or not a directory")
        old = self._nodes.get(path)
        if old is not None and isinstance(old, Directory) != isinstance(node, Directory):
            raise TreeError(f"{path}: a {kind(node)} cannot replace a {kind(old)}")
        if isinstance(node, HardLink) and (node.target == path or not isinstance(self._nodes.get(node.target), File)):
            raise TreeError(f"{path}: hard link to {node.target}, which is not a regular file")
        if isinstance(node, Symlink) and ("\0" in node.target or not node.target or len(_raw(node.target)) > MAX_PATH):
            raise TreeError(f"{path}: improper link target {node.target[:80]!r}")
        self._forget(path, old)
        self._nodes[path] = node
        if isinstance(node, HardLink):
            self._names.setdefault(node.target, set()).add(path)
        if path:
            self._children[parent(path)].add(path.rpartition("/")[2])
        if isinstance(node, Directory):
            self._children.setdefault(path, set())

    def mkdir(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        """Make the directory ``path`` and its missing parents (those root's, 0755); existing ones stay as they are."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above not in self._nodes:
                self.add(above, Directory(mtime=mtime))
        if not isinstance(self._nodes.get(path), Directory):
            self.add(path, Directory(mode=mode, uid=uid, gid=gid, mtime=mtime))

    def write(
        self, path: str, data: bytes | str, *, mode: int | None = None, uid: int = 0, gid: int = 0, mtime: int = 0
    ) -> None:
        """Write a small generated file, following links as opening it for writing would; missing parents are made.

        An existing file keeps its owner and, unless ``mode`` is given, its mode; a new one gets 0644.
        """
        where = self.resolve(path)
        content = Inline(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
        old = self.stat(where)
        if isinstance(old, File):
            node = self._nodes[where]
            where = node.target if isinstance(node, HardLink) else where
            mode = old.mode if mode is None else mode
            self._nodes[where] = replace(old, content=content, mtime=mtime, mode=mode)  # for all of its names
            return
        self.mkdir(parent(where), mtime=mtime)
        self.add(where, File(content=content, mode=0o644 if mode is None else mode, uid=uid, gid=gid, mtime=mtime))

    def symlink(self, path: str, target: str, *, mtime: int = 0) -> None:
        """Make a symbolic link owned by root; missing parents are made."""
        self.mkdir(parent(path), mtime=mtime)
        self.add(path, Symlink(target=target, mtime=mtime))

    def change(self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """chmod and chown of the node at exactly ``path``; a hard link changes the file it is a name of."""
        node = self._nodes[path]
        if isinstance(node, HardLink):
            self.change(node.target, mode=mode, uid=uid, gid=gid)
            return
        self._nodes[path] = replace(
            node,
            mode=node.mode if mode is None else mode,
            uid=node.uid if uid is None else uid,
            gid=node.gid if gid is None else gid,
        )

    def remove(self, path: str) -> None:
        """Remove the node at exactly ``path``; a file that has other names lives on under the first of them.

        Raises:
            TreeError: it is a directory with something in it, or the root.
            KeyError: there is nothing.
        """
        node = self._nodes[path]
        if not path or self._children.get(path):
            raise TreeError(f"{path or '/'}: directory is not empty")
        self._forget(path, node)
        del self._nodes[path]
        self._children.pop(path, None)
        self._children[parent(path)].discard(path.rpartition("/")[2])

    def _forget(self, path: str, node: Node | None) -> None:
        """Before ``node`` leaves ``path``: the first of a file's other names takes it over."""
        if isinstance(node, HardLink):
            self._names[node.target].discard(path)
        names = self._names.pop(path, None)
        if isinstance(node, File) and names:
            heir, *others = sorted(names)
            self._nodes[heir] = node
            self._names[heir] = set(others)
            for name in others:
                self._nodes[name] = HardLink(target=heir, mode=node.mode)

    # ---- as an archive -------------------------------------------------------------------------------------------

    @property
    def content_size(self) -> int:
        """Sum of the sizes of all regular files, in bytes."""
        return sum(node.content.size for node in self._nodes.values() if isinstance(node, File))

    def write_tar(self, sink: BinaryIO) -> None:
        """Write the Tree as a POSIX pax archive: numeric owners, sorted, so equal Trees make equal bytes.

        Hard links follow the file that they name. Extended attributes go into ``SCHILY.xattr.*`` records, which GNU
        tar restores with ``--xattrs``. The root's own attributes are the entry ``./``.
        """
        late: list[tuple[str, Node]] = []
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
            for path, node in self.items():
                if isinstance(node, HardLink):
                    late.append((path, node))
                elif isinstance(node, File):
                    with node.content.open() as source:
                        archive.addfile(_member(path, node), source)
                else:
                    archive.addfile(_member(path, node))
            for path, node in late:
                archive.addfile(_member(path, node))


_KINDS: Mapping[type, str] = {
    Directory: "directory",
    File: "file",
    Symlink: "symbolic link",
    HardLink: "hard link",
    Device: "device",
}
_DEVICE_TYPES = {"c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "p": tarfile.FIFOTYPE}


def kind(node: Node) -> str:
    """What a node is, in words."""
    return _KINDS[type(node)]


def xattrs_of(pax: Mapping[str, str]) -> Mapping[str, bytes]:
    """The extended attributes in the pax records of an entry of a tar archive."""
    found = {
        key[len(_XATTR) :]: value.encode(errors="surrogateescape")
        for key, value in pax.items()
        if key.startswith(_XATTR)
    }
    return MappingProxyType(found) if found else _NO_XATTRS


def _member(path: str, node: Node) -> tarfile.TarInfo:
    info = tarfile.TarInfo("./" + path)
    info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime
    info.pax_headers = {
        f"{_XATTR}{name}": value.decode(errors="surrogateescape") for name, value in sorted(node.xattrs.items())
    }
    if isinstance(node, Directory):
        info.type = tarfile.DIRTYPE
    elif isinstance(node, File):
        info.size = node.content.size
    elif isinstance(node, Symlink):
        info.type, info.linkname = tarfile.SYMTYPE, node.target
    elif isinstance(node, HardLink):
        info.type, info.linkname = tarfile.LNKTYPE, "./" + node.target
    else:
        info.type, info.devmajor, info.devminor = _DEVICE_TYPES[node.kind], node.major, node.minor
    return info
