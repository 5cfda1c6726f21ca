"""Nodes as values for JSON, so that what was unpacked once can be kept in a file.

A record is a list: letter of the kind, mode, uid, gid, mtime, extended attributes, and what the kind needs besides::

    ["f", 493, 0, 0, 1700000000, {}, <the content>]
    ["l", 511, 0, 0, 1700000000, {}, "target"]

How a content is recorded is for the caller to say, since it refers to something outside the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from imgkit.tree.nodes import NO_XATTRS, Content, Device, Directory, File, HardLink, Node, Symlink

StoredNode: TypeAlias = list[Any]
"""The record of a node; see above."""

_DEVICES = ("c", "b", "p")


def store_node(node: Node, store: Callable[[Content], object]) -> StoredNode:
    """Return the record of a node.

    Args:
        store: returns the record of a content.
    """
    xattrs = {name: value.hex() for name, value in node.xattrs.items()}
    shared = [node.mode, node.uid, node.gid, node.mtime, xattrs]
    if isinstance(node, Directory):
        return ["d", *shared, None]
    if isinstance(node, File):
        return ["f", *shared, store(node.content)]
    if isinstance(node, Symlink):
        return ["l", *shared, node.target]
    if isinstance(node, HardLink):
        return ["h", *shared, node.target]
    return [node.kind, *shared, [node.major, node.minor]]


def load_node(record: StoredNode, load: Callable[[Any], Content]) -> Node:
    """Return the node of a record.

    Args:
        load: returns the content of its record.

    Raises:
        ValueError, TypeError: it is not the record of a node.
    """
    kind, mode, uid, gid, mtime, stored, rest = record
    xattrs = _xattrs(stored) if stored else NO_XATTRS
    if kind == "d":
        return Directory(mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)
    if kind == "f":
        return File(content=load(rest), mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)
    if kind == "l":
        return Symlink(target=rest, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)
    if kind == "h":
        return HardLink(target=rest, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)
    if kind in _DEVICES:
        major, minor = rest
        return Device(kind=kind, major=major, minor=minor, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)
    raise ValueError(f"{kind!r} is not a kind of node")


def _xattrs(stored: Mapping[str, str]) -> Mapping[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in stored.items()}
