"""Who provides what: the packages of all repositories, seen by name.

The rules are those of apk-tools 3. A package claims its own name and the names it provides. A claim with a version is
a full one: nothing else may then have that name. Claims without a version ("virtual" names) may coexist.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from imgkit.apk.dependency import Dependency, Provide
from imgkit.apk.hashing import bucket
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
    with the reason, by name. ``tags`` are those of all repositories.
    """

    def __init__(self, packages: Iterable[Package], arch: str, installed: Mapping[str, Package] | None = None) -> None:
        self.installed = dict(installed or {})
        self.refused: dict[str, list[tuple[Package, str]]] = defaultdict(list)
        self.tags: set[str] = set()
        self.conditional: dict[str, list[Package]] = defaultdict(list)
        self._claims: dict[str, list[Claim]] = {}
        self._matching: dict[Dependency, tuple[Claim, ...]] = {}
        self._names: dict[int, tuple[tuple[str, str | None], ...]] = {}
        self._completed: dict[str, tuple[str, ...]] = {}
        self._position: dict[int, int] = {}
        for package in self._distinct(packages):
            self._position[id(package)] = len(self._position)
            if package.repository.tag is not None:
                self.tags.add(package.repository.tag)
            names = () if package.fault else tuple(claimed(package))
            reason = _refusal(package, arch, names)
            if reason:
                self.refused[package.name].append((package, reason))
            else:
                self._add(package, names)

    def _distinct(self, packages: Iterable[Package]) -> Iterator[Package]:
        """What is installed, and all else but its copies in the repositories."""
        yield from self.installed.values()
        for package in packages:
            same = self.installed.get(package.name)
            if same is None or same.identity != package.identity or same.version != package.version:
                yield package

    def _add(self, package: Package, names: tuple[tuple[str, str | None], ...]) -> None:
        self._names[id(package)] = names
        for name, version in names:
            self._claims.setdefault(name, []).append(Claim(package, version))
        for condition in conditions_of(package):
            self.conditional[condition.name].append(package)

    def claimed(self, package: Package) -> tuple[tuple[str, str | None], ...]:
        """As :func:`claimed`, for a package that can be installed."""
        return self._names[id(package)]

    def claims(self, name: str) -> tuple[Claim, ...]:
        """All claims on a name, in the order of the repositories."""
        return tuple(self._claims.get(name, ()))

    def completed(self, name: str) -> tuple[str, ...]:
        """The names of all packages that have ``name`` among the conditions of their install_if, in apk's order."""
        if name not in self.conditional:
            return ()
        names = self._completed.get(name)
        if names is None:
            all_names = {claim for package in self.conditional[name] for claim, _ in claimed(package)}
            names = self._completed[name] = tuple(sorted(all_names, key=lambda one: (bucket(one), one)))
        return names

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


def _refusal(package: Package, arch: str, names: tuple[tuple[str, str | None], ...]) -> str:
    """Why a package can never be installed here, empty if it can."""
    if package.fault:
        return package.fault
    if package.arch not in (arch, "noarch", ""):
        return f"it is built for {package.arch}, not {arch}"
    if not package.provides:
        return ""
    versions = defaultdict(list)
    for name, version in names:
        versions[name].append(version)
    twice = next((name for name, list_ in versions.items() if len(list_) > 1 and any(list_)), None)
    return f"it conflicts with itself, providing {twice} twice" if twice else ""
