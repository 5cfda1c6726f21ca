"""The names and packages that a world can lead to, as a network of dependencies.

This module holds the network and the state of its parts; :mod:`imgkit.apk.deduction` makes the decisions.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from imgkit.apk.candidates import Catalog, Claim, conditions_of, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


class Name:
    """A name, and the conclusions about it so far.

    Attributes:
        options: the packages that claim it with their claims, in the order of the repositories.
        dependents: names of packages that have it among their dependencies.
        completes: names of packages that have it among the conditions of their install_if.
        rank: names of greater rank are decided sooner. Names that ``apk add`` is called with come first, names of
            packages before purely virtual ones, and names that were discovered late before those discovered early.
        demands: how many dependencies on it have to be met, as far as is known.
        chosen: the claim that got the name.
        decided: whether ``chosen``, which may be None, is final.
        queue: the queue of the agenda in which the name waits, if it does.
        waiting: whether the name is among those that have to be reconsidered.
        open_rule: whether an install_if waits for the decision that no package gets this name.
        invited: whether an install_if that holds asks for one of its packages.
        uninvited: whether no install_if can ask for one of its packages any more.
        several: whether there is a choice between packages.
        selectable: whether at least one package may be chosen for it.
        last_user: whether all names that depend on it are decided.
        recheck_needs: whether dependencies of its packages have to be looked at again.
        recheck_rules: whether the install_if of its packages have to be looked at again.
    """

    __slots__ = (
        "chosen", "completes", "decided", "demands", "dependents", "invited", "last_user", "name", "open_rule",
        "options", "queue", "rank", "recheck_needs", "recheck_rules", "selectable", "several", "uninvited", "waiting",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: list[tuple[Option, Claim]] = []
        self.dependents: dict[Name, None] = {}
        self.completes: list[Name] | None = None
        self.chosen: Claim | None = None
        self.queue: object = None
        self.rank = self.demands = 0
        self.decided = self.open_rule = self.invited = self.several = self.selectable = self.last_user = False
        self.recheck_needs = self.recheck_rules = self.waiting = False
        self.uninvited = True


@dataclass(slots=True, eq=False)
class Option:
    """A package that may be chosen.

    Attributes:
        installed: whether the system has it.
        favoured: whether it comes from the repository that is preferred for it.
        names: the names that it claims with their versions, its own name first.
        needs: its dependencies and conflicts with their names.
        conditions: those of its install_if with their names.
        usable: whether it does not contradict any decision or constraint so far.
        tags: the repository tags that its package may have.
        invited: whether all conditions of its install_if hold.
        uninvited: whether they can no longer hold.
        grouped: whether it was among the last candidates whose common dependencies were determined.
        around: iterates over the names that it leads to besides its dependencies; each is taken once.
    """

    package: Package
    installed: bool
    favoured: bool
    names: list[tuple[Name, str | None]] = field(default_factory=list)
    needs: list[tuple[Name, Dependency]] = field(default_factory=list)
    conditions: list[tuple[Name, Dependency]] = field(default_factory=list)
    tags: set[str | None] = field(default_factory=lambda: {None})
    usable: bool = True
    invited: bool = False
    uninvited: bool = False
    grouped: bool = False
    around: Iterator[Name] = field(default_factory=lambda: iter(()))

    @property
    def allowed(self) -> bool:
        """Whether the tag of its repository is allowed."""
        return self.installed or self.package.repository.has_tag(self.tags)


class Network:
    """The names that a world leads to through dependencies, conflicts, provides and install_if, in both directions.

    Names in ``first`` are decided before all others.
    """

    def __init__(self, catalog: Catalog, world: Iterable[Dependency], first: Container[str]) -> None:
        self._catalog = catalog
        self._names: dict[str, Name] = {}
        self._options: dict[int, Option] = {}
        self._entered: dict[Name, None] = {}
        self._first = first
        self._ranked = 0
        for wanted in world:
            if (name := self.name(wanted.name)) not in self._entered:
                self._discover(name)

    def name(self, text: str) -> Name:
        """Return the node of a name, a new one if there is none yet."""
        name = self._names.get(text)
        if name is None:
            name = self._names[text] = Name(text)
        return name

    def option(self, package: Package) -> Option:
        """Return the node of a package that was discovered."""
        return self._options[id(package)]

    def names(self) -> Iterable[Name]:
        """Return all names that were discovered."""
        return self._entered

    def _discover(self, name: Name) -> None:
        """Add a name and everything it leads to, without recursion: a chain may be longer than Python's stack."""
        entered = self._entered
        visits = [self._visit(name)]
        while visits:
            for inner in visits[-1]:
                if inner not in entered:
                    visits.append(self._visit(inner))
                    break
            else:
                visits.pop()

    def _visit(self, name: Name) -> Iterator[Name]:
        """Yield the names next to this one, in the order in which they have to be added."""
        self._entered[name] = None
        for claim in self._catalog.claims(name.name):
            option = self._options.get(id(claim.package))
            if option is None:
                option = self._enter(claim.package)
                yield from [needed for needed, _ in option.needs]
            name.options.append((option, claim))
        yield from self._completed(name)
        for option, _ in name.options:
            yield from option.around
        self._rank(name)
        for option, _ in name.options:
            if option.conditions:
                yield from [condition for condition, _ in option.conditions]

    def _enter(self, package: Package) -> Option:
        option = Option(package, self._catalog.is_installed(package), package.repository.has_tag({None}))
        self._options[id(package)] = option
        option.names = [(self.name(text), version) for text, version in self._catalog.claimed(package)]
        option.needs = [(self.name(dependency.name), dependency) for dependency in dependencies_of(package)]
        if package.install_if:
            option.conditions = [(self.name(condition.name), condition) for condition in conditions_of(package)]
        option.uninvited = not option.conditions
        option.around = self._around(option)
        names = [claimed for claimed, _ in option.names]
        for needed, _ in option.needs:
            needed.dependents.update(dict.fromkeys(names))
        return option

    def _around(self, option: Option) -> Iterator[Name]:
        """Yield what a package leads to besides its dependencies."""
        own, *others = option.names
        yield from self._completed(own[0])
        for name, _ in others:
            yield name

    def _completed(self, name: Name) -> Sequence[Name]:
        if name.completes is None:
            name.completes = [self.name(text) for text in self._catalog.completed(name.name)]
        return name.completes

    def _rank(self, name: Name) -> None:
        name.uninvited = all(option.uninvited for option, _ in name.options)
        real = any(option.package.name == name.name for option, _ in name.options)
        self._ranked += 1
        name.rank = (name.name in self._first) << 31 | real << 30 | self._ranked
