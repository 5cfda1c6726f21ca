"""The search for a solution by resolvelib, with the rules of apk expressed in its terms.

resolvelib pins *slots*: names for which one provider is chosen (:meth:`Reach.slot`). A candidate for a slot is a
package that claims the name, or nothing (if only conflicts ask for the slot). A package is installed when the slot of
its own name is pinned to it; choosing it for another slot requires that.

Each installed package adds requirements:

* its dependencies and conflicts, as :class:`Need` and :class:`Ban` on the slots of their names;
* for each slot whose name it claims with a version, an :class:`Only`: no other package may have that name;
* for each slot whose name it claims as a virtual name, a :class:`Present`, which keeps full claims on that name out and
  makes the package the preferred choice for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

from resolvelib import AbstractProvider, BaseReporter, ResolutionImpossible, ResolutionTooDeep
from resolvelib.resolvers import Resolution
from resolvelib.structs import RequirementInformation, State

from imgkit.apk.candidates import Claim, claimed
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.order import Selection
from imgkit.apk.reach import Reach
from imgkit.apk.requirements import Ban, Candidate, Need, Only, Present, Requirement, Unselected
from imgkit.apk.version import Version

MAX_ROUNDS = 3_000  # a few seconds at most; solutions that apk does not find, but this search does, take fewer


Cause: TypeAlias = "RequirementInformation[Requirement, Candidate]"


class NoSolution(Exception):  # noqa: N818 - a result that the solver handles, not an error for users
    """There is no solution, or, with ``gave_up``, none in time. ``causes`` made the last attempt fail."""

    def __init__(self, causes: Sequence[Cause], *, gave_up: bool = False) -> None:
        super().__init__("no solution")
        self.causes = tuple(causes)
        self.gave_up = gave_up


@dataclass(frozen=True)
class Solution:
    """The result of a search. It may still have packages that only revised choices needed.

    Attributes:
        packages: the packages by name.
        choices: by slot the package that was chosen for a name which is not its own.
        tags: by the names of the packages, the repository tags that they may have.
    """

    packages: Mapping[str, Package]
    choices: Mapping[str, Package]
    tags: Mapping[str, frozenset[str]]


def search(reach: Reach, world: Sequence[Dependency]) -> Solution:
    """Find packages that satisfy ``world``, with all that they need.

    Raises:
        NoSolution: there is no solution, or none was found in time.
    """
    return _resolve(rules := Rules(reach, world), rules.world())


def extend(reach: Reach, world: Sequence[Dependency], solution: Solution, packages: Iterable[Package]) -> Solution:
    """Add ``packages`` and all that these need to a solution, whose packages stay as they are.

    Raises:
        NoSolution: they do not fit together.
    """
    rules = Rules(reach, world, Selection(reach.catalog, solution.packages))
    more = _resolve(rules, rules.beside(packages))
    return Solution(
        {**more.packages, **solution.packages}, {**more.choices, **solution.choices}, {**more.tags, **solution.tags}
    )


def _resolve(rules: Rules, requirements: Iterable[Requirement]) -> Solution:
    # Resolver is not used: it looks for a route from each pin to the root afterwards, and never ends if a choice that
    # was revised has left a circle behind. order.needed removes such leftovers.
    reporter: BaseReporter[Requirement, Candidate, str] = BaseReporter()
    reporter.ending_round = rules.ending_round  # type: ignore[method-assign]
    resolution: Resolution[Requirement, Candidate, str] = Resolution(rules, reporter)
    try:
        state = resolution.resolve(list(requirements), max_rounds=MAX_ROUNDS)
    except ResolutionImpossible as cause:
        raise NoSolution(list(cause.causes)) from cause
    except ResolutionTooDeep as cause:
        raise NoSolution((), gave_up=True) from cause
    pins = {slot: pin.package for slot, pin in state.mapping.items() if pin.package is not None}
    packages = {slot: package for slot, package in pins.items() if package.name == slot}
    choices = {slot: package for slot, package in pins.items() if package.name != slot}
    return Solution(packages, choices, {slot: state.mapping[slot].tags for slot in packages})


class _Options(Sequence[Candidate]):
    """Candidates, best first. Those for which ``replaces`` is true come last; it is evaluated at the time of choice.

    It is a sequence because resolvelib copies anything else into a list at once.
    """

    def __init__(self, options: Sequence[Candidate], replaces: Callable[[Candidate], bool]) -> None:
        self._options = options
        self._replaces = replaces

    def __iter__(self) -> Iterator[Candidate]:
        return iter(sorted(self._options, key=self._replaces))

    def __len__(self) -> int:
        return len(self._options)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return list(self)[index]


class Rules(AbstractProvider[Requirement, Candidate, str]):
    """The answers to resolvelib's questions about slots, candidates and requirements, for one world.

    ``settled`` packages are not part of the search any more: dependencies that they satisfy are not requirements, and
    packages that do not fit beside them are not candidates.
    """

    def __init__(self, reach: Reach, world: Sequence[Dependency], settled: Selection | None = None) -> None:
        self._reach = reach
        self._world = world
        self._settled = settled or Selection(reach.catalog, {})
        self._pins: Mapping[str, Candidate] = {}
        self._preferred = {reach.slot(wanted.name): wanted.tag for wanted in world if wanted.tag}
        self._options: dict[str, list[Claim]] = {}
        self._candidates: dict[tuple[str, int, frozenset[str], bool], Candidate] = {}
        self._brings: dict[Candidate, tuple[Requirement, ...]] = {}
        self._matching: dict[Dependency, frozenset[int]] = {}

    def world(self) -> Iterator[Requirement]:
        """Yield the requirements of the world."""
        for wanted in self._world:
            yield self._relation(wanted, None, frozenset([wanted.tag] if wanted.tag else []))

    def beside(self, packages: Iterable[Package]) -> Iterator[Requirement]:
        """Yield the requirements to have ``packages`` too, and the conflicts of the world and the settled packages."""
        for package in packages:
            tags = {package.repository.tag, *package.repository.other_tags}
            yield Only(package.name, package, frozenset(tag for tag in tags if tag is not None))
        for asker in (None, *self._settled.packages.values()):
            for dependency in self._world if asker is None else self._reach.needs(asker):
                if dependency.conflict:
                    yield self._relation(dependency, asker, frozenset())

    def ending_round(self, index: int, state: State[Requirement, Candidate, str]) -> None:  # noqa: ARG002
        """Remember the choices so far. resolvelib's reporter calls this after each round."""
        self._pins = state.mapping

    # ---- called by resolvelib ------------------------------------------------------------------------------------

    def identify(self, requirement_or_candidate: Requirement | Candidate) -> str:
        """Return the slot of a requirement or candidate."""
        return requirement_or_candidate.slot

    def find_matches(
        self,
        identifier: str,
        requirements: Mapping[str, Iterator[Requirement]],
        incompatibilities: Mapping[str, Iterator[Candidate]],
    ) -> Sequence[Candidate]:
        """Return the candidates for a slot that all requirements accept, best first, without those that failed."""
        on_slot = list(requirements[identifier])
        excluded = set(incompatibilities[identifier])
        options = [option for option in self._fitting(identifier, on_slot) if option not in excluded]
        return options if len(options) < 2 else _Options(options, self.replaces)

    def is_satisfied_by(self, requirement: Requirement, candidate: Candidate) -> bool:
        """Return whether a candidate meets a requirement."""
        return requirement.accepts(candidate)

    def get_dependencies(self, candidate: Candidate) -> tuple[Requirement, ...]:
        """Return the requirements that choosing a candidate adds."""
        brings = self._brings.get(candidate)
        if brings is None:
            brings = self._brings[candidate] = tuple(self._brought(candidate))
        return brings

    def narrow_requirement_selection(  # the signature is resolvelib's
        self,
        identifiers: Iterable[str],
        resolutions: Mapping[str, Candidate],  # noqa: ARG002
        candidates: Mapping[str, Iterator[Candidate]],
        information: Mapping[str, Iterator[Cause]],  # noqa: ARG002
        backtrack_causes: Sequence[Cause],  # noqa: ARG002
    ) -> list[str]:
        """Return the next slot to decide: slots without a choice first, then real choices, then what has to wait."""
        best: tuple[int, str] | None = None
        for slot in identifiers:
            urgency = self._urgency(candidates[slot])
            if best is None or urgency < best[0]:
                best = (urgency, slot)
            if urgency == 0:
                break
        return [best[1]] if best else []

    def get_preference(self, *_args: object, **_named: object) -> int:
        """Return 0: :meth:`narrow_requirement_selection` returns one slot at most."""
        return 0

    # ---- the rules -----------------------------------------------------------------------------------------------

    @staticmethod
    def _urgency(candidates: Iterator[Candidate]) -> int:
        options = list(candidates)
        names = {option.package.name for option in options if option.package}
        if len(names) == 1 and options[0].selectable:
            return 0
        if not names:
            return 3
        return 1 if any(option.selectable for option in options) else 2

    def _fitting(self, slot: str, on_slot: Sequence[Requirement]) -> Iterator[Candidate]:
        """Yield the candidates for a slot that all requirements on it accept, best first."""
        bans = [requirement for requirement in on_slot if isinstance(requirement, Ban)]
        present = [requirement.package for requirement in on_slot if isinstance(requirement, Present)]
        if any(ban.hits(package) for ban in bans for package in present):
            return
        if len(bans) == len(on_slot):
            yield self._candidate(slot, None, frozenset(), selectable=True)
            return
        tags = frozenset[str]().union(*(need.tags for need in on_slot if isinstance(need, (Need, Only))))
        for claim in self._ordered(slot, present):
            if not self._allowed(claim.package, tags):
                continue
            selectable = claim.auto_selectable or any(claim.package is package for package in present)
            candidate = self._candidate(slot, claim, tags, selectable=selectable)
            if all(requirement.accepts(candidate) for requirement in on_slot):
                yield candidate

    def replaces(self, option: Candidate) -> bool:
        """Return whether a candidate would replace another version of its package, which was chosen already."""
        pin = self._pins.get(option.package.name) if option.package else None
        return pin is not None and pin.package is not option.package

    def _ordered(self, slot: str, present: Sequence[Package]) -> list[Claim]:
        """Return all claims on a slot: first those of packages that are ``present``, then in apk's order."""
        options = self._options.get(slot)
        if options is None:
            compare = functools.partial(self._compare, self._preferred.get(slot))
            options = self._options[slot] = sorted(
                (claim for claim in self._reach.claims(slot) if self._settled.tolerates(claim.package)),
                key=functools.cmp_to_key(compare),
            )
        if not present:
            return options
        present_ids = {id(package) for package in present}
        return sorted(options, key=lambda claim: id(claim.package) not in present_ids)

    def _compare(self, preferred_tag: str | None, claim: Claim, other: Claim) -> int:
        """Compare two claims in apk's order of providers. Returns a negative number if the first is preferred.

        The criteria: repository tag as asked for, installed, version of the name in question, version of the package
        (for two versions of one package), provider priority, repository, place in the index.
        """
        same = claim.package.name == other.package.name
        first, second = (self._merits(preferred_tag, one, same=same) for one in (claim, other))
        return (first < second) - (first > second)

    def _merits(self, preferred_tag: str | None, claim: Claim, *, same: bool) -> tuple[object, ...]:
        """Return the criteria of :meth:`_compare`; ``same`` says that both packages have the same name."""
        catalog, package = self._reach.catalog, claim.package
        return (
            package.repository.has_tag({preferred_tag}),
            catalog.is_installed(package),
            claim.rank,
            Version.lenient(package.version if same else None),
            package.provider_priority,
            -catalog.position(package),
        )

    def _allowed(self, package: Package, tags: frozenset[str]) -> bool:
        return package.repository.has_tag({None, *tags}) or self._reach.catalog.is_installed(package)

    def _candidate(self, slot: str, claim: Claim | None, tags: frozenset[str], *, selectable: bool) -> Candidate:
        """Return the one object for a candidate: resolvelib remembers by identity which candidates failed."""
        key = (slot, id(claim), tags, selectable)
        candidate = self._candidates.get(key)
        if candidate is None:
            candidate = self._candidates[key] = Candidate(slot, claim, tags, selectable)
        return candidate

    def _brought(self, candidate: Candidate) -> Iterator[Requirement]:
        package = candidate.package
        if package is None:
            return
        if not candidate.selectable:
            yield Unselected(f"choice of {candidate.slot}", candidate.slot)
        elif package.name != candidate.slot:
            yield Only(package.name, package, candidate.tags)
        else:
            yield from self._needs(package, candidate.tags)
            yield from self._claims(package)

    def _needs(self, package: Package, tags: frozenset[str]) -> Iterator[Requirement]:
        for dependency in self._reach.needs(package):
            if dependency.conflict or not self._settled.claims(dependency):
                yield self._relation(dependency, package, tags)

    def _relation(self, dependency: Dependency, package: Package | None, tags: frozenset[str]) -> Requirement:
        matching = self._matching.get(dependency)
        if matching is None:
            matching = frozenset(id(claim.package) for claim in self._reach.catalog.matching(dependency))
            self._matching[dependency] = matching
        slot = self._reach.slot(dependency.name)
        if dependency.conflict:
            return Ban(slot, dependency, matching, package)
        return Need(slot, dependency, matching, tags)

    def _claims(self, package: Package) -> Iterator[Requirement]:
        for name, version in claimed(package):
            slot = self._reach.slot(name)
            if slot != package.name:
                yield Present(slot, package) if version is None else Only(slot, package)
