"""Put an ext4 filesystem with the contents of a Tree onto a disk. Equal Trees make equal filesystems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from imgkit.engines.native.ext4 import records
from imgkit.engines.native.ext4.assignment import Assigned, Assignment, TooFewBlocksError
from imgkit.engines.native.ext4.checksum import filesystem_seed, inode_seed
from imgkit.engines.native.ext4.dirhash import seed_words
from imgkit.engines.native.ext4.extents import ExtentTree
from imgkit.engines.native.ext4.geometry import Geometry, geometry_of
from imgkit.engines.native.ext4.inodes import REGULAR, InodeFacts, Times, device_block, file_type, pack_inode
from imgkit.engines.native.ext4.inventory import Inventory, NumberedNode
from imgkit.engines.native.ext4.records import BLOCK, EXTENTS_FLAG, INDEX_FLAG, INODE_SIZE
from imgkit.engines.native.ext4.specialfiles import (
    RESIZE_SIZE,
    journal_start,
    resize_blocks,
    resize_inode_block,
    resize_pointers,
)
from imgkit.engines.native.ext4.superblock import FilesystemIdentity, Usage, group_metadata
from imgkit.engines.native.ext4.xattrs import sealed_block
from imgkit.engines.native.placement import PlacedFile
from imgkit.engines.native.sparsedisk import Extent, SparseDisk
from imgkit.tree import Device, Directory, File, Symlink, Tree
from imgkit.tree.paths import encoded

_LEAST_BLOCKS = 1024  # of a journal (JBD2_MIN_JOURNAL_BLOCKS)


class TooFewInodesError(Exception):
    """The filesystem has too few inodes.

    Attributes:
        missing: how many.
    """

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


@dataclass(frozen=True)
class Place:
    """Where the filesystem lies on the disk, in bytes; multiples of 4096."""

    start: int
    size: int


@dataclass(frozen=True)
class Space:
    """Bytes of the filesystem that are in use, and that are free."""

    used: int
    free: int


def write_ext4(
    disk: SparseDisk,
    place: Place,
    tree: Tree,
    files: Sequence[Sequence[PlacedFile]],
    identity: FilesystemIdentity,
    *,
    journal: int,
) -> Space:
    """Put a filesystem onto ``disk``.

    Args:
        tree: what is in it.
        files: its files that are not empty, in groups (:func:`imgkit.engines.native.placement.groups`).
        journal: bytes of the journal.

    Raises:
        TooFewBlocksError, TooFewInodesError: there is not enough room.
        RecipeError: something in the Tree cannot be stored on ext4; the message names it.
    """
    geometry = geometry_of(place.size)
    if geometry is None:
        raise TooFewBlocksError(1)
    seed = filesystem_seed(identity.uuid.bytes)
    inventory = Inventory(tree, identity.time, seed, seed_words(identity.hash_seed.bytes))
    if inventory.last > geometry.inodes:
        raise TooFewInodesError(inventory.last - geometry.inodes)
    assignment = Assignment(geometry, max(journal // BLOCK, _LEAST_BLOCKS), inventory.last)
    writer = _Writer(disk, place.start, geometry, identity, inventory, assignment, seed)
    writer.write_bodies()
    writer.write_contents(files)
    writer.write_inodes()
    writer.write_special_files()
    return writer.write_metadata()


@dataclass(frozen=True)
class _Sizes:
    """The files of a group, as number of the inode and bytes."""

    files: Sequence[PlacedFile]
    number: Callable[[str], int]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the files in order."""
        return ((self.number(path), data.content.size) for path, data in self.files)


