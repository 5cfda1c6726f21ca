"""Installing packages into a Tree that may have some already: what ``apk add`` does, in its order.

For each package in the order of the solution: pre-install script, files, post-install script; after all of them the
triggers; then the database. Of a package that is there in another version the upgrade scripts run instead, and what
only the old version had goes. Scripts are computed (:mod:`imgkit.rootfs.scripts`); what cannot be computed is returned,
not dropped.
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

_MAX_TRIGGERS = 200  # patterns, each of which is held against every directory; packages have up to ten


@dataclass(frozen=True)
class CompletedScript:
    """A script whose effects are in the Tree: what it was, how it ended, what it said."""

    package: str
    kind: str
    outcome: Outcome


@dataclass(frozen=True)
class ScriptReport:
    """What became of every script that a fresh installation runs.

    Attributes:
        ran: computed.
        pending: not computable; somebody has to run them in the guest's own world, or refuse the build.
        skipped: ``package.kind`` of those that the recipe says need not run.
    """

    ran: tuple[CompletedScript, ...]
    pending: tuple[Pending, ...]
    skipped: tuple[str, ...]


@dataclass
class _Scripts:
    """Runs scripts on the Tree and keeps account of them."""

    tree: Tree
    epoch: int
    hooks: Hooks
    skip: frozenset[str]
    ran: list[CompletedScript] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self, package: str, kind: str, scripts: Mapping[str, bytes], args: Sequence[str]) -> None:
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
    """The packages that the database in ``tree`` lists; none if there is no database.

    Raises:
        InputError: the database is malformed.
    """

    def read(*names: str) -> bytes:
        found = next((name for name in names if isinstance(tree.stat(f"{FOLDER}/{name}"), File)), None)
        return tree.read(f"{FOLDER}/{found}") if found else b""

    return read_database(read("installed"), read("triggers"), read("scripts.tar.gz", "scripts.tar"))


def world_in(tree: Tree) -> tuple[str, ...]:
    """The words of ``etc/apk/world``."""
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
        tree: a root filesystem, empty or with a database; what it has beyond ``packages`` is removed.
        packages: all of them, in install order, as the solver gives them.
        open_file: gives the verified file of a package; asked for those only that are not there in this very build.
        world: the dependencies to write down as wanted.
        arch: Alpine's name of the architecture.
        epoch: seconds since 1970 for all that depends on the time of the build.
        hooks: what scripts may call and others compute.
        skip: names of packages whose scripts are not run.

    Raises:
        RecipeError: two packages have one file and neither replaces the other.
        InputError: the database in ``tree`` is malformed, or ``open_file`` cannot give a file.
    """
    run = _Installation(tree, _Scripts(tree, epoch, hooks or Hooks(), frozenset(skip)))
    wanted = {package.name for package in packages}
    for name in [name for name in run.records if name not in wanted]:
        run.remove(name)
    for package in packages:
        if not run.has(package):
            run.add(package, open_file(package))
    run.triggers(packages)
    run.write(world, arch, epoch)
    return ScriptReport(tuple(run.scripts.ran), tuple(run.scripts.pending), tuple(run.scripts.skipped))


