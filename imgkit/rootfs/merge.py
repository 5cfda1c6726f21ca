"""Putting a package's files into the Tree: who owns what, who may overwrite whom, what a user changed and keeps.

The rules are apk's (apk-tools 3, apk-package(5) on ``replaces``): a file that two packages bring belongs to the one
that replaces the other with the higher priority, else to the newer comer if it replaces the other or both come from
one origin, else the two cannot be installed together. A directory belongs to every package that has it; its owner and
mode are those of the highest ``replaces_priority``, then of the package named like its origin, then of the first by
name. Owners are resolved by name against the accounts as they are before the package is unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import RecipeError
from imgkit.rootfs.accounts import AccountNumbers
from imgkit.tree import Directory, File, HardLink, Node, Symlink, Tree, TreeError, parent

NEW_SUFFIX = ".apk-new"  # a package's copy of a configuration file that somebody changed
_UNRELATED = -1


@dataclass(frozen=True)
class PathRecord:
    """What a package says about one path, as the installed database records it."""

    package: str
    uid: int
    gid: int
    mode: int
    checksum: bytes | None = None


@dataclass
class Ledger:
    """Which package owns what.

    Attributes:
        packages: by name; with ``replaces``, which an index does not have.
        files: path → the claim of its one owner.
        directories: path → the claims of all that have it, by package.
    """

    packages: dict[str, Package] = field(default_factory=dict)
    files: dict[str, PathRecord] = field(default_factory=dict)
    directories: dict[str, dict[str, PathRecord]] = field(default_factory=dict)

    def forget(self, name: str) -> tuple[Package, dict[str, PathRecord], set[str]]:
        """Take a package out. Returns it, its files with their claims, and the directories nobody else has."""
        package = self.packages.pop(name)
        files = {path: claim for path, claim in self.files.items() if claim.package == name}
        for path in files:
            del self.files[path]
        alone = set()
        for path, claims in list(self.directories.items()):
            if claims.pop(name, None) is not None and not claims:
                del self.directories[path]
                alone.add(path)
        return package, files, alone


def merge(tree: Tree, ledger: Ledger, package: Package, entries: Iterable[PackageEntry], names: AccountNumbers) -> None:
    """Put the entries of ``package`` into ``tree`` and the ledger.

    Args:
        package: with its ``replaces``.
        names: the accounts before this package.

    Raises:
        RecipeError: another package has one of its files, and neither replaces the other.
        InputError: a path makes no sense on top of what is there.
    """
    ledger.packages[package.name] = package
    for entry in entries:
        node = _owned(entry, names)
        claim = PathRecord(package.name, node.uid, node.gid, node.mode, entry.checksum)
        try:
            if isinstance(node, Directory):
                _merge_directory(tree, ledger, entry.path, node, claim)
            else:
                _merge_file(tree, ledger, entry.path, node, claim)
        except TreeError as cause:
            raise RecipeError(f"{package}: cannot be installed: {cause}") from cause


def remove(tree: Tree, ledger: Ledger, name: str, *, keep: frozenset[str] = frozenset()) -> Package:
    """Remove a package's files; configuration that somebody changed stays, and so does what ``keep`` names."""
    package, files, directories = ledger.forget(name)
    for path, claim in files.items():
        where = _place(tree, path)
        if path not in keep and where in tree and not (is_protected(path) and not _is_original(tree, where, claim)):
            tree.remove(where)
    for path in sorted(directories - keep, key=len, reverse=True):
        where = tree.resolve(path, follow=False)
        if isinstance(tree.get(where), Directory) and not tree.children(where) and where:
            tree.remove(where)
    return package


def is_protected(path: str) -> bool:
    """Whether apk keeps what somebody changed at ``path`` (its default protected paths)."""
    return path.startswith("etc/") and not path.startswith(("etc/apk/", "etc/init.d/"))


def _owned(entry: PackageEntry, names: AccountNumbers) -> Node:
    """The node with its owner resolved by name; ``root`` is 0 whatever the accounts say, unknown names keep numbers."""
    uid = 0 if entry.uname == "root" else names.users.get(entry.uname, entry.node.uid)
    gid = 0 if entry.gname == "root" else names.groups.get(entry.gname, entry.node.gid)
    return replace(entry.node, uid=uid, gid=gid)


def _place(tree: Tree, path: str) -> str:
    """Where a package's path is in the Tree, whose directories may be links to others (``lib`` → ``usr/lib``)."""
    above = parent(path)
    if not above:
        return path
    return f"{tree.resolve(above)}/{path.rpartition('/')[2]}"


def _merge_directory(tree: Tree, ledger: Ledger, path: str, node: Directory, claim: PathRecord) -> None:
    claims = ledger.directories.setdefault(path, {})
    claims[claim.package] = claim
    where = tree.resolve(path)
    if where not in tree:
        tree.mkdir(parent(where), mtime=node.mtime)
        tree.add(where, node)
        return
    best = min(claims.values(), key=lambda each: _rank(ledger.packages[each.package]))
    if best.package == claim.package:
        tree.add(where, node)


def _rank(package: Package) -> tuple[int, bool, str]:
    return (-package.replaces_priority, package.name != package.origin, package.name)


def _merge_file(tree: Tree, ledger: Ledger, path: str, node: Node, claim: PathRecord) -> None:
    old = ledger.files.get(path)
    if old is not None and old.package != claim.package and not _wins(ledger, path, old.package, claim.package):
        return
    where = _place(tree, path)
    if isinstance(node, HardLink):
        node = replace(node, target=_place(tree, node.target))
    if is_protected(path) and _was_changed(tree, where, old, claim):
        where += NEW_SUFFIX
    tree.mkdir(parent(where), mtime=node.mtime)
    tree.add(where, node)
    ledger.files[path] = claim


def _wins(ledger: Ledger, path: str, old: str, new: str) -> bool:
    """Whether the newcomer's file takes the place of the old one's."""
    first, second = ledger.packages[old], ledger.packages[new]
    keeps, takes = _replaces(first, second), _replaces(second, first)
    if keeps > takes:
        return False
    if takes >= 0 or (first.origin and first.origin == second.origin):
        return True
    raise RecipeError(
        f"{first} and {second} both install {path}", hint=f"leave one of {old} and {new} out of the recipe's packages"
    )


def _replaces(package: Package, other: Package) -> int:
    """The priority with which ``package`` replaces ``other``, -1 if it does not."""
    for word in package.replaces:
        dependency = Dependency.parse(word)
        if dependency.name == other.name and dependency.matches(other.version):
            return package.replaces_priority
    return _UNRELATED


def _was_changed(tree: Tree, where: str, old: PathRecord | None, new: PathRecord) -> bool:
    """Whether what is there is neither the package's new file nor what an earlier package put there."""
    if where not in tree or not isinstance(tree[where], (File, Symlink, HardLink)):
        return False
    return not any(claim is not None and _is_original(tree, where, claim) for claim in (new, old))


def _is_original(tree: Tree, where: str, claim: PathRecord) -> bool:
    node = tree[where]
    raw = node.target.encode(errors="surrogateescape") if isinstance(node, Symlink) else tree.read(where)
    return hashlib.sha1(raw).digest() == claim.checksum  # noqa: S324 - the format's choice


def owners(ledger: Ledger) -> Mapping[str, list[str]]:
    """Package → the files it owns, sorted."""
    found: dict[str, list[str]] = {name: [] for name in ledger.packages}
    for path, claim in sorted(ledger.files.items()):
        found[claim.package].append(path)
    return found
