"""What a set of packages amounts to: whether it is complete, what in it is superfluous, in which order it goes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """Packages by name, and the questions about them that the rules of apk answer."""

    def __init__(self, catalog: Catalog, packages: Mapping[str, Package]) -> None:
        self._catalog = catalog
        self.packages = dict(packages)

    def __contains__(self, package: Package) -> bool:
        return self.packages.get(package.name) is package

    def claims(self, dependency: Dependency) -> list[Claim]:
        """The claims of selected packages that satisfy a dependency (or that a conflict hits)."""
        return [claim for claim in self._catalog.matching(dependency) if claim.package in self]

    def holds(self, dependency: Dependency) -> bool:
        """Whether a condition is met: something satisfies it, or nothing does if it is a conflict."""
        return bool(self.claims(dependency)) != dependency.conflict

    def triggered(self) -> Iterator[Package]:
        """Packages that are not selected although the conditions of their install_if hold."""
        seen: set[int] = set()
        for package in list(self.packages.values()):
            for name, _ in claimed(package):
                for other in self.conditional(name):
                    if id(other) not in seen and other.name not in self.packages and self.invited(other):
                        yield other
                    seen.add(id(other))

    def conditional(self, name: str) -> Sequence[Package]:
        """The packages (of the whole catalog) that have ``name`` among the conditions of their install_if."""
        return self._catalog.conditional.get(name, ())

    def invited(self, package: Package) -> bool:
        """Whether the conditions of the package's install_if hold, one of them by something that is there."""
        conditions = conditions_of(package)
        return any(not one.conflict for one in conditions) and all(self.holds(one) for one in conditions)

    def without(self, names: Iterable[str]) -> Selection:
        """This selection without some of its packages."""
        gone = set(names)
        return Selection(self._catalog, {name: one for name, one in self.packages.items() if name not in gone})


def needed(catalog: Catalog, world: Sequence[Dependency], packages: Mapping[str, Package]) -> Selection:
    """``packages`` without those that nothing asks for.

    What stays is reached from the world through dependencies and install_if, and each is the only provider of
    something, or there by its own install_if.
    """
    selection = Selection(catalog, packages)
    while True:
        reached = {package.name for package, _ in ordered(selection, world)}
        kept = selection.without(selection.packages.keys() - reached)
        spare = _superfluous(kept, world)
        selection = kept if spare is None else kept.without([spare])
        if spare is None and len(kept.packages) == len(packages):
            return selection
        packages = selection.packages


def _superfluous(selection: Selection, world: Sequence[Dependency]) -> str | None:
    """The last package without which everything else would still be satisfied."""
    essential = set()
    for asker, dependency in _demands(selection, world):
        providers = {claim.package.name for claim in selection.claims(dependency)}
        if len(providers) == 1 and asker not in providers:
            essential |= providers
    for name in reversed(list(selection.packages)):
        if name not in essential and not selection.invited(selection.packages[name]):
            return name
    return None


def _demands(selection: Selection, world: Sequence[Dependency]) -> Iterator[tuple[str | None, Dependency]]:
    for wanted in world:
        if not wanted.conflict:
            yield None, wanted
    for name, package in selection.packages.items():
        for dependency in dependencies_of(package):
            if not dependency.conflict:
                yield name, dependency


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
        self._begun = selection.without(selection.packages)
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
        claims = [] if dependency.conflict else self._selection.claims(dependency)
        if claims:
            best = next((claim for claim in claims if claim.package.name == dependency.name), claims[0])
            yield self._visit(best.package, Reason(asker, str(dependency)))

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
        for asker, dependency in _demands(self._selection, self._world):
            if any(claim.package is package for claim in self._selection.claims(dependency)):
                return Reason(self._selection.packages[asker] if asker else None, str(dependency))
        raise LookupError(f"nothing needs {package}")


_Visit: TypeAlias = "Iterator[_Visit]"
