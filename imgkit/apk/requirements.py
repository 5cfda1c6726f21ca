"""The objects of a search: candidates for slots, and requirements on them.

A *slot* is a name for which one provider is chosen. A package is installed when it is chosen for the slot of its own
name; choosing it for another slot requires that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from imgkit.apk.candidates import Claim
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One choice for a slot.

    Attributes:
        slot: the name.
        claim: the package that is chosen for it, with its claim; None if no package gets the name.
        tags: the repository tags that the packages that ask for the slot allow.
        selectable: whether it may be chosen without another reason.
    """

    slot: str
    claim: Claim | None
    tags: frozenset[str] = frozenset()
    selectable: bool = True

    @property
    def package(self) -> Package | None:
        """The package that is chosen, if there is one."""
        return self.claim.package if self.claim else None


class Requirement(Protocol):
    """A condition on the choice for a slot."""

    @property
    def slot(self) -> str:
        """The slot that the requirement is about."""
        ...

    def accepts(self, candidate: Candidate) -> bool:
        """Return whether this candidate of the slot meets the requirement."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """A dependency. ``matching`` has the ids of the packages that satisfy it."""

    slot: str
    dependency: Dependency
    matching: frozenset[int]
    tags: frozenset[str] = frozenset()

    def accepts(self, candidate: Candidate) -> bool:
        """Return whether the candidate satisfies the dependency and may come from the repositories that it allows."""
        return id(candidate.package) in self.matching and self.tags <= candidate.tags


@dataclass(frozen=True, slots=True, eq=False)
class Ban:
    """A conflict. ``matching`` has the ids of the packages that violate it, except ``package``, which declares it."""

    slot: str
    dependency: Dependency
    matching: frozenset[int]
    package: Package | None = None

    def accepts(self, candidate: Candidate) -> bool:
        """Return whether the candidate does not violate the conflict."""
        return not self.hits(candidate.package)

    def hits(self, package: Package | None) -> bool:
        """Return whether a package violates the conflict. The package that declares it never does."""
        return package is not self.package and id(package) in self.matching


@dataclass(frozen=True, slots=True, eq=False)
class Only:
    """Only this package may be chosen for the slot."""

    slot: str
    package: Package
    tags: frozenset[str] = frozenset()

    def accepts(self, candidate: Candidate) -> bool:
        """Return whether the candidate is the package, and may come from the repositories that are allowed."""
        return candidate.package is self.package and self.tags <= candidate.tags


@dataclass(frozen=True, slots=True, eq=False)
class Present:
    """This package claims the slot as a virtual name, so only virtual claims may be chosen for it."""

    slot: str
    package: Package

    def accepts(self, candidate: Candidate) -> bool:
        """Return whether the candidate's claim is a virtual one."""
        return candidate.claim is not None and candidate.claim.version is None


@dataclass(frozen=True, slots=True, eq=False)
class Unselected:
    """A requirement that nothing meets, which prevents the choice of a virtual provider without another reason."""

    slot: str
    name: str

    def accepts(self, candidate: Candidate) -> bool:  # noqa: ARG002 - the signature is that of Requirement
        """Return False."""
        return False
