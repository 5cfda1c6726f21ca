"""The blocks of a directory: a list of entries, or several lists that are found by an index of hashes.

Formats: "Linear (Classic) Directories" and "Hash Tree Directories". Blocks are numbered from the start of the
directory, so that they can be made before it is known where they will lie. The last bytes of each are its checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from imgkit.engines.native.ext4 import dirhash
from imgkit.engines.native.ext4.checksum import checksum
from imgkit.engines.native.ext4.records import BLOCK, DIRECTORY_ENTRY, INDEX_ENTRY

_TAIL = struct.Struct("<IHBBI")  # an entry without a name, of which older programs see only that it is unused
_TAIL_TYPE = 0xDE
_LIST_END = BLOCK - _TAIL.size
_DIRECTORY_TYPE = 2
_ROOT_INFO = struct.Struct("<IBBBB")  # reserved, version of the hash, length of these fields, levels, flags
_ROOT_ENTRIES, _NODE_ENTRIES = 32, 8  # where the entries of an index begin: behind what looks like a list
_INDEX_TAIL = 8  # reserved, checksum
_ROOT_MOST = (BLOCK - _ROOT_ENTRIES - _INDEX_TAIL) // INDEX_ENTRY.size
_NODE_MOST = (BLOCK - _NODE_ENTRIES - _INDEX_TAIL) // INDEX_ENTRY.size
MOST_LEAVES = _ROOT_MOST * _NODE_MOST
"""Lists of entries that an index of two levels finds (without the feature large_dir)."""


class Entry(NamedTuple):
    """A name in a directory.

    Attributes:
        inode: its number.
        kind: the type of the file: 1 regular, 2 directory, 3 character device, 4 block device, 5 FIFO, 7 symbolic link.
    """

    name: bytes
    inode: int
    kind: int

    @property
    def size(self) -> int:
        """The bytes that it takes: a multiple of 4."""
        return DIRECTORY_ENTRY.size + -(-len(self.name) // 4) * 4


def directory_blocks(
    number: int, parent: int, entries: Sequence[Entry], *, seed: int, hash_seed: tuple[int, int, int, int]
) -> list[bytes]:
    """Return the blocks of a directory. If there is more than one, the first is the root of an index.

    Args:
        number: its inode.
        parent: the inode of the directory that it is in.
        entries: what is in it, besides ``.`` and ``..``.
        seed: of the checksums of its inode.
        hash_seed: of the hashes of names.

    Raises:
        OverflowError: there are more entries than an index finds.
    """
    dots = [Entry(b".", number, _DIRECTORY_TYPE), Entry(b"..", parent, _DIRECTORY_TYPE)]
    if sum(entry.size for entry in (*dots, *entries)) <= _LIST_END:
        return [_list([*dots, *entries], seed)]
    hashed = sorted((dirhash.name_hash(entry.name, hash_seed), entry.name, entry) for entry in entries)
    leaves = list(_leaves((value, entry) for value, _, entry in hashed))
    if len(leaves) > MOST_LEAVES:
        raise OverflowError(f"more than {MOST_LEAVES} blocks of names")
    return _indexed(dots, leaves, seed)


def lost_and_found(number: int, parent: int, blocks: int, *, seed: int) -> list[bytes]:
    """Return the blocks of an empty directory that has room for entries, as e2fsck expects of lost+found."""
    dots = [Entry(b".", number, _DIRECTORY_TYPE), Entry(b"..", parent, _DIRECTORY_TYPE)]
    empty = DIRECTORY_ENTRY.pack(0, _LIST_END, 0, 0).ljust(_LIST_END, b"\0")
    return [_list(dots, seed), *[_with_tail(empty, seed)] * (blocks - 1)]


class _Leaf(NamedTuple):
    """The entries of one list of an index, and the hash from which on names are looked for in it."""

    first: int
    entries: list[Entry]


def _leaves(hashed: Iterable[tuple[int, Entry]]) -> Iterator[_Leaf]:
    """Yield the lists. If the hash of the last entry goes on in the next list, the lowest bit there says so."""
    entries: list[Entry] = []
    first, size, last = 0, 0, -1
    for value, entry in hashed:
        if size + entry.size > _LIST_END:
            yield _Leaf(first, entries)
            entries, size, first = [], 0, value | (value == last)
        entries.append(entry)
        size += entry.size
        last = value
    yield _Leaf(first, entries)


def _indexed(dots: Sequence[Entry], leaves: Sequence[_Leaf], seed: int) -> list[bytes]:
    """Return the root of the index, its nodes if one level is not enough, and the lists, numbered in this order."""
    nodes = [leaves[at : at + _NODE_MOST] for at in range(0, len(leaves), _NODE_MOST)]
    if len(leaves) <= _ROOT_MOST:
        nodes = []
    place = 1 + len(nodes)
    index = [(leaf.first, place + at) for at, leaf in enumerate(leaves)]
    below = [index[at : at + _NODE_MOST] for at in range(0, len(index), _NODE_MOST)] if nodes else []
    top = [(group[0][0], 1 + at) for at, group in enumerate(below)] or index
    root = b"".join(_entry(entry, entry.size) for entry in dots[:1]) + _entry(dots[1], BLOCK - dots[0].size)
    root += _ROOT_INFO.pack(0, dirhash.VERSION, _ROOT_INFO.size, 1 if nodes else 0, 0)
    unused = DIRECTORY_ENTRY.pack(0, BLOCK, 0, 0)
    return [
        _index(root, top, _ROOT_MOST, seed),
        *(_index(unused, group, _NODE_MOST, seed) for group in below),
        *(_list(leaf.entries, seed) for leaf in leaves),
    ]


def _index(start: bytes, entries: Sequence[tuple[int, int]], most: int, seed: int) -> bytes:
    """Return a block of an index: ``start``, the entries, and the checksum of both."""
    (_, first), *others = entries
    limits = most | len(entries) << 16
    data = start + INDEX_ENTRY.pack(limits, first) + b"".join(INDEX_ENTRY.pack(*entry) for entry in others)
    value = checksum(seed, data + bytes(_INDEX_TAIL))
    return data.ljust(BLOCK - 4, b"\0") + value.to_bytes(4, "little")


def _list(entries: Sequence[Entry], seed: int) -> bytes:
    """Return a block with a list of entries, the last of which takes all room that is left."""
    *others, last = entries
    data = b"".join(_entry(entry, entry.size) for entry in others)
    data += _entry(last, _LIST_END - len(data))
    return _with_tail(data.ljust(_LIST_END, b"\0"), seed)


def _entry(entry: Entry, length: int) -> bytes:
    head = DIRECTORY_ENTRY.pack(entry.inode, length, len(entry.name), entry.kind)
    return (head + entry.name).ljust(entry.size, b"\0")


def _with_tail(data: bytes, seed: int) -> bytes:
    return data + _TAIL.pack(0, _TAIL.size, 0, _TAIL_TYPE, checksum(seed, data))
