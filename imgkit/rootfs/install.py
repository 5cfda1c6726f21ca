"""Install packages into a Tree that may have some already, in the same order as ``apk add``.

    report = install(tree, packages, open_file, world=("alpine-base",), arch="x86_64", epoch=epoch)

For each package in the order of the solution come its pre-install script, its files and its post-install script; after
all packages the triggers; then the database. If another version of a package is installed, the upgrade scripts run
instead, and files that only the old version had are removed. Scripts are computed (:mod:`imgkit.rootfs.scripts`); a
script that cannot be computed is part of the result, so that the caller can run it or refuse the build.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from imgkit.apk.database import FOLDER, InstalledPackage, directories_of, read_database, write_database
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.order import world_order
from imgkit.apk.package import PackageFile
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import InputError
from imgkit.rootfs import accounts, merge
from imgkit.rootfs.merge import Ledger, PathRecord
from imgkit.rootfs.scripts.budget import Exhausted
from imgkit.rootfs.scripts.effects import Hooks, Outcome, Pending, attempt
from imgkit.rootfs.scripts.triggers import matching_directories
from imgkit.tree import Directory, File, Tree

_MAX_TRIGGERS = 200  # patterns, each of which is matched against every directory; packages have up to ten


@dataclass(frozen=True)
class CompletedScript:
    """A script whose effects are in the Tree: ``kind`` of ``package``, and how it ended."""

    package: str
    kind: str
    outcome: Outcome


@dataclass(frozen=True)
class ScriptReport:
    """The result of every script of an installation.

    Attributes:
        ran: scripts that were computed.
        pending: scripts that cannot be computed. The caller has to run them in the guest, or to refuse the build.
        skipped: ``package.kind`` of the scripts that need not run, according to the recipe.
    """

    ran: tuple[CompletedScript, ...]
    pending: tuple[Pending, ...]
    skipped: tuple[str, ...]


@dataclass
class _Scripts:
    """Runs scripts on the Tree and collects their results."""

    tree: Tree
    epoch: int
    hooks: Hooks
    skip: frozenset[str]
    ran: list[CompletedScript] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self, package: str, kind: str, scripts: Mapping[str, bytes], args: Sequence[str]) -> None:
        """Run the script ``kind`` of a package, if it has one and the recipe does not skip it."""
        script = scripts.get(kind)
        if script is None:
            return
        if package in self.skip:
            self.skipped.append(f"{package}.{kind}")
            return
        text = script.decode(errors="surrogateescape")
        result = attempt(self.tree, text, package=package, kind=kind, args=args, epoch=self.epoch, hooks=self.hooks)
        if isinstance(result, Pending):
            self.pending.append(result)
        else:
            self.ran.append(CompletedScript(package, kind, result))


def installed_in(tree: Tree) -> tuple[InstalledPackage, ...]:
    """Return the packages that the database in ``tree`` lists, none if there is no database.

    Raises:
        InputError: the database is malformed.
    """

    def read(*names: str) -> bytes:
        present = next((name for name in names if isinstance(tree.stat(f"{FOLDER}/{name}"), File)), None)
        return tree.read(f"{FOLDER}/{present}") if present else b""

    return read_database(read("installed"), read("triggers"), read("scripts.tar.gz", "scripts.tar"))


def world_in(tree: Tree) -> tuple[str, ...]:
    """Return the words of ``etc/apk/world``, none if there is no such file."""
    return tuple(tree.text("etc/apk/world").split()) if "etc/apk/world" in tree else ()


def install(
    tree: Tree,
    packages: Sequence[Package],
    open_file: Callable[[Package], PackageFile],
    *,
    world: Iterable[str],
    arch: str,
    epoch: int,
    hooks: Hooks | None = None,
    skip: Iterable[str] = (),
) -> ScriptReport:
    """Make ``packages`` the installed packages of ``tree``.

    Args:
        tree: a root filesystem, empty or with a database. Packages in it that are not in ``packages`` are removed.
        packages: all packages that are wanted, in install order, as the solver returns them.
        open_file: returns the verified file of a package. It is called only for packages that are not installed in
            exactly this build.
        world: the dependencies to write into ``etc/apk/world``.
        arch: Alpine's name of the architecture.
        epoch: seconds since 1970, for everything that depends on the time of the build.
        hooks: what scripts may call and other parts of imgkit compute.
        skip: names of packages whose scripts are not run.

    Raises:
        RecipeError: two packages have the same file and neither replaces the other.
        InputError: the database in ``tree`` is malformed, ``open_file`` cannot return a file, or a trigger has too many
            or too expensive patterns.
    """
    installation = _Installation(tree, _Scripts(tree, epoch, hooks or Hooks(), frozenset(skip)))
    wanted = {package.name for package in packages}
    for name in [name for name in installation.records if name not in wanted]:
        installation.remove(name)
    for package in packages:
        if not installation.has(package):
            installation.add(package, open_file(package))
    installation.run_triggers(packages)
    installation.write_database(world, arch, epoch)
    scripts = installation.scripts
    return ScriptReport(tuple(scripts.ran), tuple(scripts.pending), tuple(scripts.skipped))


class _Installation:
    """The state of one installation: the Tree, which package owns which path, and the records of the database."""

    def __init__(self, tree: Tree, scripts: _Scripts) -> None:
        self.tree = tree
        self.scripts = scripts
        self.records = {record.package.name: record for record in installed_in(tree)}
        self.entries: dict[str, tuple[PackageEntry, ...]] = {}
        self.ledger = _ledger(self.records.values())
        self.touched: set[str] = set()

    def has(self, package: Package) -> bool:
        """Return whether exactly this build of the package is installed."""
        record = self.records.get(package.name)
        return record is not None and record.package.identity == package.identity

    def remove(self, name: str) -> None:
        """Remove a package."""
        del self.records[name]
        merge.remove(self.tree, self.ledger, name)

    def add(self, package: Package, file: PackageFile) -> None:
        """Install a package, or upgrade it if another version is installed."""
        package = replace(package, replaces=file.replaces, replaces_priority=file.replaces_priority)
        old = self.records.get(package.name)
        stage, args = ("install", [package.version]) if old is None else (
            "upgrade", [package.version, old.package.version]
        )  # fmt: skip
        self.scripts.run(package.name, f"pre-{stage}", file.scripts, args)
        names = accounts.lookup(self.tree)
        if old is not None:
            keep = frozenset(entry.path for entry in file.entries)
            before = {path: owner for path, owner in self.ledger.files.items() if owner.package == package.name}
            merge.remove(self.tree, self.ledger, package.name, keep=keep)
            self.ledger.files.update((path, owner) for path, owner in before.items() if path in keep)
        merge.merge(self.tree, self.ledger, package, file.entries, names)
        self.touched.update(entry.path for entry in file.entries if isinstance(entry.node, Directory))
        self.entries[package.name] = file.entries
        self.records[package.name] = InstalledPackage(package, triggers=file.triggers, scripts=file.scripts)
        self.scripts.run(package.name, f"post-{stage}", file.scripts, args)

    def run_triggers(self, packages: Iterable[Package]) -> None:
        """Run the triggers that match a directory.

        The trigger of a new package sees all directories, that of an older package those that this run touched.
        """
        for package in packages:
            record = self.records[package.name]
            if not record.triggers:
                continue
            if len(record.triggers) > _MAX_TRIGGERS:
                raise InputError(f"{package.name}: its trigger has more than {_MAX_TRIGGERS} patterns")
            known = self.ledger.directories if package.name in self.entries else self.touched
            try:
                matched = matching_directories(known, record.triggers)
            except Exhausted as cause:
                raise InputError(f"{package.name}: the patterns of its trigger: matching them {cause}") from cause
            if matched:
                self.scripts.run(package.name, "trigger", record.scripts, matched)

    def write_database(self, world: Iterable[str], arch: str, epoch: int) -> None:
        """Write the installed database, ``world`` and ``arch``."""
        failed = {ran.package for ran in self.scripts.ran if ran.outcome.status != 0}
        records = [replace(self._record(name), flags=self._flags(name, failed)) for name in self.records]
        for name, data in write_database(records).files.items():
            self.tree.write(f"{FOLDER}/{name}", data, mtime=epoch)
        older = self.tree.resolve(f"{FOLDER}/scripts.tar", follow=False)
        if older in self.tree:  # apk 3 keeps using this name where it finds it
            self.tree.remove(older)
        self.tree.write(f"{FOLDER}/lock", b"", mode=0o600, mtime=epoch)
        self.tree.write("etc/apk/world", _world_text(world), mtime=epoch)
        self.tree.write("etc/apk/arch", arch + "\n", mtime=epoch)

    def _flags(self, name: str, failed: set[str]) -> str:
        flags = self.records[name].flags
        return flags + "s" if name in failed and "s" not in flags else flags

    def _record(self, name: str) -> InstalledPackage:
        """Return the record of a package without the files that other packages took over."""
        record, files = self.records[name], self.ledger.files
        if name not in self.entries:
            return replace(
                record,
                directories=tuple(
                    replace(directory, files=tuple(
                        file for file in directory.files if files[_join(directory.path, file.name)].package == name
                    ))
                    for directory in record.directories
                ),
            )  # fmt: skip

        def owner(entry: PackageEntry) -> tuple[int, int]:
            is_directory = isinstance(entry.node, Directory)
            owned = self.ledger.directories[entry.path][name] if is_directory else files[entry.path]
            return owned.uid, owned.gid

        own = [
            entry
            for entry in self.entries[name]
            if isinstance(entry.node, Directory) or files[entry.path].package == name
        ]
        return replace(record, directories=directories_of(own, owner))


def _ledger(records: Iterable[InstalledPackage]) -> Ledger:
    """Return which package owns which path, according to the installed database."""
    ledger = Ledger()
    for record in records:
        name = record.package.name
        ledger.packages[name] = record.package
        for directory in record.directories:
            attributes = directory.attributes
            owned = PathRecord(name, attributes.uid, attributes.gid, attributes.mode)
            ledger.directories.setdefault(directory.path, {})[name] = owned
            for file in directory.files:
                attributes, checksum = file.attributes, _checksum(file.checksum)
                owned = PathRecord(name, attributes.uid, attributes.gid, attributes.mode, checksum)
                ledger.files[_join(directory.path, file.name)] = owned
    return ledger


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _checksum(text: str) -> bytes | None:
    """Decode ``Q1…``; None if it is damaged or empty."""
    try:
        return base64.b64decode(text[2:]) or None
    except binascii.Error:
        return None


def _world_text(world: Iterable[str]) -> str:
    """Return the text of ``etc/apk/world``: one dependency per line; the last of several on one name counts."""
    parsed = {}
    for word in world:
        dependency = Dependency.parse(word)
        parsed[dependency.name, dependency.conflict] = dependency
    return "".join(f"{dependency}\n" for dependency in sorted(parsed.values(), key=world_order))
