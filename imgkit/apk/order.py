"""What a set of packages amounts to: whether it is complete, what in it is superfluous, in which order it goes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from imgkit.apk.candidates import Catalog, Claim, claimed, conditions_of, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


@dataclass(frozen=True)
class Reason:
    """Why a package is there. ``package`` is who asked first, None for the world; ``text`` is what it said.

    For a package that came through its install_if, ``text`` is that rule and ``package`` the one that completed it.
    """

    package: Package | None
    text: str
    conditional: bool = False


class Selection:
    """Packages by name with the choices made among them, and the questions about them that the rules of apk answer.

    ``choices`` has the package that is to satisfy dependencies on a name which several packages could.
    """

    def __init__(
        self, catalog: Catalog, packages: Mapping[str, Package], choices: Mapping[str, Package] | None = None
    ) -> None:
        self._catalog = catalog
        self.packages = dict(packages)
        self.choices = dict(choices or {})

    def __contains__(self, package: Package) -> bool:
        return self.packages.get(package.name) is package

    def claims(self, dependency: Dependency) -> list[Claim]:
        """The claims of selected packages that satisfy a dependency (or that a conflict hits)."""
        return [claim for claim in self._catalog.matching(dependency) if claim.package in self]

    def provider(self, dependency: Dependency) -> Package | None:
        """The package that satisfies a dependency: the chosen one, else one of that very name, else the first."""
        packages = [claim.package for claim in self.claims(dependency)]
        chosen = self.choices.get(dependency.name)
        if any(package is chosen for package in packages):
            return chosen
        named = (package for package in packages if package.name == dependency.name)
        return next(named, packages[0] if packages else None)

    def holds(self, dependency: Dependency) -> bool:
        """Whether a condition is met: something satisfies it, or nothing does if it is a conflict."""
        return bool(self.claims(dependency)) != dependency.conflict

    def conditional(self, name: str) -> Sequence[Package]:
        """The packages (of the whole catalog) that have ``name`` among the conditions of their install_if."""
        return self._catalog.conditional.get(name, ())

    def triggered(self) -> Iterator[Package]:
        """Packages that are not selected although the conditions of their install_if hold."""
        seen: set[int] = set()
        for package in list(self.packages.values()):
            for name, _ in claimed(package):
                for other in self.conditional(name):
                    if id(other) not in seen and other.name not in self.packages and self.invited(other):
                        yield other
                    seen.add(id(other))

    def invited(self, package: Package) -> bool:
        """Whether the conditions of the package's install_if hold, one of them by something that is there."""
        conditions = conditions_of(package)
        return any(not one.conflict for one in conditions) and all(self.holds(one) for one in conditions)

    def tolerates(self, package: Package) -> bool:
        """Whether a package could come to these as far as names and its own conflicts go (not theirs with it)."""
        if package in self:
            return True
        for name, version in claimed(package):
            there = [claim for claim in self._catalog.claims(name) if claim.package in self]
            if any(version is not None or claim.version is not None for claim in there):
                return False
        return not any(self.claims(one) for one in dependencies_of(package) if one.conflict)

    def only(self, packages: Mapping[str, Package]) -> Selection:
        """This selection with just these of its packages."""
        return Selection(self._catalog, packages, self.choices)


def needed(selection: Selection, world: Sequence[Dependency]) -> Selection:
    """The selection without what nothing asks for.

    A choice is dropped where a package that is there for another reason satisfies the same dependencies: what was
    chosen early, before that package was known to come, is superfluous then.
    """
    for name, chosen in list(selection.choices.items()):
        others = _reached(selection, world, ignoring=name)
        if chosen not in others:
            demands = [one for one in _demands(others, world) if one.name == name]
            common = [package for package in others.packages.values() if _satisfies_all(others, package, demands)]
            selection.choices[name] = common[0] if common and demands else chosen
    while True:
        reached = _reached(selection, world)
        if len(reached.packages) == len(selection.packages):
            return selection
        selection = reached


def _satisfies_all(selection: Selection, package: Package, demands: Sequence[Dependency]) -> bool:
    return all(any(claim.package is package for claim in selection.claims(demand)) for demand in demands)


