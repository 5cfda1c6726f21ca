"""Unpack Alpine's minirootfs: a gzipped tar archive of a small root filesystem with apk's database in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imgkit.apk.container import refuse_foreign
from imgkit.errors import InputError
from imgkit.tree import Device, HardLink, Node, Tree, TreeError
from imgkit.tree.gzipmembers import GzipMembers
from imgkit.tree.members import Spool, node_of, with_attributes
from imgkit.tree.tarstream import Header, TarError, TarStream

MAX_INFLATED = 256 << 20  # real ones have 8 MB


def unpack(archive: Path, spool: Path) -> Tree:
    """Return the Tree that a minirootfs holds.

    The archive must have been verified: this function checks its form, not its origin. Owners are numeric and the names
    of entries begin with ``./``, as in the archives that Alpine publishes.

    Args:
        spool: a new file, into which the contents of files are inflated. The Tree refers to it.

    Raises:
        InputError: the archive is damaged or too big, or has entries that leave the root filesystem or are devices.
    """
    tree = Tree()
    with archive.open("rb") as source, Spool(spool) as contents:
        head = source.read(1024)
        refuse_foreign(head, archive.name)
        source.seek(0)
        stream = TarStream(_inflated(GzipMembers(source, archive.name)))
        try:
            for header in stream:
                path = _path(header.name)
                tree.add(path, _node(header, stream, contents))
        except (TarError, TreeError) as cause:
            raise InputError(f"{archive.name}: {cause}") from cause
    return tree


def _inflated(members: GzipMembers) -> Iterator[bytes]:
    """Yield the data of all gzip members (pigz and others may write several), at most :data:`MAX_INFLATED` bytes."""
    left = MAX_INFLATED
    while members.more():
        for piece in members.member(left):
            left -= len(piece)
            yield piece


def _path(name: str) -> str:
    """Return ``etc`` for ``./etc/``; ``./`` and ``.`` are the root. The Tree refuses other odd names."""
    return "" if name in (".", "./") else name.removeprefix("./").removesuffix("/")


def _node(header: Header, stream: TarStream, spool: Spool) -> Node:
    node = node_of(header, spool.keep(header, stream))
    if isinstance(node, Device):
        raise TreeError(f"{header.name}: device nodes and FIFOs have no place in a minirootfs")
    return with_attributes(HardLink(target=_path(header.link)), header) if node is None else node
