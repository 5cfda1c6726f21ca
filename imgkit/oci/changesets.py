"""Apply the layers of an image to a Tree, one after the other (image-spec 1.1, "Applying Changesets").

What the specification leaves open is done as containerd and umoci do it:

* A name may begin with ``./`` or ``/``; kaniko and Bazel write both. It starts at the root of the image either way.
* Symbolic links in the directories of a name are followed inside the image, and one in the last place is replaced.
* A directory over a directory changes its attributes; anything else that stands in the way is removed, with all that
  is in it.
* Directories that a layer does not list are made, as root's with mode 0755.
* A hard link gives its attributes to the file.

A whiteout hides what lower layers have, wherever it stands among the entries of its own layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgkit.oci.layerchanges import WHITEOUT
from imgkit.tree import Device, Directory, File, HardLink, Node, Symlink, Tree, TreeError, check_path, parent
from imgkit.tree.members import Spool, node_of, with_attributes
from imgkit.tree.tar import xattrs_of
from imgkit.tree.tarstream import REGULAR, Header, TarStream

OPAQUE = ".wh..wh..opq"
"""The name of the whiteout that hides everything in its directory."""
_AUFS = ".wh..wh."  # how names begin that AUFS, a filesystem of early Docker, uses for itself
_ATTRIBUTE_COST = 256  # bytes of memory that an extended attribute takes besides its text
_LINK_COST = 8  # lookups that take as long as the change of one hard link
_MOST_SHOWN = 120  # characters of a name that a message shows


@dataclass
class Allowance:
    """What the layers of one image may cost together. Every number goes down while they are applied.

    Attributes:
        entries: members of archives, and directories that they do not list.
        text: bytes of names, link targets and extended attributes, which are kept in memory.
        steps: lookups in the resolution of links, and changes of hard links whose file is removed.
    """

    entries: int = 1_000_000
    text: int = 256 << 20
    steps: int = 50_000_000

    def take(self, *, entries: int = 0, text: int = 0, steps: int = 0) -> None:
        """Take something away.

        Raises:
            TreeError: there is not as much left.
        """
        self.entries -= entries
        self.text -= text
        self.steps -= steps
        if self.entries < 0:
            raise TreeError("there are too many files in the image")
        if self.text < 0:
            raise TreeError("the names and attributes of the image's files are too long altogether")
        if self.steps < 0:
            raise TreeError("the links of the image are too expensive to follow")


class Changeset:
    """Applies one layer to ``tree``, which holds the layers below it.

    Device nodes and FIFOs become nodes of the Tree like everything else.
    """

    def __init__(self, tree: Tree, spool: Spool, allowance: Allowance) -> None:
        self._tree = tree
        self._spool = spool
        self._allowance = allowance
        self._own: set[str] = set()  # paths of this layer's entries
        self._above: set[str] = set()  # directories that these are in, at any depth
        self._bare: set[str] = set()  # directories below which lower layers have nothing any more

    def apply(self, pieces: Iterator[bytes]) -> None:
        """Apply the layer, a tar archive in pieces of bytes.

        Raises:
            TarError: the archive is damaged.
            TreeError: it has an entry that no image may have, or the layers cost more than the allowance.
        """
        stream = TarStream(pieces)
        for header in stream:
            self._count(header)
            path = _path(header.name)
            directory, _, name = path.rpartition("/")
            if path.startswith(_AUFS) and path != OPAQUE:
                continue
            if name.startswith(WHITEOUT):
                self._hide(directory, name)
            else:
                self._add(path, header, stream)

    def _count(self, header: Header) -> None:
        attributes = sum(len(name) + len(value) + _ATTRIBUTE_COST for name, value in xattrs_of(header.pax).items())
        self._allowance.take(entries=1, text=len(header.name) + len(header.link) + attributes)

    # ---- whiteouts ---------------------------------------------------------------------------------------------------

    def _hide(self, directory: str, name: str) -> None:
        """Apply a whiteout. One that hits nothing is ignored."""
        place = self._resolved(directory)
        if name == OPAQUE:
            if isinstance(self._tree.get(place), Directory):
                self._strip(place)
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise TreeError(f"{_shown(directory, name)}: a whiteout of nothing that a directory can have")
        path = f"{place}/{hidden}" if place else hidden
        if path not in self._tree:
            return
        if path not in self._own and path not in self._above:
            self._remove(path)
        elif isinstance(self._tree[path], Directory):
            self._strip(path)
            if path not in self._own:
                self._tree.add(path, Directory())

    def _strip(self, top: str) -> None:
        """Remove what lower layers have in a directory, at any depth."""
        todo = [top]
        while todo:
            directory = todo.pop()
            if directory in self._bare:
                continue
            self._bare.add(directory)
            for path in self._tree.children(directory):
                if path not in self._own and path not in self._above:
                    self._remove(path)
                    continue
                if path not in self._own:
                    self._tree.add(path, Directory())
                todo.append(path)

    def _remove(self, top: str) -> None:
        """Remove a node and everything below it."""
        for path, _ in reversed(list(self._tree.walk(top))):
            self._allowance.take(steps=1 + _LINK_COST * self._tree.count_links(path))
            self._tree.remove(path)

    # ---- entries -----------------------------------------------------------------------------------------------------

    def _add(self, path: str, header: Header, stream: TarStream) -> None:
        if header.kind == REGULAR and header.name.endswith("/"):
            raise TreeError(f"{_shown(path)}: a file whose name ends with a slash")
        place = self._place(path)
        node = node_of(header, self._spool.keep(header, stream))
        old = self._tree.get(place)
        if old is not None and not (isinstance(old, Directory) and isinstance(node, Directory)):
            if not place:
                raise TreeError("the root of the image would not be a directory")
            self._remove(place)
        self._tree.add(place, self._linked(header) if node is None else node)
        self._own.add(place)

    def _place(self, path: str) -> str:
        """Return where in the Tree an entry belongs; its directory is there afterwards."""
        check_path(path)
        if any(part.startswith(WHITEOUT) for part in path.split("/")):
            raise TreeError(f"{_shown(path)}: an entry below a whiteout")
        directory = self._resolved(parent(path))
        self._make(directory)
        name = path.rpartition("/")[2]
        return f"{directory}/{name}" if directory else name

    def _resolved(self, directory: str) -> str:
        """Return the directory that a name of the layer means: links in it are followed inside the Tree."""
        if isinstance(self._tree.get(directory), Directory):
            return directory  # a path of the Tree has no links in it
        place, steps = self._tree.trace(directory)
        self._allowance.take(steps=steps)
        return place

    def _make(self, directory: str) -> None:
        """Make a directory and those that it is in, where they are missing, and note that they have own entries."""
        missing = []
        while directory and not (directory in self._above and directory in self._tree):
            self._above.add(directory)
            if directory not in self._tree:
                self._allowance.take(entries=1, text=len(directory))
                missing.append(directory)
            directory = parent(directory)
        for path in reversed(missing):
            self._tree.add(path, Directory())

    def _linked(self, header: Header) -> Node:
        """Return the node of a hard link, and give its attributes to the file."""
        path = _path(header.link)
        place, _, name = path.rpartition("/")
        place = self._resolved(place)
        target = f"{place}/{name}" if place else name
        node = self._tree.get(target)
        if isinstance(node, HardLink):
            target = node.target
            node = self._tree[target]
        if isinstance(node, (Symlink, Device)):
            return with_attributes(node, header)  # the Tree has links to files only
        if not isinstance(node, File):
            raise TreeError(f"{_shown(header.name)}: a hard link to {_shown(path)}, which is not a file of the image")
        self._tree.amend(target, with_attributes(node, header))
        return HardLink(target=target, mode=header.mode)


def _path(name: str) -> str:
    """Return ``etc/hosts`` for ``./etc/hosts``, ``/etc/hosts`` and ``etc//hosts``; ``""`` is the root.

    Raises:
        TreeError: the name leads out of the image.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise TreeError(f"{_shown(name)}: a name with '..' in it")
    if not name:
        raise TreeError("an entry has no name")
    return "/".join(parts)


def _shown(*parts: str) -> str:
    """Return the beginning of a path, for messages."""
    path = "/".join(filter(None, parts))
    return repr(path if len(path) <= _MOST_SHOWN else path[:_MOST_SHOWN] + "…")
