"""What is in a Tree, as records that can be written down, compared and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from imgkit.tree import Content, Device, File, HardLink, Node, Symlink, Tree, kind

NodeRecord: TypeAlias = Mapping[str, Any]
_CHUNK = 1 << 20


def records(tree: Tree) -> dict[str, NodeRecord]:
    """Every path of ``tree`` (``/etc/passwd``; the root is ``/``) with what is there.

    A record has ``type``, ``mode`` (octal text), ``uid``, ``gid``; a file ``size`` and ``sha256``, a link ``target``, a
    device ``device``; ``xattrs`` (hex) where there are some. Times are left out: they decide nothing.
    """
    return {"/" + path: record(tree, node) for path, node in tree.items()}


def record(tree: Tree, node: Node) -> NodeRecord:
    """The record of one node; a hard link's is that of its file, with the ``link`` it is."""
    if isinstance(node, HardLink):
        return {**record(tree, tree[node.target]), "link": "/" + node.target}
    facts: dict[str, Any] = {"type": kind(node), "mode": f"{node.mode:04o}", "uid": node.uid, "gid": node.gid}
    if isinstance(node, File):
        facts |= {"size": node.content.size, "sha256": sha256(node.content)}
    elif isinstance(node, Symlink):
        facts["target"] = node.target
    elif isinstance(node, Device):
        facts["device"] = f"{node.kind} {node.major}:{node.minor}"
    if node.xattrs:
        facts["xattrs"] = {name: value.hex() for name, value in sorted(node.xattrs.items())}
    return facts


def sha256(content: Content) -> str:
    """SHA-256 of a file's content, as hexadecimal text."""
    digest = hashlib.sha256()
    with content.open() as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(found: Mapping[str, NodeRecord]) -> str:
    """One SHA-256 over all records: equal fingerprints mean equal root filesystems (times aside)."""
    digest = hashlib.sha256()
    for path, facts in sorted(found.items()):
        digest.update(repr((path, sorted(facts.items()))).encode(errors="surrogateescape"))
    return digest.hexdigest()


def differences(expected: Mapping[str, NodeRecord], found: Mapping[str, NodeRecord]) -> list[str]:
    """One line for each path that is missing, should not be there, or is not as it should be; sorted by path."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path}: missing")
        elif path not in expected:
            lines.append(f"{path}: not in the manifest")
        elif dict(expected[path]) != dict(found[path]):
            lines.append(f"{path}: {_difference(expected[path], found[path])}")
    return lines


def _difference(expected: NodeRecord, found: NodeRecord) -> str:
    keys = [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]
    return ", ".join(f"{key} is {found.get(key)}, should be {expected.get(key)}" for key in keys)
