"""Sets of packages: check whether one is complete, drop packages that nothing asks for, and order the installation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from imgkit.apk.candidates import Catalog, Claim, claimed, conditions_of, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


class Selection:
    """A set of packages, and apk's answers to questions about it.

    Attributes:
        packages: the packages by name.
        choices: by name the package that satisfies dependencies on a name which several packages have.
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
        """Return the claims of selected packages that satisfy a dependency, or violate a conflict."""
        return [claim for claim in self._catalog.matching(dependency) if claim.package in self]

    def provider(self, dependency: Dependency) -> Package | None:
        """Return the package that satisfies a dependency: the chosen one, else the first."""
        packages = [claim.package for claim in self.claims(dependency)]
        chosen = self.choices.get(dependency.name)
        if any(package is chosen for package in packages):
            return chosen
        return packages[0] if packages else None

    def owner(self, name: str) -> Package | None:
        """Return the package that has a name: the chosen one, else the first."""
        return self.provider(Dependency(name))

    def permits(self, dependency: Dependency, asker: Package | None) -> bool:
        """Return whether the owner of the name satisfies a dependency, or another package's conflict permits it."""
        owner = self.owner(dependency.name)
        if owner is None or (dependency.conflict and owner is asker):
            return dependency.conflict
        return any(claim.package is owner for claim in self.claims(dependency)) != dependency.conflict

    def holds(self, dependency: Dependency) -> bool:
        """Return whether a condition is met: a package satisfies it, or, for a conflict, none violates it."""
        return bool(self.claims(dependency)) != dependency.conflict

    def completed(self, name: str) -> Sequence[str]:
        """Return the names of all packages that have ``name`` among their conditions, as :meth:`Catalog.completed`."""
        return self._catalog.completed(name)

    def triggered(self) -> Iterator[Package]:
        """Yield packages that are not selected, in any version, although the conditions of their install_if hold."""
        names = [name for package in self.packages.values() for name, _ in claimed(package)]
        conditional = {id(package): package for name in names for package in self._catalog.conditional.get(name, ())}
        for package in conditional.values():
            if package.name not in self.packages and self.invited(package):
                yield package

    def invited(self, package: Package) -> bool:
        """Return whether the conditions of the package's install_if hold, and not all of them are conflicts."""
        conditions = conditions_of(package)
        return any(not condition.conflict for condition in conditions) and all(map(self.holds, conditions))

    def tolerates(self, package: Package) -> bool:
        """Return whether a package's names and conflicts allow it beside the selected packages.

        The conflicts of the selected packages are not considered.
        """
        virtual = all(
            version is None and claim.version is None
            for name, version in claimed(package)
            for claim in self._catalog.claims(name)
            if claim.package in self
        )
        conflicts = (dependency for dependency in dependencies_of(package) if dependency.conflict)
        return virtual and not any(map(self.claims, conflicts))

    def only(self, packages: Mapping[str, Package]) -> Selection:
        """Return this selection reduced to some of its packages."""
        return Selection(self._catalog, packages, self.choices)


def needed(selection: Selection, world: Sequence[Dependency]) -> Selection:
    """Remove the packages that neither a dependency (with these choices) nor an install_if asks for."""
    while True:
        reached = _reached(selection, world)
        if len(reached.packages) == len(selection.packages):
            return selection
        selection = reached


def _reached(selection: Selection, world: Sequence[Dependency]) -> Selection:
    """Return what the world leads to through dependencies and install_if."""
    reached = selection.only({})
    waiting = list(world)
    while True:
        while waiting:
            dependency = waiting.pop()
            package = None if dependency.conflict else selection.provider(dependency)
            if package is not None and package not in reached:
                reached.packages[package.name] = package
                waiting += dependencies_of(package)
        invited = [
            package
            for package in selection.packages.values()
            if package not in reached and reached.invited(package) and selection.invited(package)
        ]
        if not invited:
            return reached
        for package in invited:
            reached.packages[package.name] = package
            waiting += dependencies_of(package)


def ordered(selection: Selection, world: Sequence[Dependency]) -> tuple[Package, ...]:
    """Put the packages of a selection into the order in which apk installs them.

    The order is depth first over the sorted world: the dependencies of a package in the order of its record, then the
    package, then what its arrival brings forward (:meth:`_Walk._brought_forward`). A circle is broken where it closes.
    """
    walk = _Walk(selection)
    for wanted in sorted(world, key=world_order):
        walk.follow(wanted)
    return tuple(walk.installed)


def world_order(dependency: Dependency) -> tuple[str, str, str]:
    """Return the key by which apk sorts a world: by name without regard to case, then by bytes.

    apk ignores the rest of an entry; here it makes the order of several entries for one name unambiguous.
    """
    return (dependency.name.lower(), dependency.name, str(dependency))


class _Walk:
    """The state of one walk. It does not recurse: a chain of dependencies may be longer than Python's stack."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._seen: set[str] = set()  # all names of the packages that were visited
        self.installed: list[Package] = []

    def follow(self, dependency: Dependency) -> None:
        """Install what satisfies ``dependency``, and all that has to come before it and with it."""
        visits = [self._provider(dependency)]
        while visits:
            inner = next(visits[-1], None)
            if inner is None:
                visits.pop()
            else:
                visits.append(inner)

    def _provider(self, dependency: Dependency) -> Iterator[_Visit]:
        """Visit what satisfies a dependency, or what has the name in a version that a conflict does not hit."""
        if dependency.name in self._seen:
            return
        if dependency.conflict:
            package = self._selection.owner(dependency.name)
        else:
            package = self._selection.provider(dependency)
        if package is not None:
            yield self._visit(package)

    def _visit(self, package: Package) -> Iterator[_Visit]:
        """Install a package that was not visited yet: its dependencies, itself, then what it brings forward."""
        self._seen.update(name for name, _ in claimed(package))
        for dependency in dependencies_of(package):
            yield self._provider(dependency)
        self.installed.append(package)
        for name, _ in claimed(package):
            for following in self._brought_forward(name):
                yield self._visit(following)

    def _brought_forward(self, name: str) -> Iterator[Package]:
        """Find what comes right behind a package that has ``name``, which is a condition of others.

        That is the conditional package itself as soon as all its conditions are met. It is also, with no condition to
        wait for, another package that was chosen for a name which the conditional one provides too.
        """
        for conditional in self._selection.completed(name):
            package = None if conditional in self._seen else self._selection.owner(conditional)
            if package is not None and self._conditions_met(package):
                yield package

    def _conditions_met(self, package: Package) -> bool:
        """Return whether everything is installed by now that the package's install_if asks for."""
        return all(
            self._selection.permits(condition, package) and (condition.conflict or condition.name in self._seen)
            for condition in conditions_of(package)
        )


_Visit: TypeAlias = "Iterator[_Visit]"
