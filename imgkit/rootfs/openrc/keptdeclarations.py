"""Compute what OpenRC's services declare, or take it from the cache if an earlier build has computed it.

Scripts may test and read any path. So the record has what was found at each path that mattered, and is taken only if
all of that is found again: the same nodes, the same names in the same directories.
"""

from __future__ import annotations

import json
from typing import Any

from imgkit.rootfs.keptsteps import KeptSteps, described, key_of
from imgkit.rootfs.openrc.depends import ServiceDeclaration, declarations, watched
from imgkit.tree import Node, Tree
from imgkit.tree.watchedtree import WatchedTree

_STEP = "services"


def declarations_or_take(tree: Tree, kept: KeptSteps) -> list[ServiceDeclaration]:
    """Do what :func:`imgkit.rootfs.openrc.depends.declarations` does, with the same errors.

    Args:
        kept: the results of earlier builds.
    """
    if not kept.keeps:
        return declarations(tree)
    key = key_of(_STEP, [described(path, tree[path]) for path in watched(tree)])
    data = kept.take(_STEP, key)
    record = None if data is None else json.loads(data)
    if record is not None and _is_found_again(record, tree):
        return [
            ServiceDeclaration(name, tuple((kind, tuple(words)) for kind, words in declared))
            for name, declared in record["services"]
        ]
    view = WatchedTree(tree)
    services = declarations(view)
    if view.is_complete:
        record = {
            "nodes": [[path, _fact(path, node)] for path, node in view.nodes.items()],
            "directories": list(view.directories.items()),
            "services": [[service.name, service.declared] for service in services],
        }
        kept.store(_STEP, key, json.dumps(record, separators=(",", ":")).encode())
    return services


def _fact(path: str, node: Node | None) -> list[Any] | None:
    """Return a value for JSON that is different for every other node."""
    return None if node is None else described(path, node)


def _is_found_again(record: dict[str, Any], tree: Tree) -> bool:
    """Return whether a Tree has what was found when a record was made."""
    found = ([path, fact] for path, fact in record["nodes"])
    return all(_as_json(_fact(path, tree.get(path))) == fact for path, fact in found) and all(
        [child.rpartition("/")[2] for child in tree.children(path)] == names for path, names in record["directories"]
    )


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))
