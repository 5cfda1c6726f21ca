"""Sentences about why a world cannot be installed. Nothing here decides anything."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Sequence

from imgkit.apk.candidates import Catalog, Reach
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.requirements import Ban, Need, Only, Present, Unselected
from imgkit.apk.search import Cause, NoSolution

_WANTED = "wanted by the recipe"


def near_misses(name: str, catalog: Catalog) -> list[str]:
    """Up to three names in the catalog that look like ``name``; names of packages before provided ones."""
    return difflib.get_close_matches(name, [one for one in catalog.names() if ":" not in one], n=3, cutoff=0.75)


def lack(dependency: Dependency, reach: Reach) -> str:
    """What is wrong with a dependency that nothing usable satisfies: a relative clause."""
    clauses: list[str] = []
    while True:
        claims = reach.catalog.matching(dependency)
        if not claims:
            return ", which needs ".join([*clauses, f"{dependency}, {_nobody(dependency, reach.catalog)}"])
        clauses.append(_through(dependency, claims[0].package))
        dependency = reach.lacking[id(claims[0].package)]


def wanted_lack(wanted: Dependency, reach: Reach) -> str:
    """The sentence for an entry of the world that nothing usable satisfies."""
    claims = reach.catalog.matching(wanted)
    if not claims:
        return f"the recipe wants {wanted}, {_nobody(wanted, reach.catalog)}"
    package = claims[0].package
    return f"{_through(wanted, package)} ({_WANTED}) needs {lack(reach.lacking[id(package)], reach)}"


def _through(dependency: Dependency, package: Package) -> str:
    return str(dependency) if package.name == dependency.name else f"{dependency} ({package.name})"


def _nobody(dependency: Dependency, catalog: Catalog) -> str:
    versions = {claim.version or "without a version" for claim in catalog.claims(dependency.name)}
    if versions:
        return f"but there is only {', '.join(sorted(versions))}"
    refused = catalog.refused.get(dependency.name)
    if refused:
        package, reason = refused[0]
        return f"but {package} is not installable: {reason}"
    return "which no package provides"


class Chains:
    """Who needs a package, traced back to the world along the shortest way through everything that could be chosen."""

    def __init__(self, reach: Reach, world: Sequence[Dependency]) -> None:
        self._asker: dict[int, Package | None] = {}
        self._askers: dict[str, Package | None] = {}
        waiting: deque[tuple[Package | None, Dependency]] = deque((None, one) for one in world)
        while waiting:
            asker, dependency = waiting.popleft()
            self._askers.setdefault(dependency.name, asker)
            for claim in () if dependency.conflict else reach.catalog.matching(dependency):
                if id(claim.package) in self._asker:
                    continue
                self._asker[id(claim.package)] = asker
                waiting.extend((claim.package, one) for one in reach.needs(claim.package))

    def asker(self, name: str) -> str:
        """Who asks for a name first, and the verb: ``git (wanted by the recipe) needs``."""
        package = self._askers.get(name)
        return "the recipe wants" if package is None else f"{self.describe(package)} needs"

    def describe(self, package: Package) -> str:
        """The package with who needs it in brackets: ``c (needed by b, needed by a, wanted by the recipe)``."""
        words = []
        asker: Package | None = package
        while asker is not None:
            asker = self._asker[id(asker)]
            words.append(f"needed by {asker.name}" if asker else _WANTED)
        return f"{package.name} ({', '.join(words)})"


class Conflict:
    """The last failure of a search in words: ``message`` is one line, ``hint`` what to do, if that is known."""

    def __init__(self, failure: NoSolution, reach: Reach, world: Sequence[Dependency]) -> None:
        self._reach = reach
        self._chains = Chains(reach, world)
        self.hint: str | None = None
        self.message = self._sentence(failure)

    def _sentence(self, failure: NoSolution) -> str:
        if failure.gave_up:
            self.hint = "name the versions or providers that you want in the recipe"
            return "the packages of the recipe could not be made to fit together in reasonable time"
        for cause in failure.causes:
            if isinstance(cause.requirement, Unselected):
                return self._virtual(cause.requirement)
        for cause in failure.causes:
            masked = self._masked(cause)
            if masked:
                return masked
        clauses = dict.fromkeys(clause for cause in failure.causes if (clause := self._clause(cause)))
        return "these cannot be had together: " + "; ".join(clauses)

    def _virtual(self, requirement: Unselected) -> str:
        providers = sorted({claim.package.name for claim in self._reach.claims(requirement.name)})
        self.hint = f"add one of these to the packages of the recipe: {', '.join(providers)}"
        return f"{self._chains.asker(requirement.name)} {requirement.name}, which no package provides by default"

    def _masked(self, cause: Cause) -> str | None:
        """The sentence for a dependency that only a repository with a tag could satisfy, if that is what this is."""
        need = cause.requirement
        if not isinstance(need, Need):
            return None
        tags = {claim.package.repository.tag for claim in self._reach.catalog.matching(need.dependency)}
        if not tags or None in tags or tags & need.tags:
            return None
        names = ", ".join(sorted(f"@{tag}" for tag in tags))
        self.hint = f"write {need.dependency.name}{names.partition(',')[0]} in the recipe to allow it"
        return f"{self._clause(cause)}, which only the repository tagged {names} has"

    def _clause(self, cause: Cause) -> str:
        requirement, parent = cause.requirement, cause.parent
        who = self._chains.describe(parent.package) if parent and parent.package else "the recipe"
        if isinstance(requirement, Need):
            return f"{who} {'needs' if parent else 'wants'} {requirement.dependency}"
        if isinstance(requirement, Ban):
            return f"{who} {'conflicts with' if parent else 'excludes'} {str(requirement.dependency)[1:]}"
        if isinstance(requirement, (Only, Present)) and parent and parent.slot == requirement.package.name:
            return f"{who} provides {requirement.slot}"
        return f"{parent.slot} is to come from {who}" if parent else ""
