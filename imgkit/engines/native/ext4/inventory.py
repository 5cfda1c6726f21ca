"""What a filesystem will hold, before it is known where: numbers of inodes, and the blocks that follow from the Tree.

These are the blocks of directories, of long symbolic links and of extended attributes that inodes have no room for. The
contents of files are not here. Numbered nodes and their blocks are made when they are asked for and not kept, as a Tree
can have millions of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgkit.engines.native.ext4 import records, xattrs
from imgkit.engines.native.ext4.checksum import inode_seed
from imgkit.engines.native.ext4.directories import Entry, directory_blocks, lost_and_found
from imgkit.engines.native.ext4.inodes import FAST_SYMLINK, entry_kind
from imgkit.engines.native.ext4.records import BLOCK
from imgkit.errors import RecipeError
from imgkit.tree import Directory, HardLink, Node, Symlink, Tree
from imgkit.tree.paths import encoded, parent

LOST_AND_FOUND = "lost+found"
_LOST_AND_FOUND_BLOCKS = 4  # as mke2fs makes it


class NumberedNode(NamedTuple):
    """A node that has an inode.

    Attributes:
        links: names that it has.
    """

    path: str
    number: int
    node: Node
    links: int
    xattrs: xattrs.StoredXattrs


class NodeBlocks(NamedTuple):
    """The bytes of a directory or of a long symbolic link, in blocks.

    Attributes:
        is_indexed: whether it is a directory with an index.
    """

    blocks: Sequence[bytes] = ()
    is_indexed: bool = False


_NO_BLOCKS = NodeBlocks()


class Inventory:
    """The nodes of a Tree, numbered. The directory lost+found, which e2fsck needs, is added if it is missing.

    Args:
        time: of a new lost+found, in seconds since 1970.
        seed: of the filesystem's checksums.
        hash_seed: of the hashes of names.

    Raises:
        RecipeError: there is something else than a directory at lost+found.
    """

    def __init__(self, tree: Tree, time: int, seed: int, hash_seed: tuple[int, int, int, int]) -> None:
        self._tree = tree
        self._seed = seed
        self._hash_seed = hash_seed
        self._lost_and_found = tree.get(LOST_AND_FOUND) or Directory(mode=0o700, mtime=time)
        if not isinstance(self._lost_and_found, Directory):
            raise RecipeError(f"/{LOST_AND_FOUND}: must be a directory, as ext4 has one there")
        self._numbers = {"": records.ROOT, LOST_AND_FOUND: records.LOST_FOUND}
        self._subdirectories = {"": 1}
        number = records.LOST_FOUND
        for path, node in self._others():
            if not isinstance(node, HardLink):
                number += 1
                self._numbers[path] = number
            if isinstance(node, Directory):
                above = parent(path)
                self._subdirectories[above] = self._subdirectories.get(above, 0) + 1
        self.last = number
        """The highest number of an inode."""

    def number(self, path: str) -> int:
        """Return the inode at a path, which is not a hard link.

        Raises:
            KeyError: there is none.
        """
        return self._numbers[path]

    def _others(self) -> Iterator[tuple[str, Node]]:
        """Yield everything but the root and lost+found, parents first."""
        return ((path, node) for path, node in self._tree.items() if path not in ("", LOST_AND_FOUND))

    def nodes(self) -> Iterator[NumberedNode]:
        """Yield the nodes that have inodes, by the numbers of these.

        Raises:
            RecipeError: something cannot be stored; the message names it.
        """
        yield self._numbered("", self._tree[""])
        yield self._numbered(LOST_AND_FOUND, self._lost_and_found)
        for path, node in self._others():
            if not isinstance(node, HardLink):
                yield self._numbered(path, node)

    def _numbered(self, path: str, node: Node) -> NumberedNode:
        if isinstance(node, Directory):
            links = 2 + self._subdirectories.get(path, 0)
            links = 1 if links > records.MOST_LINKS else links  # dir_nlink: not counted any more
        else:
            links = 1 + self._tree.count_links(path)
            if links > records.MOST_LINKS:
                raise RecipeError(f"/{path}: has {links} names; ext4 allows {records.MOST_LINKS}")
        try:
            stored = xattrs.store(node.xattrs)
        except xattrs.XattrError as cause:
            raise RecipeError(f"/{path}: {cause}") from cause
        return NumberedNode(path, self._numbers[path], node, links, stored)

    def blocks(self, numbered: NumberedNode) -> NodeBlocks:
        """Return the blocks of a node that follow from the Tree.

        Raises:
            RecipeError: a directory has too many entries; the message names it.
        """
        if isinstance(numbered.node, Directory):
            return self._directory(numbered)
        if isinstance(numbered.node, Symlink) and len(encoded(numbered.node.target)) >= FAST_SYMLINK:
            return NodeBlocks([encoded(numbered.node.target).ljust(BLOCK, b"\0")])
        return _NO_BLOCKS

    def _directory(self, numbered: NumberedNode) -> NodeBlocks:
        path, number = numbered.path, numbered.number
        above, entries = self._numbers[parent(path)], [self._entry(child) for child in self._children(path)]
        seed = inode_seed(self._seed, number)
        if path == LOST_AND_FOUND and not entries:
            return NodeBlocks(lost_and_found(number, above, _LOST_AND_FOUND_BLOCKS, seed=seed))
        try:
            blocks = directory_blocks(number, above, entries, seed=seed, hash_seed=self._hash_seed)
        except OverflowError as cause:
            raise RecipeError(f"/{path}: {cause}") from cause
        return NodeBlocks(blocks, len(blocks) > 1)

    def _children(self, path: str) -> list[str]:
        """Return the paths in a directory in the order of their entries: lost+found comes last."""
        children = self._tree.children(path)
        return children if path else [*(child for child in children if child != LOST_AND_FOUND), LOST_AND_FOUND]

    def _entry(self, path: str) -> Entry:
        node = self._lost_and_found if path == LOST_AND_FOUND else self._tree[path]
        if isinstance(node, HardLink):
            return Entry(
                encoded(path.rpartition("/")[2]), self._numbers[node.target], entry_kind(self._tree[node.target])
            )
        return Entry(encoded(path.rpartition("/")[2]), self._numbers[path], entry_kind(node))
