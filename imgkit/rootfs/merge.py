"""Put the files of a package into the Tree, decide which package owns a path, and keep what a user has changed.

The rules are those of apk (apk-tools 3, apk-package(5) on ``replaces``):

* If two packages bring the same file, it belongs to the one that replaces the other with the higher priority. Otherwise
  it belongs to the package that is installed later, if that one replaces the other or both have the same origin.
  Otherwise the two cannot be installed together.
* A directory belongs to every package that has it. Its owner and mode are those of the package with the highest
  ``replaces_priority``, then of the package that is named like its origin, then of the first package by name.
* Owners are resolved by name, with the accounts as they are before the package is unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import RecipeError
from imgkit.rootfs.accounts import AccountNumbers
from imgkit.tree import Directory, File, HardLink, Node, Symlink, Tree, TreeError, parent

NEW_SUFFIX = ".apk-new"
"""Suffix of a package's configuration file where a user has changed the existing file."""


@dataclass(frozen=True)
class PathRecord:
    """A package's data on one path, as the installed database records them."""

    package: str
    uid: int
    gid: int
    mode: int
    checksum: bytes | None = None


@dataclass
class Ledger:
    """Which package owns which path.

    Attributes:
        packages: name → package, with its ``replaces`` (which an index does not have).
        files: path → the record of the package that owns the file.
        directories: path → package name → the record of each package that has the directory.
    """

    packages: dict[str, Package] = field(default_factory=dict)
    files: dict[str, PathRecord] = field(default_factory=dict)
    directories: dict[str, dict[str, PathRecord]] = field(default_factory=dict)

    def forget(self, name: str) -> tuple[Package, dict[str, PathRecord], set[str]]:
        """Remove a package from the ledger.

        Returns:
            The package, the records of the files that it owned, and the directories that no other package has.
        """
        package = self.packages.pop(name)
        files = {path: record for path, record in self.files.items() if record.package == name}
        for path in files:
            del self.files[path]
        unowned = set()
        for path, records in list(self.directories.items()):
            if records.pop(name, None) is not None and not records:
                del self.directories[path]
                unowned.add(path)
        return package, files, unowned


def merge(tree: Tree, ledger: Ledger, package: Package, entries: Iterable[PackageEntry], names: AccountNumbers) -> None:
    """Put the entries of ``package`` into ``tree`` and the ledger.

    Args:
        package: the package, with its ``replaces``.
        names: the accounts as they are before this package.

    Raises:
        RecipeError: another package has one of its files and neither replaces the other, or an entry does not fit what
            is in the Tree (such as a file where there is a directory).
    """
    ledger.packages[package.name] = package
    for entry in entries:
        node = _with_owner(entry, names)
        record = PathRecord(package.name, node.uid, node.gid, node.mode, entry.checksum)
        try:
            if isinstance(node, Directory):
                _merge_directory(tree, ledger, entry.path, node, record)
            else:
                _merge_file(tree, ledger, entry.path, node, record)
        except TreeError as cause:
            raise RecipeError(f"{package}: cannot be installed: {cause}") from cause


def remove(tree: Tree, ledger: Ledger, name: str, *, keep: frozenset[str] = frozenset()) -> Package:
    """Remove the files of a package, and the directories that become empty and that no other package has.

    Configuration that a user changed stays.

    Args:
        keep: paths that stay as well.
    """
    package, files, directories = ledger.forget(name)
    for path, record in files.items():
        place = _place(tree, path)
        if path not in keep and place in tree and not (is_protected(path) and not _is_original(tree, place, record)):
            tree.remove(place)
    for path in sorted(directories - keep, reverse=True):
        place = tree.resolve(path, follow=False)
        if isinstance(tree.get(place), Directory) and not tree.children(place) and place:
            tree.remove(place)
    return package


def is_protected(path: str) -> bool:
    """Return whether apk keeps what a user changed at ``path`` (apk's default protected paths)."""
    return path.startswith("etc/") and not path.startswith(("etc/apk/", "etc/init.d/"))


def _with_owner(entry: PackageEntry, names: AccountNumbers) -> Node:
    """Resolve the owner by name. ``root`` is always 0, and an unknown name keeps the entry's number."""
    uid = 0 if entry.uname == "root" else names.users.get(entry.uname, entry.node.uid)
    gid = 0 if entry.gname == "root" else names.groups.get(entry.gname, entry.node.gid)
    return replace(entry.node, uid=uid, gid=gid)


def _place(tree: Tree, path: str) -> str:
    """Return where a package's path is in the Tree, in which a directory may be a link (``lib`` → ``usr/lib``)."""
    return f"{tree.resolve(parent(path))}/{path.rpartition('/')[2]}".lstrip("/")


def _merge_directory(tree: Tree, ledger: Ledger, path: str, node: Directory, record: PathRecord) -> None:
    records = ledger.directories.setdefault(path, {})
    records[record.package] = record
    place = tree.resolve(path)
    if place not in tree:
        tree.mkdir(parent(place), mtime=node.mtime)
        tree.add(place, node)
        return
    if record.package == min(records, key=lambda name: _directory_rank(ledger.packages[name])):
        tree.add(place, node)


def _directory_rank(package: Package) -> tuple[int, bool, str]:
    """Return a sort key for the packages that have a directory; the first one's owner and mode count."""
    return (-package.replaces_priority, package.name != package.origin, package.name)


def _merge_file(tree: Tree, ledger: Ledger, path: str, node: Node, record: PathRecord) -> None:
    old = ledger.files.get(path)
    if old is not None and old.package != record.package and not _takes_over(ledger, path, old.package, record.package):
        return
    place = _place(tree, path)
    if isinstance(node, HardLink):
        node = replace(node, target=_place(tree, node.target))
    if is_protected(path) and _was_changed(tree, place, old, record):
        place += NEW_SUFFIX
    tree.mkdir(parent(place), mtime=node.mtime)
    tree.add(place, node)
    ledger.files[path] = record


def _takes_over(ledger: Ledger, path: str, owner: str, newcomer: str) -> bool:
    """Return whether the newcomer's file takes the place of the owner's.

    Raises:
        RecipeError: neither package replaces the other, and they have different origins.
    """
    first, second = ledger.packages[owner], ledger.packages[newcomer]
    kept, taken = _replaces(first, second), _replaces(second, first)
    if kept > taken:
        return False
    if taken or (first.origin and first.origin == second.origin):
        return True
    raise RecipeError(
        f"{first} and {second} both install {path}",
        hint=f"leave one of {owner} and {newcomer} out of the recipe's packages",
    )


def _replaces(package: Package, other: Package) -> tuple[int, ...]:
    """Return the priority with which ``package`` replaces ``other``, nothing if it does not: less than any priority."""
    for word in package.replaces:
        try:
            dependency = Dependency.lenient(word)
        except ValueError:
            continue  # a word that is no dependency names no package
        if dependency.name == other.name and dependency.matches(other.version):
            return (package.replaces_priority,)
    return ()


def _was_changed(tree: Tree, place: str, old: PathRecord | None, new: PathRecord) -> bool:
    """Return whether the file at ``place`` is neither the package's new one nor what an earlier package put there."""
    if place not in tree or not isinstance(tree[place], (File, Symlink, HardLink)):
        return False
    return not any(record is not None and _is_original(tree, place, record) for record in (new, old))


def _is_original(tree: Tree, place: str, record: PathRecord) -> bool:
    node = tree[place]
    raw = node.target.encode(errors="surrogateescape") if isinstance(node, Symlink) else tree.read(place)
    return hashlib.sha1(raw).digest() == record.checksum  # noqa: S324 - the format's choice
