"""Choose packages as apk does: in one pass over the names, without ever going back.

Rules (apk-tools 3, compared with its answers to more than ten thousand worlds):

* Every conclusion is drawn at once. A package is not usable any more when one of its dependencies cannot be met, when a
  constraint excludes it, or when a name that it claims went to another package. What all candidates for a name depend
  on is wanted even before the choice between them, and a package that claims a name which all of them claim has to be
  one of them.
* Names without a choice are decided first, then names that have a selectable candidate, last the others; within these
  groups :attr:`imgkit.apk.network.Name.rank` decides. A package that is chosen gets all names that it claims.
* :meth:`_Deduction._better` says which candidate is the best.
* An install_if is evaluated when one of the names in it is decided.

The pass fails when a wanted name has no usable candidate. Another order of choices might have led to a solution, which
:mod:`imgkit.apk.search` then looks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence

from imgkit.apk.agenda import Agenda
from imgkit.apk.candidates import Catalog, Claim
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.network import Name, Network, Option
from imgkit.apk.version import Version


class DeadEnd(Exception):  # noqa: N818 - a result that the solver handles, not an error for users
    """The pass cannot go on: no usable package has ``name``. ``package`` is the best unusable one, if there is one."""

    def __init__(self, name: str, package: Package | None) -> None:
        super().__init__(name)
        self.name = name
        self.package = package


def deduce(catalog: Catalog, world: Sequence[Dependency], first: Container[str]) -> Mapping[str, Package]:
    """Choose a package for each name, as apk chooses for a sorted world.

    Args:
        catalog: all packages.
        world: the sorted world.
        first: the names that are decided before all others: those that ``apk add`` is called with, in a larger world.

    Returns:
        Name → package; names for which no package was chosen are left out. Packages that nothing depends on may be
        among them: choices that turned out not to be needed.

    Raises:
        DeadEnd: apk would refuse this world.
    """
    network = Network(catalog, world, first)
    _Deduction(catalog, network).run(world)
    return {name.name: name.chosen.package for name in network.names() if name.chosen is not None}


class _Deduction:
    """The state of one pass."""

    def __init__(self, catalog: Catalog, network: Network) -> None:
        self._catalog = catalog
        self._network = network
        self._agenda = Agenda()
        self._changed: deque[Name] = deque()

    def run(self, world: Sequence[Dependency]) -> None:
        """Decide everything that ``world`` asks for. The network holds the result."""
        for wanted in world:
            self._constrain(self._network.name(wanted.name), wanted, None, {wanted.tag})
        while True:
            while self._changed:
                name = self._changed.popleft()
                name.waiting = False
                if not name.decided:
                    self._reconsider(name)
            following = self._agenda.take()
            if following is None:
                return
            self._decide(following)

    # ---- conclusions spread ----------------------------------------------------------------------------------------

    def _constrain(self, name: Name, dependency: Dependency, asker: Option | None, tags: set[str | None]) -> None:
        """Apply a dependency or conflict that has to hold. ``tags`` are those of the repositories that it allows."""
        if not dependency.conflict:
            name.demands += 1
            if name.demands == 1:
                self._demanded(name)
        for option, claim in name.options:
            if not _provided(dependency, claim, asker):
                self._disqualify(option)
                continue
            option.tags |= tags
            if asker is None:
                option.favoured = option.package.repository.has_tag({dependency.tag})

    def _demanded(self, name: Name) -> None:
        self._agenda.put(name)
        self._recheck_rules(name)
        self._queue(name)

    def _disqualify(self, option: Option) -> None:
        if option.usable:
            option.usable = False
            for name, _ in option.names:
                self._recheck_needs(name)
                self._recheck_rules(name)

    def _recheck_needs(self, name: Name) -> None:
        for dependent in name.dependents:
            if not dependent.decided:
                dependent.recheck_needs = True
                self._queue(dependent)

    def _recheck_rules(self, name: Name) -> None:
        for conditional in name.completes or ():
            if not conditional.uninvited and not conditional.decided:
                conditional.recheck_rules = True
                self._queue(conditional)

    def _queue(self, name: Name) -> None:
        if not name.waiting and not name.decided and (name.demands or name.recheck_rules):
            name.waiting = True
            self._changed.append(name)

    # ---- one name --------------------------------------------------------------------------------------------------

    def _reconsider(self, name: Name) -> None:
        """Draw conclusions after something near a name has changed."""
        candidates = self._candidates(name)
        name.selectable = any(
            option.invited or (name.demands > 0 and self._selectable(claim)) for option, claim in candidates
        )
        name.invited = any(option.invited for option, _ in candidates)
        name.uninvited = all(option.uninvited for option, _ in candidates)
        name.several = False
        if candidates and name.demands:
            name.several = len(candidates) > 1 or not candidates[0][0].allowed
            for option, _ in name.options:
                option.grouped = option.usable
            self._conclude(name, candidates)
        name.last_user = all(dependent.decided for dependent in name.dependents)
        self._agenda.put(name)

    def _candidates(self, name: Name) -> list[tuple[Option, Claim]]:
        """Return the options of a name that are still usable, after checking their needs and rules if that is due."""
        recheck_needs, name.recheck_needs = name.recheck_needs, False
        recheck_rules, name.recheck_rules = name.recheck_rules, False
        candidates = []
        for option, claim in name.options:
            if recheck_needs and option.usable and not all(self._satisfiable(option, *need) for need in option.needs):
                self._disqualify(option)
            if option.usable:
                if recheck_rules:
                    self._weigh(option)
                candidates.append((option, claim))
        return candidates

    @staticmethod
    def _satisfiable(asker: Option, name: Name, dependency: Dependency) -> bool:
        """Return whether a dependency can still be met, or a conflict avoided."""
        if name.decided:
            return _provided(dependency, name.chosen, asker)
        if dependency.conflict and not name.demands:
            return True
        return any(option.usable and _provided(dependency, claim, asker) for option, claim in name.options)

    def _weigh(self, option: Option) -> None:
        """Evaluate the install_if of a package."""
        if not option.invited and not option.uninvited:
            option.invited = True
            for name, condition in option.conditions:
                if name.decided and _provided(condition, name.chosen, option):
                    continue
                option.invited = False
                option.uninvited = name.decided
                if condition.conflict and not name.decided:
                    name.open_rule = True
                    self._agenda.put(name)
                break
        if option.invited:
            for name, _ in option.conditions:
                if name.chosen is not None:
                    option.tags |= self._network.option(name.chosen.package).tags

    def _selectable(self, claim: Claim) -> bool:
        """Return whether a claim may be chosen. A virtual one needs a priority, or a package that is itself wanted."""
        return claim.auto_selectable or self._network.name(claim.package.name).demands > 0

    def _conclude(self, name: Name, candidates: Sequence[tuple[Option, Claim]]) -> None:
        """Apply what all candidates of a name have in common: what they depend on, and what they claim."""
        first = candidates[0][0]
        common = _common(
            {needed for needed, dependency in option.needs if not dependency.conflict} for option, _ in candidates
        )
        for needed, dependency in first.needs:
            if needed not in common:
                continue
            common.discard(needed)
            if len(candidates) == 1:
                self._constrain(needed, dependency, first, first.tags)
            elif not needed.demands:
                needed.demands = 1
                self._demanded(needed)
                for option, _ in needed.options:
                    option.tags |= first.tags
        claims = _common({claimed for claimed, _ in option.names} for option, _ in candidates)
        for claimed, _ in first.names:
            if claimed in claims and claimed is not name:
                self._exclude(claimed, name, virtual=_claimed_virtually(claimed, candidates))

    def _exclude(self, claimed: Name, owner: Name, *, virtual: bool) -> None:
        """Rule out packages that claim a name but not ``owner``: the package that gets the name will have both."""
        for option, _ in claimed.options:
            if not any(name is owner or (virtual and version is None) for name, version in option.names):
                self._disqualify(option)

    # ---- choices ---------------------------------------------------------------------------------------------------

    def _decide(self, name: Name) -> None:
        """Choose a package for a name, or none if only a conflict or a rule asks for the name.

        Raises:
            DeadEnd: nothing usable has the name, or the chosen package claims a name that is taken.
        """
        best = self._best(name)
        if best is None:
            if name.demands:
                raise DeadEnd(name.name, None)
            self._assign(name, None)
            return
        option = self._network.option(best.package)
        if not option.usable or not option.allowed:
            raise DeadEnd(name.name, option.package)
        for claimed, version in option.names:
            if not claimed.decided:
                self._assign(claimed, Claim(option.package, version))
            elif version is not None or claimed.chosen is None or claimed.chosen.version is not None:
                raise DeadEnd(claimed.name, option.package)
        for needed, dependency in option.needs:
            self._constrain(needed, dependency, option, option.tags)

    def _best(self, name: Name) -> Claim | None:
        best: tuple[Option, Claim] | None = None
        for option, claim in name.options:
            if not name.demands and not (option.invited and option.allowed and option.usable):
                continue
            if self._selectable(claim) and (best is None or self._better(option, claim, *best)):
                best = option, claim
        return best[1] if best else None

    def _better(self, option: Option, claim: Claim, other: Option, other_claim: Claim) -> bool:
        """Return whether a claim is preferred to another one on the same name. The first difference decides.

        The criteria: usable; among the last candidates that were compared; repository tag allowed; preferred;
        installed (not between virtual claims of two packages); version of the name in question; version of the package
        (for two versions of one package); provider priority; installed; repository; place in the index.
        """
        package, rival = option.package, other.package
        same = package.name == rival.name
        real = same or claim.version is not None or other_claim.version is not None
        standing, other_standing = _standing(option, real=real), _standing(other, real=real)
        if standing != other_standing:
            return standing > other_standing
        return _merits(option, claim, same=same) > _merits(other, other_claim, same=same)

    def _assign(self, name: Name, claim: Claim | None) -> None:
        """Decide a name for a claim, or for nothing. The decision is final."""
        name.decided = True
        name.chosen = claim
        chosen = self._network.option(claim.package) if claim else None
        virtual = claim is None or claim.version is None
        for option, other in name.options:
            if option is not chosen and not (virtual and other.version is None):
                self._disqualify(option)
        self._recheck_needs(name)
        for completed, _ in chosen.names if chosen else [(name, None)]:
            self._recheck_rules(completed)


def _standing(option: Option, *, real: bool) -> tuple[bool, ...]:
    """Return the first criteria of :meth:`_Deduction._better`, which mostly decide.

    ``real`` says that both packages have the same name, or that one of the two claims has a version.
    """
    return option.usable, option.grouped, option.allowed, option.favoured, real and option.installed


def _merits(option: Option, claim: Claim, *, same: bool) -> tuple[object, ...]:
    """Return the other criteria of :meth:`_Deduction._better`; ``same`` says that both packages have the same name."""
    package = option.package
    version = Version.lenient(package.version if same else None)
    return claim.rank, version, package.provider_priority, option.installed, -package.repository.position


def _provided(dependency: Dependency, claim: Claim | None, asker: Option | None) -> bool:
    """Return whether a dependency or conflict holds if ``claim`` gets its name.

    A package never conflicts with itself.
    """
    if claim is None:
        return dependency.conflict
    if dependency.conflict and asker is not None and claim.package is asker.package:
        return True
    return claim.satisfies(dependency) != dependency.conflict


def _common(sets: Iterable[set[Name]]) -> set[Name]:
    """Return what all sets have in common; there has to be at least one."""
    first, *others = sets
    return first.intersection(*others)


def _claimed_virtually(name: Name, candidates: Sequence[tuple[Option, Claim]]) -> bool:
    return any(claimed is name and version is None for option, _ in candidates for claimed, version in option.names)
