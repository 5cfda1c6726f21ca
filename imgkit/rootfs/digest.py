"""Describe the contents of a Tree by records that can be written to the manifest, compared and hashed.

expected = records(tree)
fingerprint(expected)                      # equal for equal root filesystems
differences(expected, records(other))      # one line per path that differs
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from imgkit.tree import Device, File, HardLink, Node, Symlink, Tree, kind, sha256_of

NodeRecord: TypeAlias = Mapping[str, Any]
"""The facts about one path (see :func:`records`): JSON values, which are strings, numbers and a mapping of strings."""


def records(tree: Tree) -> dict[str, NodeRecord]:
    """Return a record for every path of ``tree`` (``/etc/passwd``; the root is ``/``).

    A record has ``type``, ``mode`` (octal text), ``uid`` and ``gid``; that of a file also ``size`` and ``sha256``, that
    of a symbolic link ``target``, that of a device ``device``, and that of a node with extended attributes ``xattrs``
    (hexadecimal). Times are left out, because nothing depends on them.
    """
    return {"/" + path: record(tree, node) for path, node in tree.items()}


def record(tree: Tree, node: Node) -> NodeRecord:
    """Return the record of one node. That of a hard link is its file's, with the path of the file as ``link``."""
    if isinstance(node, HardLink):
        return {**record(tree, tree[node.target]), "link": "/" + node.target}
    facts: dict[str, str | int | Mapping[str, str]] = {
        "type": kind(node),
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
    }
    if isinstance(node, File):
        facts |= {"size": node.content.size, "sha256": sha256_of(node.content).hex()}
    elif isinstance(node, Symlink):
        facts["target"] = node.target
    elif isinstance(node, Device):
        facts["device"] = f"{node.kind} {node.major}:{node.minor}"
    if node.xattrs:
        facts["xattrs"] = {name: value.hex() for name, value in sorted(node.xattrs.items())}
    return facts


def fingerprint(records: Mapping[str, NodeRecord]) -> str:
    """Return a SHA-256 over all records: equal fingerprints mean equal root filesystems, except for times."""
    digest = hashlib.sha256()
    for path in sorted(records):
        digest.update(repr((path, sorted(records[path].items()))).encode(errors="surrogateescape"))
    return digest.hexdigest()


def differences(expected: Mapping[str, NodeRecord], actual: Mapping[str, NodeRecord]) -> list[str]:
    """Return one line for each path that is missing, is not in ``expected``, or differs; sorted by path."""
    lines = []
    for path in sorted(expected.keys() | actual.keys()):
        if path not in actual:
            lines.append(f"{path}: missing")
        elif path not in expected:
            lines.append(f"{path}: not in the manifest")
        elif dict(expected[path]) != dict(actual[path]):
            lines.append(f"{path}: {_difference(expected[path], actual[path])}")
    return lines


def _difference(expected: NodeRecord, actual: NodeRecord) -> str:
    keys = [key for key in sorted(expected.keys() | actual.keys()) if expected.get(key) != actual.get(key)]
    return ", ".join(f"{key} is {actual.get(key)}, should be {expected.get(key)}" for key in keys)
