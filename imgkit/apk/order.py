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

    def owner(self, name: str) -> Package | None:
        """The package that has a name: the chosen one, else one of that very name, else the first."""
        return self.provider(Dependency(name))

    def permits(self, dependency: Dependency, asker: Package | None) -> bool:
        """Whether whoever has the name satisfies a dependency, or is not hit by a conflict (of another package)."""
        owner = self.owner(dependency.name)
        if owner is None or (dependency.conflict and owner is asker):
            return dependency.conflict
        return any(claim.package is owner for claim in self.claims(dependency)) != dependency.conflict

    def holds(self, dependency: Dependency) -> bool:
        """Whether a condition is met: something satisfies it, or nothing does if it is a conflict."""
        return bool(self.claims(dependency)) != dependency.conflict

    def conditional(self, name: str) -> Sequence[Package]:
        """The packages (of the whole catalog) that have ``name`` among the conditions of their install_if."""
        return self._catalog.conditional.get(name, ())

    def completed(self, name: str) -> Sequence[str]:
        """The names of those packages."""
        return self._catalog.completed(name)

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
    """The selection without what nothing asks for: not a dependency, as the choices are, nor an install_if."""
    while True:
        reached = _reached(selection, world)
        if len(reached.packages) == len(selection.packages):
            return selection
        selection = reached


def _reached(selection: Selection, world: Sequence[Dependency]) -> Selection:
    """What the world leads to through dependencies and install_if."""
    reached = selection.only({})
    waiting = list(world)
    while True:
        while waiting:
            dependency = waiting.pop()
            package = None if dependency.conflict else selection.provider(dependency)
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


def ordered(selection: Selection, world: Sequence[Dependency]) -> list[tuple[Package, Reason]]:
    """The packages in the order in which apk installs them, each with the reason why it is there.

    Depth first over the sorted world: what a package depends on in the order of its record, then the package, then
    what its arrival brings forward (:meth:`_Walk._forward`). A circle is broken where it closes.
    """
    walk = _Walk(selection, world)
    for wanted in sorted(world, key=world_order):
        walk.follow(wanted, None)
    return walk.done


def world_order(dependency: Dependency) -> tuple[str, str, str]:
    """Sorts a world as apk does: by name, without regard to case, then by bytes; the version does not matter to apk."""
    return (dependency.name.lower(), dependency.name, str(dependency))


class _Walk:
    """The state of one walk. Not recursive: a chain of dependencies may be longer than Python's stack."""

    def __init__(self, selection: Selection, world: Sequence[Dependency]) -> None:
        self._selection = selection
        self._world = world
        self._seen: set[str] = set()  # names that were looked at, or that a package has which was looked at
        self._begun: dict[str, None] = {}
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
        """Visit what satisfies a dependency, or what has the name in a version that a conflict does not hit."""
        if dependency.name in self._seen:
            return
        self._seen.add(dependency.name)
        if dependency.conflict:
            package = self._selection.owner(dependency.name)
        else:
            package = self._selection.provider(dependency)
        if package is not None and package.name not in self._begun:
            yield self._visit(package, Reason(asker, str(dependency)))

    def _visit(self, package: Package, reason: Reason) -> Iterator[_Visit]:
        self._begun[package.name] = None
        self._seen.update(name for name, _ in claimed(package))
        for dependency in dependencies_of(package):
            yield self._provider(dependency, package)
        self.done.append((package, reason))
        for name, _ in claimed(package):
            for other in self._forward(name):
                text = " ".join(other.install_if)
                invited = Reason(package, text, conditional=True)
                yield self._visit(other, invited if text else self._reason(other, package))

    def _forward(self, name: str) -> Iterator[Package]:
        """What comes right behind a package that has ``name``, which is a condition of others.

        That is the conditional package itself as soon as all its conditions are met, but also, with no condition to
        wait for, another package that was chosen for a name which the conditional one provides too.
        """
        for other in self._selection.completed(name):
            package = None if other in self._seen else self._selection.owner(other)
            if package is not None and package.name not in self._begun and self._due(package):
                yield package

    def _due(self, package: Package) -> bool:
        return all(
            self._selection.permits(one, package) and (one.conflict or one.name in self._seen)
            for one in conditions_of(package)
        )

    def _reason(self, package: Package, completer: Package) -> Reason:
        """The first demand for a package that comes behind ``completer`` without a rule of its own."""
        for asker in (None, *(self._selection.packages[name] for name in self._begun)):
            for dependency in self._world if asker is None else dependencies_of(asker):
                if not dependency.conflict and self._selection.provider(dependency) is package:
                    return Reason(asker, str(dependency))
        return Reason(completer, package.name)


_Visit: TypeAlias = "Iterator[_Visit]"
