"""Who provides what: the packages of all repositories, seen by name, and what of them a solver has to look at.

The rules are those of apk-tools 3. A package claims its own name and the names it provides. A claim with a version is
a full one: nothing else may then have that name. Claims without a version ("virtual" names) may coexist.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from imgkit.apk.dependency import Dependency, Provide
from imgkit.apk.index import Package
from imgkit.apk.version import Version


@dataclass(frozen=True, slots=True)
class Claim:
    """``package`` has a name in this ``version``, or as a virtual name (None)."""

    package: Package
    version: str | None

    def satisfies(self, dependency: Dependency) -> bool:
        """Whether it does, its name being that of ``dependency``; for a conflict: whether it is hit."""
        return dependency.matches(self.version, self.package.identity)

    @property
    def rank(self) -> Version:
        """The version of the claim, for comparisons."""
        return Version.lenient(self.version)

    @property
    def auto_selectable(self) -> bool:
        """Whether a dependency on the name alone may bring the package in (virtual names need a priority for that)."""
        return self.version is not None or self.package.provider_priority > 0


class Catalog:
    """All packages of some repositories and of the system by name, arranged once for any number of questions.

    Packages that can never be installed (broken record, foreign architecture) claim nothing; ``refused`` has them
    with the reason, by name.
    """

    def __init__(self, packages: Iterable[Package], arch: str, installed: Mapping[str, Package] | None = None) -> None:
        self.installed = dict(installed or {})
        self.refused: dict[str, list[tuple[Package, str]]] = defaultdict(list)
        self.conditional: dict[str, list[Package]] = defaultdict(list)
        self._claims: dict[str, list[Claim]] = {}
        self._matching: dict[Dependency, tuple[Claim, ...]] = {}
        self._position: dict[int, int] = {}
        for package in self._distinct(packages):
            self._position[id(package)] = len(self._position)
            reason = _refusal(package, arch)
            if reason:
                self.refused[package.name].append((package, reason))
            else:
                self._add(package)

    def _distinct(self, packages: Iterable[Package]) -> Iterator[Package]:
        """What is installed, and all else but its copies in the repositories."""
        yield from self.installed.values()
        for package in packages:
            same = self.installed.get(package.name)
            if same is None or same.identity != package.identity or same.version != package.version:
                yield package

    def _add(self, package: Package) -> None:
        for name, version in claimed(package):
            self._claims.setdefault(name, []).append(Claim(package, version))
        for condition in conditions_of(package):
            if not condition.conflict:
                self.conditional[condition.name].append(package)

    def claims(self, name: str) -> tuple[Claim, ...]:
        """All claims on a name, in the order of the repositories."""
        return tuple(self._claims.get(name, ()))

    def names(self) -> Iterable[str]:
        """Every name that somebody claims."""
        return self._claims.keys()

    def matching(self, dependency: Dependency) -> tuple[Claim, ...]:
        """The claims that satisfy a dependency, or that a conflict hits; tags are not looked at."""
        found = self._matching.get(dependency)
        if found is None:
            found = tuple(claim for claim in self._claims.get(dependency.name, ()) if claim.satisfies(dependency))
            self._matching[dependency] = found
        return found

    def is_installed(self, package: Package) -> bool:
        """Whether this very record is that of an installed package."""
        return self.installed.get(package.name) is package

    def position(self, package: Package) -> int:
        """Place among all packages: earlier repositories first, then as the index has it."""
        return self._position[id(package)]


def claimed(package: Package) -> Iterator[tuple[str, str | None]]:
    """The names of a package with their versions, its own one first."""
    yield package.name, package.version
    for word in package.provides:
        provide = Provide.parse(word)
        yield provide.name, provide.version


def dependencies_of(package: Package) -> tuple[Dependency, ...]:
    """What a package (not a broken one) needs and what it conflicts with, in the order of its record."""
    return tuple(Dependency.parse(word) for word in package.depends)


def conditions_of(package: Package) -> tuple[Dependency, ...]:
    """The conditions under which a package is installed by itself; none if there are none, or one cannot be read."""
    try:
        return tuple(Dependency.parse(word) for word in package.install_if)
    except ValueError:
        return ()


def _refusal(package: Package, arch: str) -> str:
    """Why a package can never be installed here, empty if it can."""
    if package.fault:
        return package.fault
    if package.arch not in (arch, "noarch", ""):
        return f"it is built for {package.arch}, not {arch}"
    if not package.provides:
        return ""
    versions = defaultdict(list)
    for name, version in claimed(package):
        versions[name].append(version)
    twice = next((name for name, list_ in versions.items() if len(list_) > 1 and any(list_)), None)
    return f"it conflicts with itself, providing {twice} twice" if twice else ""


class Reach:
    """The part of a catalog that some dependencies can lead to, without the packages that lack something.

    A package lacks something when one of its dependencies has no claim on it that matches, or only claims of packages
    that lack something themselves; ``lacking`` has them by ``id`` with the first such dependency, in the order in
    which they were found (so that following the reasons ends).
    """

    def __init__(self, catalog: Catalog, roots: Iterable[Dependency], packages: Iterable[Package] = ()) -> None:
        self.catalog = catalog
        self.lacking: dict[int, Dependency] = {}
        self._members: dict[int, Package] = {}
        self._needs: dict[int, tuple[Dependency, ...]] = {}
        self._walk(roots, packages)
        self._drop_lacking()
        self._slots: dict[str, str] = {}

    def _walk(self, roots: Iterable[Dependency], packages: Iterable[Package]) -> None:
        waiting = list(packages)
        for dependency in roots:
            waiting += [claim.package for claim in self.catalog.matching(dependency)]
        while waiting:
            package = waiting.pop()
            if id(package) in self._members:
                continue
            self._members[id(package)] = package
            self._needs[id(package)] = needs = dependencies_of(package)
            for dependency in needs:
                if not dependency.conflict:
                    waiting += [claim.package for claim in self.catalog.matching(dependency)]

    def _drop_lacking(self) -> None:
        users = self._users()
        left = {dependency: len(self.catalog.matching(dependency)) for dependency in users}
        serves: dict[int, list[Dependency]] = defaultdict(list)
        for dependency in users:
            for claim in self.catalog.matching(dependency):
                serves[id(claim.package)].append(dependency)
        empty = deque(dependency for dependency, count in left.items() if not count)
        while empty:
            dependency = empty.popleft()
            for key in users[dependency]:
                if key in self.lacking:
                    continue
                self.lacking[key] = dependency
                for served in serves[key]:
                    left[served] -= 1
                    if not left[served]:
                        empty.append(served)

    def _users(self) -> dict[Dependency, dict[int, None]]:
        """The packages (by ``id``, in a steady order) that have each dependency."""
        users: dict[Dependency, dict[int, None]] = defaultdict(dict)
        for key, needs in self._needs.items():
            for dependency in needs:
                if not dependency.conflict:
                    users[dependency][key] = None
        return users

    def usable(self, package: Package) -> bool:
        """Whether the package was reached and lacks nothing."""
        return id(package) in self._members and id(package) not in self.lacking

    def claims(self, name: str) -> list[Claim]:
        """The claims of usable packages on a name, in the order of the repositories."""
        return [claim for claim in self.catalog.claims(name) if self.usable(claim.package)]

    def needs(self, package: Package) -> tuple[Dependency, ...]:
        """As :func:`dependencies_of`, for a package that was reached."""
        return self._needs[id(package)]

    def slot(self, name: str) -> str:
        """The name under which the choice of a provider of ``name`` is made.

        That is the package's own name where all usable providers are versions of one package, and ``name`` itself
        where there is something to choose between, or something that must not be chosen by itself.
        """
        slot = self._slots.get(name)
        if slot is None:
            claims = self.claims(name)
            packages = {claim.package.name for claim in claims}
            clear = len(packages) == 1 and all(claim.auto_selectable for claim in claims)
            slot = self._slots[name] = packages.pop() if clear else name
        return slot