class _Writer:
    """Puts what is known about a filesystem onto the disk."""

    def __init__(
        self,
        disk: SparseDisk,
        start: int,
        geometry: Geometry,
        identity: FilesystemIdentity,
        inventory: Inventory,
        assignment: Assignment,
        seed: int,
    ) -> None:
        self._disk = disk
        self._start = start
        self._geometry = geometry
        self._identity = identity
        self._inventory = inventory
        self._assignment = assignment
        self._seed = seed
        self._indexed: set[int] = set()  # directories
        self._directories = [0] * geometry.group_count

    def write_bodies(self) -> None:
        """Write directories, long symbolic links, and attributes that inodes have no room for."""
        for numbered in self._inventory.nodes():
            number = numbered.number
            blocks, is_indexed = self._inventory.blocks(numbered)
            if blocks:
                runs = self._assignment.take(number, len(blocks))
                places = (run.start + at for run in runs for at in range(run.length))
                for place, data in zip(places, blocks, strict=False):
                    self._put(place, data)
            if is_indexed:
                self._indexed.add(number)
            if isinstance(numbered.node, Directory):
                self._directories[(number - 1) // self._geometry.inodes_per_group] += 1
            if numbered.xattrs.block and (place := self._assignment.take_xattr_block(number)):
                self._put(place, sealed_block(numbered.xattrs.block, self._seed, place))

    def write_contents(self, files: Sequence[Sequence[PlacedFile]]) -> None:
        """Place the contents of files.

        Raises:
            TooFewBlocksError: there are not enough blocks.
        """
        number = self._inventory.number
        self._assignment.place_files([_Sizes(group, number) for group in files])
        for group in files:
            for path, data in group:
                at = 0
                for run in self._assignment.runs(number(path)):
                    length = min(run.length * BLOCK, data.content.size - at)
                    self._disk.place(Extent(self._start + run.start * BLOCK, data, at, length))
                    at += length

    def write_inodes(self) -> None:
        """Write the inodes of nodes, and the nodes of their extents."""
        inodes = ((numbered.number, self._inode(numbered)) for numbered in self._inventory.nodes())
        per_group = self._geometry.inodes_per_group
        for group, numbered in groupby(inodes, lambda pair: (pair[0] - 1) // per_group):
            table = self._geometry.group(group).inode_table
            first, data = -1, bytearray()
            for number, inode in numbered:
                at = (number - 1) % per_group
                first = at if first < 0 else first
                data += bytes((at - first) * INODE_SIZE - len(data)) + inode
            self._disk.put(self._start + table * BLOCK + first * INODE_SIZE, bytes(data))

    def write_special_files(self) -> None:
        """Write the journal and the resize inode."""
        time, pointers, journal = Times(self._identity.time), self._assignment.pointers, self._journal()
        blocks = sum(run.length for run in journal.runs)
        self._put(journal.runs[0].start, journal_start(blocks, self._identity.uuid))
        self._put_nodes(records.JOURNAL, journal.extents)
        for place, data in resize_pointers(self._geometry, pointers):
            self._put(place, data)
        self._put_inode(
            records.RESIZE,
            InodeFacts(
                mode=REGULAR | 0o600,
                times=time,
                size=RESIZE_SIZE,
                blocks=resize_blocks(self._geometry),
                block=resize_inode_block(pointers),
            ),
        )
        self._put_inode(
            records.JOURNAL,
            InodeFacts(
                mode=REGULAR | 0o600,
                times=time,
                size=blocks * BLOCK,
                blocks=journal.blocks,
                flags=EXTENTS_FLAG,
                block=journal.extents.root,
            ),
        )

    def write_metadata(self) -> Space:
        """Write superblocks, descriptors and bitmaps."""
        geometry, journal, runs = self._geometry, self._journal(), self._assignment.used()
        journal_blocks = sum(run.length for run in journal.runs)
        usage = Usage(
            runs=runs,
            overhead=sum(run.length for run in geometry.metadata()) + journal_blocks,
            inodes=self._inventory.last,
            directories=self._directories,
            journal=(journal.extents.root, journal_blocks * BLOCK),
        )
        for place, data in group_metadata(geometry, usage, self._identity, self._seed):
            self._put(place, data)
        used = sum(run.length for run in runs)
        return Space((used - usage.overhead) * BLOCK, (geometry.blocks - used) * BLOCK)

    def _journal(self) -> Assigned:
        return self._assignment.blocks(records.JOURNAL)

    def _inode(self, numbered: NumberedNode) -> bytes:
        """Return the inode of a node, and write the nodes of its extents."""
        _, number, node, links, stored = numbered
        assigned = self._assignment.blocks(number)
        flags, block = EXTENTS_FLAG, assigned.extents.root
        if isinstance(node, File):
            size = node.content.size
        elif isinstance(node, Symlink):
            target = encoded(node.target)
            size = len(target)
            if not assigned.runs:
                flags, block = 0, target
        elif isinstance(node, Device):
            flags, block, size = 0, device_block(node), 0
        else:
            size = sum(run.length for run in assigned.runs) * BLOCK
            flags |= INDEX_FLAG if number in self._indexed else 0
        self._put_nodes(number, assigned.extents)
        facts = InodeFacts(
            mode=file_type(node) | node.mode & 0o7777,
            times=Times(node.mtime, node.nanoseconds),
            uid=node.uid,
            gid=node.gid,
            links=links,
            size=size,
            blocks=assigned.blocks,
            flags=flags,
            block=block,
            xattrs=stored,
            xattr_block=assigned.xattr_block,
        )
        return pack_inode(number, facts, self._seed)

    def _put_nodes(self, number: int, extents: ExtentTree) -> None:
        if extents.nodes:
            for place, data in extents.sealed(inode_seed(self._seed, number)):
                self._put(place, data)

    def _put_inode(self, number: int, facts: InodeFacts) -> None:
        """Write an inode of the first group."""
        place = self._geometry.group(0).inode_table * BLOCK + (number - 1) * INODE_SIZE
        self._disk.put(self._start + place, pack_inode(number, facts, self._seed))

    def _put(self, block: int, data: bytes) -> None:
        self._disk.put(self._start + block * BLOCK, data)
