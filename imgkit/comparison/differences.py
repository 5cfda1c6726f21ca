"""The differences between two snapshots, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imgkit.apk.version import Version
from imgkit.comparison.snapshot import PackageState, Snapshot, SourceKind
from imgkit.rootfs.digest import NodeRecord

Direction: TypeAlias = Literal["up", "down", "rebuilt"]
"""How a package changed: to a newer or an older version, or to other contents of the same one."""

_ASPECTS = {
    "type": "type",
    "sha256": "content",
    "size": "content",
    "target": "target",
    "device": "device",
    "mode": "mode",
    "uid": "owner",
    "gid": "owner",
    "xattrs": "attributes",
    "link": "link",
}
"""Key of a record → what it is called if it differs."""


@dataclass(frozen=True)
class ComparedSide:
    """One of the two sides.

    Attributes:
        source: where it was taken from, which is a ``kind``.
        arch: imgkit's name of the architecture; empty if it is not known.
        image_size: bytes of the image's file or of its layers, None if it is not known. That is no difference: an image
            may be compressed anew.
        files_size: bytes of all regular files, each once however many links it has; None if there are no files.
    """

    source: Path
    kind: SourceKind
    arch: str
    image_size: int | None
    files_size: int | None


@dataclass(frozen=True)
class ChangedFact:
    """A fact about the image, or a field of its recipe (``recipe.size``). None is an unknown or absent value."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ListedState:
    """A package that only one of the sides has."""

    name: str
    version: str


@dataclass(frozen=True)
class ChangedPackage:
    """A package that both sides have, with its versions. ``direction`` is by apk's order of versions."""

    name: str
    before: str
    after: str
    direction: Direction


@dataclass(frozen=True)
class ChangedFile:
    """A path that differs.

    Attributes:
        change: "added", "removed" or "changed".
        aspects: what differs: "type", "content", "target", "device", "mode", "owner", "attributes", "link". Empty for
            a path that only one side has.
        origin: the package that it belongs to, "payload" or "setup"; its topmost folder if that is not known.
        before, after: sizes of regular files in bytes; 0 for everything else.
    """

    path: str
    change: Literal["added", "removed", "changed"]
    aspects: tuple[str, ...]
    origin: str
    before: int
    after: int


@dataclass(frozen=True)
class ImageDifferences:
    """How one image differs from another.

    Attributes:
        facts: sorted by name.
        packages_added, packages_removed, packages_changed: sorted by name.
        packages_same: how many packages are the same.
        files: sorted by path; None if one of the sides has no files.
        files_same: how many paths are the same.
    """

    before: ComparedSide
    after: ComparedSide
    facts: tuple[ChangedFact, ...]
    packages_added: tuple[ListedState, ...]
    packages_removed: tuple[ListedState, ...]
    packages_changed: tuple[ChangedPackage, ...]
    packages_same: int
    files: tuple[ChangedFile, ...] | None
    files_same: int

    @property
    def equal(self) -> bool:
        """Whether no difference was found in what both sides know."""
        packages = self.packages_added or self.packages_removed or self.packages_changed
        return not (self.facts or packages or self.files)


def compare(before: Snapshot, after: Snapshot) -> ImageDifferences:
    """Return how ``after`` differs from ``before``."""
    old, new = before.packages, after.packages
    shared = sorted(old.keys() & new.keys())
    changed = [change for name in shared if (change := _package(name, old[name], new[name]))]
    no_files = before.files is None or after.files is None
    files = () if no_files else tuple(_files(before, after))
    return ImageDifferences(
        before=_side(before),
        after=_side(after),
        facts=tuple(_facts(before.facts, after.facts)),
        packages_added=tuple(ListedState(name, new[name].version) for name in sorted(new.keys() - old.keys())),
        packages_removed=tuple(ListedState(name, old[name].version) for name in sorted(old.keys() - new.keys())),
        packages_changed=tuple(changed),
        packages_same=len(shared) - len(changed),
        files=None if no_files else files,
        files_same=0 if no_files else _number_of_same(before, files),
    )


def _facts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[ChangedFact]:
    """Yield the facts that differ. A field of the recipe that only one side has differs if both know their recipes."""
    names = before.keys() & after.keys()
    if all(any(name.startswith("recipe.") for name in facts) for facts in (before, after)):
        names |= {name for name in before.keys() | after.keys() if name.startswith("recipe.")}
    for name in sorted(names):
        if before.get(name) != after.get(name):
            yield ChangedFact(name, before.get(name), after.get(name))


def _package(name: str, before: PackageState, after: PackageState) -> ChangedPackage | None:
    """Return how a package changed, None if it did not. An identity that is not known is that of the other side."""
    if before.version != after.version:
        newer = Version.lenient(before.version) < Version.lenient(after.version)
        return ChangedPackage(name, before.version, after.version, "up" if newer else "down")
    if before.identity != after.identity and before.identity and after.identity:
        return ChangedPackage(name, before.version, after.version, "rebuilt")
    return None


def _files(before: Snapshot, after: Snapshot) -> Iterator[ChangedFile]:
    old, new = before.files or {}, after.files or {}
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            yield ChangedFile(path, "removed", (), before.origin_of(path), _size(old[path]), 0)
        elif path not in old:
            yield ChangedFile(path, "added", (), after.origin_of(path), 0, _size(new[path]))
        elif aspects := _aspects(old[path], new[path]):
            yield ChangedFile(path, "changed", aspects, after.origin_of(path), _size(old[path]), _size(new[path]))


def _aspects(before: NodeRecord, after: NodeRecord) -> tuple[str, ...]:
    """Return in what two records differ. Keys that nobody knows are left out: a later version may have more."""
    if before.get("type") != after.get("type"):
        return ("type",)
    return tuple(dict.fromkeys(word for key, word in _ASPECTS.items() if before.get(key) != after.get(key)))


def _size(record: NodeRecord) -> int:
    """Return the size of a regular file in bytes, from a record that is not trusted."""
    size = record.get("size", 0)
    return size if type(size) is int and size > 0 else 0


def _side(snapshot: Snapshot) -> ComparedSide:
    files = snapshot.files
    total = None if files is None else sum(_size(record) for record in files.values() if "link" not in record)
    return ComparedSide(snapshot.source, snapshot.kind, snapshot.arch, snapshot.image_size, total)


def _number_of_same(before: Snapshot, files: tuple[ChangedFile, ...]) -> int:
    return len(before.files or {}) - sum(file.change != "added" for file in files)
