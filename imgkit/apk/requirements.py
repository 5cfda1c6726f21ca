"""What a search is about: candidates for slots, and the requirements on them.

A *slot* is a name for which one provider is chosen. A package is installed when the slot of its own name is filled with
it; choosing it for another name requires that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from imgkit.apk.candidates import Claim
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to fill a slot. ``tags`` are the repository tags that whoever asks for the slot allows."""

    slot: str
    claim: Claim | None
    tags: frozenset[str] = frozenset()
    selectable: bool = True

    @property
    def package(self) -> Package | None:
        return self.claim.package if self.claim else None


class Requirement(Protocol):
    """Something asked of a slot."""

    @property
    def slot(self) -> str: ...

    def accepts(self, candidate: Candidate) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """A dependency. ``matching`` are the ids of the packages that satisfy it."""

    slot: str
    dependency: Dependency
    matching: frozenset[int]
    tags: frozenset[str] = frozenset()

    def accepts(self, candidate: Candidate) -> bool:
        return id(candidate.package) in self.matching and self.tags <= candidate.tags


@dataclass(frozen=True, slots=True, eq=False)
class Ban:
    """A conflict. The package that declares it, if one does, is never hit itself."""

    slot: str
    dependency: Dependency
    matching: frozenset[int]
    package: Package | None = None

    def accepts(self, candidate: Candidate) -> bool:
        return candidate.package is self.package or not self.hits(candidate.package)

    def hits(self, package: Package | None) -> bool:
        return package is not self.package and id(package) in self.matching


@dataclass(frozen=True, slots=True, eq=False)
class Only:
    """The slot belongs to this package."""

    slot: str
    package: Package
    tags: frozenset[str] = frozenset()

    def accepts(self, candidate: Candidate) -> bool:
        return candidate.package is self.package and self.tags <= candidate.tags


@dataclass(frozen=True, slots=True, eq=False)
class Present:
    """This package has the slot as a virtual name; others may as well."""

    slot: str
    package: Package

    def accepts(self, candidate: Candidate) -> bool:
        return candidate.claim is not None and candidate.claim.version is None


@dataclass(frozen=True, slots=True, eq=False)
class Unselected:
    """What choosing a virtual provider that nothing else wants runs into: nobody said which one it should be."""

    slot: str
    name: str

    def accepts(self, candidate: Candidate) -> bool:  # noqa: ARG002 - nothing will do
        return False
