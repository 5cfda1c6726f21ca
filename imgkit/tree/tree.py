"""The Tree: a mapping of paths to nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from imgkit.errors import InputError
from imgkit.tree import tarwriter
from imgkit.tree.nodes import Directory, File, HardLink, Inline, Node, Symlink, kind
from imgkit.tree.paths import MAX_PATH, TreeError, by_parts, check_path, encoded, parent

MAX_LINKS = 40
"""Symbolic links that are followed in one resolution, as in Linux (MAXSYMLINKS)."""
MAX_READ = 512 << 20
"""Bytes of a file that is read as a whole."""
MAX_TEXT = 64 << 20
"""Bytes of a text; the largest one that imgkit reads, the database of a large system, has a third of that."""


def _reversed_parts(path: str) -> list[str]:
    """Return the parts of a path without empty ones and ``.``, the last part first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


class Tree:
    """A mutable mapping of paths to nodes with the invariant that every parent exists and is a directory."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"": Directory()}
        self._children: dict[str, set[str]] = {"": set()}
        self._names: dict[str, set[str]] = {}  # path of a file → paths of the hard links to it
        self._order: list[str] | None = None  # every path, sorted; None if there are others since

    @classmethod
    def of(cls, items: Iterable[tuple[str, Node]]) -> Tree:
        """Return a Tree of the paths and nodes that another one had, in the order of its iteration."""
        tree = cls()
        nodes, children, names = tree._nodes, tree._children, tree._names
        for path, node in items:
            nodes[path] = node
            if path:
                above, _, name = path.rpartition("/")
                children[above].add(name)
            if isinstance(node, Directory):
                children[path] = set()
            elif isinstance(node, HardLink):
                names.setdefault(node.target, set()).add(path)
        return tree

    def copy(self) -> Tree:
        """Return an independent Tree with the same nodes; the nodes themselves are shared, as they never change."""
        other = Tree()
        other.replace_with(self)
        return other

    def replace_with(self, other: Tree) -> None:
        """Become equal to ``other``."""
        self._nodes = dict(other._nodes)
        self._children = {path: set(names) for path, names in other._children.items()}
        self._names = {path: set(names) for path, names in other._names.items()}
        self._order = other._order

    # ---- reading -------------------------------------------------------------------------------------------------

    def __contains__(self, path: object) -> bool:
        """Return whether there is a node at exactly this path (``lstat``: a dangling symbolic link is a node)."""
        return path in self._nodes

    def __getitem__(self, path: str) -> Node:
        """Return the node at exactly this path (``lstat``).

        Raises:
            KeyError: there is none.
        """
        return self._nodes[path]

    def get(self, path: str) -> Node | None:
        """Return the node at exactly this path, or None."""
        return self._nodes.get(path)

    def __len__(self) -> int:
        """Return the number of nodes, the root included."""
        return len(self._nodes)

    def __iter__(self) -> Iterator[str]:
        """Return every path, sorted by its parts: directories come before what is in them, the root is first."""
        if self._order is None:
            self._order = sorted(self._nodes, key=by_parts)
        return iter(self._order)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield paths and nodes in the order of iteration."""
        for path in self:
            yield path, self._nodes[path]

    def children(self, path: str) -> list[str]:
        """Return the paths in the directory at exactly ``path``, sorted; empty if that is not a directory."""
        prefix = path + "/" if path else ""
        return sorted(prefix + name for name in self._children.get(path, ()))

    def count(self, path: str) -> int:
        """Return the number of nodes in the directory at exactly ``path``; 0 if that is not a directory."""
        return len(self._children.get(path, ()))

    def count_links(self, path: str) -> int:
        """Return how many hard links refer to the file at exactly ``path``, besides its own name."""
        return len(self._names.get(path, ()))

    def walk(self, top: str) -> Iterator[tuple[str, Node]]:
        """Yield the node at ``top`` and everything below it, parents first, sorted."""
        todo = [top]
        while todo:
            path = todo.pop()
            yield path, self._nodes[path]
            todo += reversed(self.children(path))

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """Return the path that ``path`` leads to when symbolic links are followed; it need not exist.

        Args:
            path: relative to the root; a leading ``/`` is accepted, ``.`` and ``..`` have their meaning in a chroot.
            follow: also follow a link in the last place.

        Raises:
            TreeError: there are more than :data:`MAX_LINKS` links on the way.
        """
        return self.trace(path, follow=follow)[0]

    def trace(self, path: str, *, follow: bool = True) -> tuple[str, int]:
        """Resolve a path like :meth:`resolve`; return the result, and how many parts of paths were looked up for it.

        Links can make a short path cost 80,000 lookups, so callers that resolve many foreign paths add them up.
        """
        todo = _reversed_parts(path)
        resolved = ""
        links = 0
        steps = 0
        while todo:
            steps += 1
            part = todo.pop()
            if part == "..":
                resolved = parent(resolved)
                continue
            candidate = f"{resolved}/{part}" if resolved else part
            node = self._nodes.get(candidate)
            if not isinstance(node, Symlink) or not (todo or follow):
                resolved = candidate
                continue
            links += 1
            if links > MAX_LINKS:
                raise TreeError(f"{path}: too many levels of symbolic links")
            if node.target.startswith("/"):
                resolved = ""
            todo += _reversed_parts(node.target)
        return resolved, steps

    def stat(self, path: str) -> Node | None:
        """Return the node that ``path`` leads to when symbolic and hard links are followed, or None."""
        node = self._nodes.get(self.resolve(path))
        return self._nodes.get(node.target) if isinstance(node, HardLink) else node

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """Return the contents of the regular file that ``path`` leads to.

        Raises:
            TreeError: there is nothing at the path, or something other than a regular file.
            InputError: the file has more than ``limit`` bytes, which a hostile package could use to fill the memory.
        """
        node = self.stat(path)
        if not isinstance(node, File):
            raise TreeError(f"{path}: no such file" if node is None else f"{path}: not a regular file")
        if node.content.size > limit:
            raise InputError(f"/{path}: a file of {node.content.size} bytes, where at most {limit} are read")
        return node.content.read()

    def text(self, path: str) -> str:
        """Return the contents of :meth:`read` decoded as UTF-8; other bytes survive a round trip (surrogateescape)."""
        return self.read(path, MAX_TEXT).decode(errors="surrogateescape")

    # ---- changing ------------------------------------------------------------------------------------------------

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``; whatever was there is replaced, unless it is a directory.

        Parents are taken literally: they must be directories, not links to them (use :meth:`resolve` to follow links).
        A directory that is added over a directory replaces its attributes and keeps what is in it.

        Raises:
            TreeError: the path is not valid, its parent is missing or not a directory, a directory would be replaced
                by something else or the other way round, a hard link's target is not a regular file of the Tree, or
                a symbolic link's target is not possible.
        """
        check_path(path)
        if path and not isinstance(self._nodes.get(parent(path)), Directory):
            raise TreeError(f"{path}: parent is missing or not a directory")
        old = self._nodes.get(path)
        if old is not None and isinstance(old, Directory) != isinstance(node, Directory):
            raise TreeError(f"{path}: a {kind(node)} cannot replace a {kind(old)}")
        if isinstance(node, HardLink) and (node.target == path or not isinstance(self._nodes.get(node.target), File)):
            raise TreeError(f"{path}: hard link to {node.target}, which is not a regular file")
        if isinstance(node, Symlink) and not _is_possible_target(node.target):
            raise TreeError(f"{path}: improper link target {node.target[:80]!r}")
        self._forget(path, old)
        if old is None:
            self._order = None
        self._nodes[path] = node
        if isinstance(node, HardLink):
            self._names.setdefault(node.target, set()).add(path)
        if path:
            self._children[parent(path)].add(path.rpartition("/")[2])
        if isinstance(node, Directory):
            self._children.setdefault(path, set())

    def mkdir(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        """Make a directory and its missing parents, which are root's with mode 0755; existing ones stay as they are."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            ancestor = "/".join(parts[:depth])
            if ancestor not in self._nodes:
                self.add(ancestor, Directory(mtime=mtime))
        if not isinstance(self._nodes.get(path), Directory):
            self.add(path, Directory(mode=mode, uid=uid, gid=gid, mtime=mtime))

    def write(
        self, path: str, data: bytes | str, *, mode: int | None = None, uid: int = 0, gid: int = 0, mtime: int = 0
    ) -> None:
        """Write a small file; links are followed as open(2) does, and missing parents are made.

        An existing file keeps its owner and, unless ``mode`` is given, its mode; a new one gets 0644.
        """
        place = self.resolve(path)
        content = Inline(encoded(data) if isinstance(data, str) else data)
        old = self.stat(place)
        if isinstance(old, File):
            node = self._nodes[place]
            place = node.target if isinstance(node, HardLink) else place  # write to the file that all its names share
            self._nodes[place] = replace(old, content=content, mtime=mtime, mode=old.mode if mode is None else mode)
            return
        self.mkdir(parent(place), mtime=mtime)
        self.add(place, File(content=content, mode=0o644 if mode is None else mode, uid=uid, gid=gid, mtime=mtime))

    def symlink(self, path: str, target: str, *, mtime: int = 0) -> None:
        """Make a symbolic link owned by root; missing parents are made."""
        self.mkdir(parent(path), mtime=mtime)
        self.add(path, Symlink(target=target, mtime=mtime))

    def change(self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Change mode and owner of the node at exactly ``path``; for a hard link, those of its file."""
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

    def amend(self, path: str, node: Node) -> None:
        """Replace the node at exactly ``path`` by one of the same kind; hard links keep referring to it.

        Raises:
            TreeError: the node is of another kind, or a hard link, which has no attributes of its own.
            KeyError: there is no such node.
        """
        if type(node) is not type(self._nodes[path]) or isinstance(node, HardLink):
            raise TreeError(f"{path}: a {kind(node)} cannot replace the {kind(self._nodes[path])}")
        self._nodes[path] = node

    def remove(self, path: str) -> None:
        """Remove the node at exactly ``path``; a file with other names is kept under the first of them.

        Raises:
            TreeError: the node is the root, or a directory that is not empty.
            KeyError: there is no such node.
        """
        node = self._nodes[path]
        if not path or self._children.get(path):
            raise TreeError(f"{path or '/'}: directory is not empty")
        self._forget(path, node)
        self._order = None
        del self._nodes[path]
        self._children.pop(path, None)
        self._children[parent(path)].discard(path.rpartition("/")[2])

    def _forget(self, path: str, node: Node | None) -> None:
        """Prepare the removal of ``node`` from ``path``: the first of a file's other names becomes the file."""
        if isinstance(node, HardLink):
            self._names[node.target].discard(path)
        names = self._names.pop(path, None)
        if isinstance(node, File) and names:
            first, *others = sorted(names)
            self._nodes[first] = node
            self._names[first] = set(others)
            for name in others:
                self._nodes[name] = HardLink(target=first, mode=node.mode)

    # ---- as an archive -------------------------------------------------------------------------------------------

    @property
    def content_size(self) -> int:
        """The size of all regular files together, in bytes."""
        return sum(node.content.size for node in self._nodes.values() if isinstance(node, File))

    def write_tar(self, sink: BinaryIO) -> None:
        """Write the Tree as a POSIX pax archive; it is sorted and has numeric owners, so equal Trees make equal bytes.

        Hard links come last, after their files. Extended attributes go into ``SCHILY.xattr.*`` records, which GNU tar
        restores with ``--xattrs``. The root's own attributes are in the entry ``./``.
        """
        for piece in tarwriter.archive(self._links_last(), "./"):
            sink.write(piece)

    def _links_last(self) -> Iterator[tuple[str, Node]]:
        """Yield paths and nodes in the order of iteration, the hard links after everything else."""
        hard_links: list[tuple[str, Node]] = []
        for path, node in self.items():
            if isinstance(node, HardLink):
                hard_links.append((path, node))
            else:
                yield path, node
        yield from hard_links


class LazyCopy(Tree):
    """A copy of a Tree that is made when it is changed for the first time. Until then the original must not change."""

    def __init__(self, original: Tree) -> None:
        self._nodes, self._children, self._names = original._nodes, original._children, original._names
        self._original: Tree | None = original

    def _own(self) -> None:
        if self._original is not None:
            self.replace_with(self._original)

    def replace_with(self, other: Tree) -> None:
        """Become equal to ``other``."""
        self._original = None
        super().replace_with(other)

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``; see :meth:`Tree.add`."""
        self._own()
        super().add(path, node)

    def write(
        self, path: str, data: bytes | str, *, mode: int | None = None, uid: int = 0, gid: int = 0, mtime: int = 0
    ) -> None:
        """Write a small file; see :meth:`Tree.write`."""
        self._own()
        super().write(path, data, mode=mode, uid=uid, gid=gid, mtime=mtime)

    def change(self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Change mode and owner; see :meth:`Tree.change`."""
        self._own()
        super().change(path, mode=mode, uid=uid, gid=gid)

    def amend(self, path: str, node: Node) -> None:
        """Replace a node by one of the same kind; see :meth:`Tree.amend`."""
        self._own()
        super().amend(path, node)

    def remove(self, path: str) -> None:
        """Remove a node; see :meth:`Tree.remove`."""
        self._own()
        super().remove(path)


def _is_possible_target(target: str) -> bool:
    """Return whether symlink(2) accepts this target."""
    return target != "" and "\0" not in target and len(encoded(target)) <= MAX_PATH
