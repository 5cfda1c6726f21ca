"""What a filesystem will hold, before it is known where: numbers of inodes, and the blocks that follow from the Tree.

These are the blocks of directories, of long symbolic links and of extended attributes that inodes have no room for. The
contents of files are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Member:
    """A node that has an inode.

    Attributes:
        links: names that it has.
        blocks: the bytes of a directory or of a long symbolic link, in blocks.
        is_indexed: whether it is a directory with an index.
    """

    path: str
    number: int
    node: Node
    links: int
    blocks: Sequence[bytes]
    is_indexed: bool
    xattrs: xattrs.StoredXattrs


class Inventory:
    """The members of a Tree. The directory lost+found, which e2fsck needs, is added if it is missing.

    Args:
        time: of a new lost+found, in seconds since 1970.

    Raises:
        RecipeError: there is something else than a directory at lost+found.
    """

    def __init__(self, tree: Tree, time: int) -> None:
        self._tree = tree
        self._lost_and_found = tree.get(LOST_AND_FOUND) or Directory(mode=0o700, mtime=time)
        if not isinstance(self._lost_and_found, Directory):
            raise RecipeError(f"/{LOST_AND_FOUND}: must be a directory, as ext4 has one there")
        self._numbers = {"": records.ROOT, LOST_AND_FOUND: records.LOST_FOUND}
        self.last = records.LOST_FOUND
        """The highest number of an inode."""
        self._entries: dict[str, list[Entry]] = {}
        self._subdirectories: dict[str, int] = {}
        for path, node in self._nodes():
            if path not in self._numbers and not isinstance(node, HardLink):
                self.last += 1
                self._numbers[path] = self.last
        for path, node in self._nodes():
            self._enter(path, node)

    def number(self, path: str) -> int:
        """Return the inode at a path, which is not a hard link.

        Raises:
            KeyError: there is none.
        """
        return self._numbers[path]

    def _nodes(self) -> Iterator[tuple[str, Node]]:
        """Yield everything but the root and lost+found, parents first; at last lost+found itself."""
        yield from ((path, node) for path, node in self._tree.items() if path not in ("", LOST_AND_FOUND))
        yield LOST_AND_FOUND, self._lost_and_found

    def _enter(self, path: str, node: Node) -> None:
        above = parent(path)
        file, original = (node.target, self._tree[node.target]) if isinstance(node, HardLink) else (path, node)
        entry = Entry(encoded(path.rpartition("/")[2]), self._numbers[file], entry_kind(original))
        self._entries.setdefault(above, []).append(entry)
        if isinstance(node, Directory):
            self._subdirectories[above] = self._subdirectories.get(above, 0) + 1

    def members(self, seed: int, hash_seed: tuple[int, int, int, int]) -> Iterator[Member]:
        """Yield the members by the numbers of their inodes.

        Args:
            seed: of the filesystem's checksums.
            hash_seed: of the hashes of names.

        Raises:
            RecipeError: something cannot be stored; the message names it.
        """
        yield self._member("", self._tree[""], seed, hash_seed)
        yield self._member(LOST_AND_FOUND, self._lost_and_found, seed, hash_seed)
        for path, node in self._tree.items():
            if path not in ("", LOST_AND_FOUND) and not isinstance(node, HardLink):
                yield self._member(path, node, seed, hash_seed)

    def _member(self, path: str, node: Node, seed: int, hash_seed: tuple[int, int, int, int]) -> Member:
        number = self._numbers[path]
        blocks: Sequence[bytes] = ()
        is_indexed = False
        links = 1 + self._tree.count_links(path)
        try:
            if isinstance(node, Directory):
                is_indexed, blocks = self._directory(path, number, inode_seed(seed, number), hash_seed)
                links = 2 + self._subdirectories.get(path, 0)
                links = 1 if links > records.MOST_LINKS else links  # dir_nlink: not counted any more
            elif isinstance(node, Symlink) and len(encoded(node.target)) >= FAST_SYMLINK:
                blocks = [encoded(node.target).ljust(BLOCK, b"\0")]
            stored = xattrs.store(node.xattrs)
        except (xattrs.XattrError, OverflowError) as cause:
            raise RecipeError(f"/{path}: {cause}") from cause
        if links > records.MOST_LINKS:
            raise RecipeError(f"/{path}: has {links} names; ext4 allows {records.MOST_LINKS}")
        return Member(path, number, node, links, blocks, is_indexed, stored)

    def _directory(
        self, path: str, number: int, seed: int, hash_seed: tuple[int, int, int, int]
    ) -> tuple[bool, list[bytes]]:
        """Return whether a directory has an index, and its blocks."""
        above, entries = self._numbers[parent(path)], self._entries.get(path, [])
        if path == LOST_AND_FOUND and not entries:
            return False, lost_and_found(number, above, _LOST_AND_FOUND_BLOCKS, seed=seed)
        blocks = directory_blocks(number, above, entries, seed=seed, hash_seed=hash_seed)
        return len(blocks) > 1, blocks
