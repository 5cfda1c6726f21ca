"""The packages of all repositories and of the system, by the names that they provide.

The rules are those of apk-tools 3. A package claims its own name and the names it provides. A claim with a version is
a full one: no other selected package may then claim the name. Claims without a version ("virtual" names) may coexist.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from imgkit.apk.dependency import Dependency, Provide
from imgkit.apk.hashing import bucket
from imgkit.apk.index import Package
from imgkit.apk.version import Version


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that ``package`` has, with a ``version`` or as a virtual name (None)."""

    package: Package
    version: str | None

    def satisfies(self, dependency: Dependency) -> bool:
        """Return whether a claim on the dependency's name satisfies it; for a conflict: whether it violates it."""
        return dependency.matches(self.version, self.package.identity)

    @property
    def rank(self) -> Version:
        """The version as apk compares it."""
        return Version.lenient(self.version)

    @property
    def auto_selectable(self) -> bool:
        """Whether a dependency on the name alone may select the package. Virtual names need a priority for that."""
        return self.version is not None or self.package.provider_priority > 0


class Catalog:
    """All packages of the repositories and of the system, by the names that they claim.

    Attributes:
        installed: by name the packages that the system has.
        refused: by name the packages that can never be installed (broken record, foreign architecture), which claim
            nothing, with the reason.
        tags: those of all repositories.
        conditional: the packages that have a name among the conditions of their install_if, by that name.
    """

    def __init__(self, packages: Iterable[Package], arch: str, installed: Mapping[str, Package] | None = None) -> None:
        self.installed = dict(installed or {})
        self.refused: dict[str, list[tuple[Package, str]]] = defaultdict(list)
        packages = list(packages)
        self.tags = {package.repository.tag for package in packages if package.repository.tag is not None}
        self.conditional: dict[str, list[Package]] = defaultdict(list)
        self._claims: dict[str, list[Claim]] = {}
        self._matching: dict[Dependency, tuple[Claim, ...]] = {}
        self._names: dict[int, tuple[tuple[str, str | None], ...]] = {}
        self._completed: dict[str, tuple[str, ...]] = {}
        self._position: dict[int, int] = {}
        for package in self._distinct(packages):
            self._position[id(package)] = len(self._position)
            names = () if package.fault else tuple(claimed(package))
            reason = _refusal(package, arch, names)
            if reason:
                self.refused[package.name].append((package, reason))
            else:
                self._add(package, names)

    def _distinct(self, packages: Sequence[Package]) -> Iterator[Package]:
        """Yield the installed packages, then those of the repositories that are not copies of them."""
        yield from self.installed.values()
        for package in _joined(packages):
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
        """Return the names of an installable package with their versions, as :func:`claimed` does."""
        return self._names[id(package)]

    def claims(self, name: str) -> tuple[Claim, ...]:
        """Return all claims on a name, in the order of the repositories."""
        return tuple(self._claims.get(name, ()))

    def completed(self, name: str) -> tuple[str, ...]:
        """Return all names claimed by packages whose install_if has ``name`` among its conditions, in apk's order."""
        if name not in self.conditional:
            return ()
        names = self._completed.get(name)
        if names is None:
            claims = {text for package in self.conditional[name] for text, _ in claimed(package)}
            names = self._completed[name] = tuple(sorted(claims, key=lambda text: (bucket(text), text)))
        return names

    def names(self) -> Iterable[str]:
        """Return every name that is claimed."""
        return self._claims.keys()

    def matching(self, dependency: Dependency) -> tuple[Claim, ...]:
        """Return the claims that satisfy a dependency, or violate a conflict. Repository tags are not considered."""
        claims = self._matching.get(dependency)
        if claims is None:
            claims = tuple(claim for claim in self._claims.get(dependency.name, ()) if claim.satisfies(dependency))
            self._matching[dependency] = claims
        return claims

    def is_installed(self, package: Package) -> bool:
        """Return whether this record itself, not an equal one, describes an installed package."""
        return self.installed.get(package.name) is package

    def position(self, package: Package) -> int:
        """Return the position among all packages: by repository, then by the order of its index."""
        return self._position[id(package)]


def _joined(packages: Sequence[Package]) -> Sequence[Package]:
    """Return packages without copies of one package in several repositories, which all of their tags allow then.

    Only tags make a difference, so packages of repositories without tags stay as they are.
    """
    if all(package.repository.tag is None for package in packages):
        return packages
    tags: dict[tuple[str, str, str], set[str | None]] = {}
    for package in packages:
        tags.setdefault((package.identity, package.name, package.version), set()).add(package.repository.tag)
    joined = []
    for package in packages:
        others = tags.pop((package.identity, package.name, package.version), None)
        if others is not None:
            further = frozenset(others - {package.repository.tag})
            repository = replace(package.repository, other_tags=further) if further else package.repository
            joined.append(replace(package, repository=repository) if further else package)
    return joined


def claimed(package: Package) -> Iterator[tuple[str, str | None]]:
    """Yield the names of a package with their versions, its own name first."""
    yield package.name, package.version
    for word in package.provides:
        provide = Provide.parse(word)
        yield provide.name, provide.version


def dependencies_of(package: Package) -> tuple[Dependency, ...]:
    """Return the dependencies and conflicts of a package without a fault, in the order of its record."""
    return tuple(Dependency.parse(word) for word in package.depends)


def conditions_of(package: Package) -> tuple[Dependency, ...]:
    """Return the conditions of a package's install_if; none if one of them is not valid, as apk drops the rule then."""
    try:
        return tuple(Dependency.parse(word) for word in package.install_if)
    except ValueError:
        return ()


def _refusal(package: Package, arch: str, names: tuple[tuple[str, str | None], ...]) -> str:
    """Return why a package can never be installed on ``arch``, empty if it can."""
    if package.fault:
        return package.fault
    if package.arch not in (arch, "noarch", ""):
        return f"it is built for {package.arch}, not {arch}"
    if not package.provides:
        return ""
    versions = defaultdict(list)
    for name, version in names:
        versions[name].append(version)
    twice = next((name for name, several in versions.items() if len(several) > 1 and any(several)), None)
    return f"it conflicts with itself, providing {twice} twice" if twice else ""
