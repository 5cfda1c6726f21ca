"""Install packages, or take the Tree and the report of an equal installation from the cache.

A kept installation has the nodes of the whole Tree. Of a file that the base or a package brings, it has the SHA-256, by
which the content is found among those that were verified for this build; what scripts and the database generate is in
the record itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from imgkit.apk.index import NOWHERE, Package
from imgkit.apk.package import PackageFile
from imgkit.rootfs.install import CompletedScript, ScriptReport, install, installed_in
from imgkit.rootfs.keptsteps import KeptSteps, described, key_of
from imgkit.rootfs.scripts.effects import Hooks, Outcome, Pending
from imgkit.tree import Content, File, HashedSlice, Inline, Tree
from imgkit.tree.noderecords import load_node, store_node

_STEP = "installed"


def install_or_take(
    tree: Tree,
    packages: Sequence[Package],
    open_file: Callable[[Package], PackageFile],
    kept: KeptSteps,
    *,
    world: Iterable[str],
    arch: str,
    epoch: int,
    hooks: Hooks,
    skip: Iterable[str] = (),
) -> ScriptReport:
    """Do what :func:`imgkit.rootfs.install.install` does; its arguments and errors are the same.

    Args:
        kept: the results of earlier builds.
        hooks: must do the same whenever they are called with the same arguments.
    """
    words, skipped = tuple(world), sorted(skip)
    if not kept.keeps:
        return install(tree, packages, open_file, world=words, arch=arch, epoch=epoch, hooks=hooks, skip=skipped)
    nodes = [described(path, node) for path, node in tree.items()]
    records = [repr(replace(package, repository=NOWHERE)) for package in packages]  # from whichever mirror
    key = key_of(_STEP, [nodes, records, words, arch, epoch, skipped])
    contents = _contents(tree, packages, open_file)
    found = _loaded(kept.take(_STEP, key), contents)
    if found is not None:
        tree.replace_with(found[0])
        return found[1]
    report = install(tree, packages, open_file, world=words, arch=arch, epoch=epoch, hooks=hooks, skip=skipped)
    kept.store(_STEP, key, _stored(tree, report, contents))
    return report


def _contents(
    tree: Tree, packages: Iterable[Package], open_file: Callable[[Package], PackageFile]
) -> dict[bytes, Content]:
    """Return SHA-256 → content, for all that the base and the packages bring."""
    present = {record.package.name: record.package.identity for record in installed_in(tree)}
    files = [open_file(package) for package in packages if present.get(package.name) != package.identity]
    nodes = [node for _, node in tree.items()] + [entry.node for file in files for entry in file.entries]
    hashed = [node.content for node in nodes if isinstance(node, File) and isinstance(node.content, HashedSlice)]
    return {content.sha256: content for content in hashed}


def _stored(tree: Tree, report: ScriptReport, contents: Mapping[bytes, Content]) -> bytes:
    def store(content: Content) -> object:
        if isinstance(content, HashedSlice) and content.sha256 in contents:
            return [content.sha256.hex()]
        return content.read().decode("latin-1")

    record = {
        "nodes": [[path, *store_node(node, store)] for path, node in tree.items()],
        "ran": [[ran.package, ran.kind, ran.outcome.status, ran.outcome.messages] for ran in report.ran],
        "pending": [[one.package, one.kind, one.text, one.args, one.reason] for one in report.pending],
        "skipped": report.skipped,
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _loaded(data: bytes | None, contents: Mapping[bytes, Content]) -> tuple[Tree, ScriptReport] | None:
    """Return a kept installation; None if it refers to a content that this build does not have."""

    def load(stored: Any) -> Content:
        return Inline(stored.encode("latin-1")) if isinstance(stored, str) else contents[bytes.fromhex(stored[0])]

    if data is None:
        return None
    record = json.loads(data)
    try:
        tree = Tree.of((path, load_node(node, load)) for path, *node in record["nodes"])
    except KeyError:
        return None
    return tree, ScriptReport(
        tuple(CompletedScript(name, kind, Outcome(status, tuple(said))) for name, kind, status, said in record["ran"]),
        tuple(Pending(name, kind, text, tuple(args), why) for name, kind, text, args, why in record["pending"]),
        tuple(record["skipped"]),
    )
