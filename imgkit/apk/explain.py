"""Sentences about why a world cannot be installed. Nothing here decides anything."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterable, Sequence

from imgkit.apk.candidates import Catalog, Claim
from imgkit.apk.deduction import DeadEnd
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.reach import Reach
from imgkit.apk.requirements import Ban, Need, Only, Present, Unselected
from imgkit.apk.search import Cause, NoSolution

_WANTED = "wanted by the recipe"


def near_misses(name: str, catalog: Catalog) -> list[str]:
    """Up to three names in the catalog that look like ``name``; names of packages before provided ones."""
    return difflib.get_close_matches(name, [one for one in catalog.names() if ":" not in one], n=3, cutoff=0.75)


class Lack:
    """What is wrong with an entry of the world that nothing usable satisfies: a sentence, and what to do if known."""

    def __init__(self, wanted: Dependency, reach: Reach) -> None:
        self._catalog = reach.catalog
        self.hint: str | None = None
        clauses: list[str] = []
        dependency = wanted
        while claims := reach.serving(dependency):
            package = claims[0].package
            clauses.append(_through(dependency, package))
            dependency = reach.lacking[id(package)]
        missing = f"{dependency}, {self._nobody(dependency)}"
        if not clauses:
            self.message = f"the recipe wants {missing}"
        else:
            clauses[0] += f" ({_WANTED}) needs " + ", which needs ".join([*clauses[1:], missing])
            self.message = clauses[0]

    def _nobody(self, dependency: Dependency) -> str:
        claims = self._catalog.claims(dependency.name)
        if self._catalog.matching(dependency):
            self.hint = choose_hint(claims)
            return "which no package provides by default"
        if claims:
            versions = {claim.version or "without a version" for claim in claims}
            return f"but there is only {', '.join(sorted(versions))}"
        refused = self._catalog.refused.get(dependency.name)
        if refused:
            package, reason = refused[0]
            return f"but {package} is not installable: {reason}"
        return "which no package provides"


def choose_hint(claims: Iterable[Claim]) -> str:
    """What to do about a virtual name that has no default."""
    providers = sorted({claim.package.name for claim in claims})
    return f"add one of these to the packages of the recipe: {', '.join(providers)}"


def _through(dependency: Dependency, package: Package) -> str:
    return str(dependency) if package.name == dependency.name else f"{dependency} ({package.name})"


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

    def __init__(self, failure: NoSolution, dead_end: DeadEnd, reach: Reach, world: Sequence[Dependency]) -> None:
        self._reach = reach
        self._dead_end = dead_end
        self._chains = Chains(reach, world)
        self.hint: str | None = None
        self.message = self._sentence(failure)

    def _sentence(self, failure: NoSolution) -> str:
        if failure.gave_up:
            return self._gave_up(self._dead_end.name)
        for cause in failure.causes:
            if isinstance(cause.requirement, Unselected):
                return self._virtual(cause.requirement)
        for cause in failure.causes:
            masked = self._masked(cause)
            if masked:
                return masked
        clauses = dict.fromkeys(clause for cause in failure.causes if (clause := self._clause(cause)))
        return "these cannot be had together: " + "; ".join(clauses)

    def _gave_up(self, name: str) -> str:
        """What stopped the pass without a search, which is what apk says too."""
        claims = self._reach.claims(name)
        if claims and not any(claim.auto_selectable for claim in claims):
            return self._undecided(name)
        self.hint = "name the versions or providers that you want in the recipe"
        return f"{self._chains.asker(name)} {name}, and no package that has this name goes with the others"

    def _virtual(self, requirement: Unselected) -> str:
        return self._undecided(requirement.name)

    def _undecided(self, name: str) -> str:
        self.hint = choose_hint(self._reach.claims(name))
        return f"{self._chains.asker(name)} {name}, which no package provides by default"

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
