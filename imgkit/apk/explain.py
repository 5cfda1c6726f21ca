"""Write the sentences that say why a world cannot be installed. Nothing is decided here."""

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
    """Return up to three names in the catalog that look like ``name``, the most similar one first."""
    candidates = [candidate for candidate in catalog.names() if ":" not in candidate]
    return difflib.get_close_matches(name, candidates, n=3, cutoff=0.75)


class Lack:
    """Why no usable package satisfies an entry of the world.

    Attributes:
        message: one line, with the chain of packages down to what is missing.
        hint: what to do about it, if that is known.
    """

    def __init__(self, wanted: Dependency, reach: Reach) -> None:
        self._catalog = reach.catalog
        self.hint: str | None = None
        clauses: list[str] = []
        dependency = wanted
        while claims := reach.serving(dependency):
            package = claims[0].package
            clauses.append(_through(dependency, package))
            dependency = reach.lacking[id(package)]
        missing = f"{dependency}, {self._why_missing(dependency)}"
        if not clauses:
            self.message = f"the recipe wants {missing}"
        else:
            clauses[0] += f" ({_WANTED}) needs " + ", which needs ".join([*clauses[1:], missing])
            self.message = clauses[0]

    def _why_missing(self, dependency: Dependency) -> str:
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
    """Return the hint for a virtual name that has no default provider."""
    providers = sorted({claim.package.name for claim in claims})
    return f"add one of these to the packages of the recipe: {', '.join(providers)}"


def _through(dependency: Dependency, package: Package) -> str:
    return str(dependency) if package.name == dependency.name else f"{dependency} ({package.name})"


class Chains:
    """Which packages need a package, along the shortest way from the world through everything that could be chosen."""

    def __init__(self, reach: Reach, world: Sequence[Dependency]) -> None:
        self._package_askers: dict[int, Package | None] = {}
        self._name_askers: dict[str, Package | None] = {}
        waiting: deque[tuple[Package | None, Dependency]] = deque((None, wanted) for wanted in world)
        while waiting:
            asker, dependency = waiting.popleft()
            self._name_askers.setdefault(dependency.name, asker)
            for claim in () if dependency.conflict else reach.catalog.matching(dependency):
                if id(claim.package) in self._package_askers:
                    continue
                self._package_askers[id(claim.package)] = asker
                waiting.extend((claim.package, needed) for needed in reach.needs(claim.package))

    def asker(self, name: str) -> str:
        """Return the first package that asks for a name, and a verb: ``git (wanted by the recipe) needs``."""
        package = self._name_askers.get(name)
        return "the recipe wants" if package is None else f"{self.describe(package)} needs"

    def describe(self, package: Package) -> str:
        """Return a package with its chain in brackets: ``c (needed by b, needed by a, wanted by the recipe)``."""
        words = []
        asker: Package | None = package
        while asker is not None:
            asker = self._package_askers[id(asker)]
            words.append(f"needed by {asker.name}" if asker else _WANTED)
        return f"{package.name} ({', '.join(words)})"


class Conflict:
    """The reason why a search failed.

    Attributes:
        message: one line.
        hint: what to do about it, if that is known.
    """

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
                return self._undecided(cause.requirement.name)
        for cause in failure.causes:
            masked = self._masked(cause)
            if masked:
                return masked
        clauses = dict.fromkeys(clause for cause in failure.causes if (clause := self._clause(cause)))
        return "these cannot be installed together: " + "; ".join(clauses)

    def _gave_up(self, name: str) -> str:
        """Describe where the pass without a search ended, which is what apk reports too."""
        claims = self._reach.claims(name)
        if claims and not any(claim.auto_selectable for claim in claims):
            return self._undecided(name)
        self.hint = "name the versions or providers that you want in the recipe"
        return f"{self._chains.asker(name)} {name}, and no package of this name fits with the others"

    def _undecided(self, name: str) -> str:
        self.hint = choose_hint(self._reach.claims(name))
        return f"{self._chains.asker(name)} {name}, which no package provides by default"

    def _masked(self, cause: Cause) -> str | None:
        """Return the sentence for a dependency that only a repository with a tag could satisfy, None for others."""
        need = cause.requirement
        if not isinstance(need, Need):
            return None
        repositories = [claim.package.repository for claim in self._reach.catalog.matching(need.dependency)]
        tags = {tag for repository in repositories for tag in (repository.tag, *repository.other_tags)}
        if not tags or None in tags or tags & need.tags:
            return None
        names = ", ".join(sorted(f"@{tag}" for tag in tags))
        self.hint = f"write {need.dependency.name}{names.partition(',')[0]} in the recipe to allow it"
        return f"{self._clause(cause)}, which only the repository tagged {names} has"

    def _clause(self, cause: Cause) -> str:
        requirement, parent = cause.requirement, cause.parent
        asker = self._chains.describe(parent.package) if parent and parent.package else "the recipe"
        if isinstance(requirement, Need):
            return f"{asker} {'needs' if parent else 'wants'} {requirement.dependency}"
        if isinstance(requirement, Ban):
            return f"{asker} {'conflicts with' if parent else 'excludes'} {str(requirement.dependency)[1:]}"
        if isinstance(requirement, (Only, Present)) and parent and parent.slot == requirement.package.name:
            return f"{asker} provides {requirement.slot}"
        return f"{parent.slot} must come from {asker}" if parent else ""