def _reached(selection: Selection, world: Sequence[Dependency], ignoring: str | None = None) -> Selection:
    """What the world leads to through dependencies (those on the name ``ignoring`` left aside) and install_if."""
    reached = selection.only({})
    waiting = list(world)
    while True:
        while waiting:
            dependency = waiting.pop()
            package = None if dependency.conflict or dependency.name == ignoring else selection.provider(dependency)
            if package is not None and package not in reached:
                reached.packages[package.name] = package
                waiting += dependencies_of(package)
        invited = [one for one in selection.packages.values() if one not in reached and _comes(one, reached, selection)]
        if not invited:
            return reached
        for package in invited:
            reached.packages[package.name] = package
            waiting += dependencies_of(package)


def _comes(package: Package, reached: Selection, selection: Selection) -> bool:
    return bool(package.install_if) and reached.invited(package) and selection.invited(package)


def _demands(selection: Selection, world: Sequence[Dependency]) -> Iterator[Dependency]:
    yield from (wanted for wanted in world if not wanted.conflict)
    for package in selection.packages.values():
        yield from (dependency for dependency in dependencies_of(package) if not dependency.conflict)


def ordered(selection: Selection, world: Sequence[Dependency]) -> list[tuple[Package, Reason]]:
    """The packages in the order in which apk installs them, each with the reason why it is there.

    Depth first over the sorted world: what a package depends on in the order of its record, then the package, then
    what its arrival brings forward (:meth:`_Walk._forward`). A circle is broken where it closes.
    """
    walk = _Walk(selection, world)
    for wanted in sorted(world, key=world_order):
        walk.follow(wanted, None)
    return walk.done


def world_order(dependency: Dependency) -> tuple[str, str]:
    """Sorts a world as apk does: without regard to case, then by bytes."""
    return (str(dependency).lower(), str(dependency))


class _Walk:
    """The state of one walk. Not recursive: a chain of dependencies may be longer than Python's stack."""

    def __init__(self, selection: Selection, world: Sequence[Dependency]) -> None:
        self._selection = selection
        self._world = world
        self._begun = selection.only({})
        self.done: list[tuple[Package, Reason]] = []

    def follow(self, dependency: Dependency, asker: Package | None) -> None:
        """Install what satisfies ``dependency``, and all that has to come before it and with it."""
        visits = [self._provider(dependency, asker)]
        while visits:
            inner = next(visits[-1], None)
            if inner is None:
                visits.pop()
            else:
                visits.append(inner)

    def _provider(self, dependency: Dependency, asker: Package | None) -> Iterator[_Visit]:
        package = None if dependency.conflict else self._selection.provider(dependency)
        if package is not None:
            yield self._visit(package, Reason(asker, str(dependency)))

    def _visit(self, package: Package, reason: Reason) -> Iterator[_Visit]:
        if package in self._begun:
            return
        self._begun.packages[package.name] = package
        for dependency in dependencies_of(package):
            yield self._provider(dependency, package)
        self.done.append((package, reason))
        for other in self._forward(package):
            reason = Reason(package, " ".join(other.install_if), conditional=True)
            yield self._visit(other, reason if other.install_if else self._reason(other))

    def _forward(self, package: Package) -> Iterator[Package]:
        """What comes right behind ``package``: whatever fills a name of those that have it as an install_if condition.

        That is the conditional package itself as soon as all its conditions are met, but also, with no condition to
        wait for, another package that was chosen for a name which the conditional one provides too.
        """
        for name, _ in claimed(package):
            for conditional in self._selection.conditional(name):
                for other, _ in claimed(conditional):
                    for claim in self._selection.claims(Dependency(other)):
                        if claim.package not in self._begun and self._due(claim.package):
                            yield claim.package

    def _due(self, package: Package) -> bool:
        conditions = conditions_of(package)
        return all(self._selection.holds(one) and (one.conflict or self._begun.holds(one)) for one in conditions)

    def _reason(self, package: Package) -> Reason:
        """The first demand for a package that is not there by a rule of its own."""
        for asker in (None, *self._selection.packages.values()):
            for dependency in self._world if asker is None else dependencies_of(asker):
                if not dependency.conflict and self._selection.provider(dependency) is package:
                    return Reason(asker, str(dependency))
        raise LookupError(f"nothing needs {package}")


_Visit: TypeAlias = "Iterator[_Visit]"