class _Installation:
    """The state of one installation: the Tree, who owns what in it, and the records to be written."""

    def __init__(self, tree: Tree, scripts: _Scripts) -> None:
        self.tree = tree
        self.scripts = scripts
        self.records = {record.package.name: record for record in installed_in(tree)}
        self.entries: dict[str, tuple[PackageEntry, ...]] = {}
        self.ledger = _ledger(self.records.values())
        self.touched: set[str] = set()

    def has(self, package: Package) -> bool:
        """Whether this very build of the package is there."""
        record = self.records.get(package.name)
        return record is not None and record.package.identity == package.identity

    def remove(self, name: str) -> None:
        del self.records[name]
        merge.remove(self.tree, self.ledger, name)

    def add(self, package: Package, file: PackageFile) -> None:
        """Install one package, or upgrade it from what is there."""
        package = replace(package, replaces=file.replaces, replaces_priority=file.replaces_priority)
        old = self.records.get(package.name)
        stage, args = ("install", [package.version]) if old is None else (
            "upgrade", [package.version, old.package.version]
        )  # fmt: skip
        self.scripts.run(package.name, f"pre-{stage}", file.scripts, args)
        names = accounts.lookup(self.tree)
        if old is not None:
            keep = frozenset(entry.path for entry in file.entries)
            before = {path: claim for path, claim in self.ledger.files.items() if claim.package == package.name}
            merge.remove(self.tree, self.ledger, package.name, keep=keep)
            self.ledger.files.update((path, claim) for path, claim in before.items() if path in keep)
        merge.merge(self.tree, self.ledger, package, file.entries, names)
        self.touched.update(entry.path for entry in file.entries if isinstance(entry.node, Directory))
        self.entries[package.name] = file.entries
        self.records[package.name] = InstalledPackage(package, triggers=file.triggers, scripts=file.scripts)
        self.scripts.run(package.name, f"post-{stage}", file.scripts, args)

    def triggers(self, packages: Iterable[Package]) -> None:
        """Run the triggers that match a directory: all directories for new packages, touched ones for older."""
        for package in packages:
            record = self.records[package.name]
            if not record.triggers:
                continue
            if len(record.triggers) > _MAX_TRIGGERS:
                raise InputError(f"{package.name}: its trigger has more than {_MAX_TRIGGERS} patterns")
            new = package.name in self.entries
            known = self.ledger.directories if new else self.touched
            try:
                matched = matching_directories(known, record.triggers, modified=None if new else self.touched)
            except Exhausted as cause:
                raise InputError(f"{package.name}: the patterns of its trigger: matching them {cause}") from cause
            if matched:
                self.scripts.run(package.name, "trigger", record.scripts, matched)

    def write(self, world: Iterable[str], arch: str, epoch: int) -> None:
        """Write the database, ``world`` and ``arch``."""
        failed = {ran.package for ran in self.scripts.ran if ran.outcome.status != 0}
        records = [replace(self._record(name), flags=self._flags(name, failed)) for name in self.records]
        for name, data in write_database(records).files.items():
            self.tree.write(f"{FOLDER}/{name}", data, mtime=epoch)
        if "lib/apk/db/scripts.tar" in self.tree:  # apk 3 keeps to this name where it finds it
            self.tree.remove("lib/apk/db/scripts.tar")
        self.tree.write(f"{FOLDER}/lock", b"", mode=0o600, mtime=epoch)
        self.tree.write("etc/apk/world", world_text(world), mtime=epoch)
        self.tree.write("etc/apk/arch", arch + "\n", mtime=epoch)

    def _flags(self, name: str, failed: set[str]) -> str:
        flags = self.records[name].flags
        return flags + "s" if name in failed and "s" not in flags else flags

    def _record(self, name: str) -> InstalledPackage:
        """The record of a package, without the files that others took over."""
        record, files = self.records[name], self.ledger.files
        if name not in self.entries:
            return replace(
                record,
                directories=tuple(
                    replace(each, files=tuple(
                        file for file in each.files if files[_join(each.path, file.name)].package == name
                    ))
                    for each in record.directories
                ),
            )  # fmt: skip

        def owner(entry: PackageEntry) -> tuple[int, int]:
            is_directory = isinstance(entry.node, Directory)
            claim = self.ledger.directories[entry.path][name] if is_directory else files[entry.path]
            return claim.uid, claim.gid

        own = [
            entry
            for entry in self.entries[name]
            if isinstance(entry.node, Directory) or files[entry.path].package == name
        ]
        return replace(record, directories=directories_of(own, owner))


def _ledger(records: Iterable[InstalledPackage]) -> Ledger:
    """Who owns what, as a database says."""
    ledger = Ledger()
    for record in records:
        name = record.package.name
        ledger.packages[name] = record.package
        for directory in record.directories:
            own = directory.attributes
            claim = PathRecord(name, own.uid, own.gid, own.mode)
            ledger.directories.setdefault(directory.path, {})[name] = claim
            for file in directory.files:
                kept = file.attributes
                ledger.files[_join(directory.path, file.name)] = PathRecord(
                    name, kept.uid, kept.gid, kept.mode, _checksum(file.checksum)
                )
    return ledger


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _checksum(text: str) -> bytes | None:
    try:
        return base64.b64decode(text[2:]) or None
    except binascii.Error:
        return None


def world_text(world: Iterable[str]) -> str:
    """The text of ``etc/apk/world``: one dependency a line; of several on one name the last one counts."""
    parsed = {}
    for word in world:
        dependency = Dependency.parse(word)
        parsed[dependency.name, dependency.conflict] = dependency
    return "".join(f"{dependency}\n" for dependency in sorted(parsed.values(), key=world_order))
