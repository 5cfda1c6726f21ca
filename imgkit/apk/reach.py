"""The part of a catalog that a search has to consider: packages that a world can lead to and that lack nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from imgkit.apk.candidates import Catalog, Claim, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


class Reach:
    """The part of a catalog that dependencies can lead to, without the packages that lack something.

    A package lacks something when no claim serves one of its dependencies (:meth:`serving`), or only claims of packages
    that lack something themselves.

    Attributes:
        catalog: all packages.
        lacking: by ``id`` the first such dependency of each package that lacks something, in the order in which they
            were found, so that following them from package to package comes to an end.
    """

    def __init__(self, catalog: Catalog, roots: Iterable[Dependency], packages: Iterable[Package] = ()) -> None:
        self.catalog = catalog
        self.lacking: dict[int, Dependency] = {}
        self._roots, self._packages = tuple(roots), tuple(packages)
        self._needs: dict[int, tuple[Dependency, ...]] = {}
        self._members = self._wanted = self._walk(lambda _: True)
        self._drop_hopeless()
        self._slots: dict[str, str] = {}

    def serving(self, dependency: Dependency) -> list[Claim]:
        """Return the claims that satisfy a dependency and may be chosen for it.

        A virtual claim without a priority may be chosen if something else can want its package. Packages that lack
        something are included.
        """
        return [
            claim
            for claim in self.catalog.matching(dependency)
            if claim.auto_selectable or id(claim.package) in self._wanted
        ]

    def _walk(self, follows: Callable[[Claim], bool]) -> dict[int, Package]:
        """Return the packages that the roots lead to through claims for which ``follows`` is true, by ``id``."""
        reached: dict[int, Package] = {}
        waiting = list(self._packages)
        for dependency in self._roots:
            waiting += [claim.package for claim in self.catalog.matching(dependency) if follows(claim)]
        while waiting:
            package = waiting.pop()
            if id(package) in reached:
                continue
            reached[id(package)] = package
            needs = self._needs.get(id(package))
            if needs is None:
                needs = self._needs[id(package)] = dependencies_of(package)
            for dependency in needs:
                if not dependency.conflict:
                    waiting += [claim.package for claim in self.catalog.matching(dependency) if follows(claim)]
        return reached

    def _drop_hopeless(self) -> None:
        """Find the packages that lack something.

        Each of them may have been the only one to want a virtual provider, so this goes on until nothing changes.
        """
        self._drop_lacking()
        while True:
            wanted = self._walk(lambda claim: claim.auto_selectable and id(claim.package) not in self.lacking)
            if len(wanted) == len(self._wanted):
                return
            self._wanted = wanted
            self._drop_lacking()

    def _drop_lacking(self) -> None:
        users = self._users()
        serving = {dependency: self.serving(dependency) for dependency in users}
        left = {dependency: len(claims) for dependency, claims in serving.items()}
        serves: dict[int, list[Dependency]] = defaultdict(list)
        for dependency, claims in serving.items():
            for claim in claims:
                serves[id(claim.package)].append(dependency)
        empty = deque(dependency for dependency, count in left.items() if not count)
        self.lacking = {}
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
        """Return the packages that have each dependency, by ``id`` and in an order that is the same in every run."""
        users: dict[Dependency, dict[int, None]] = defaultdict(dict)
        for key, needs in self._needs.items():
            for dependency in needs:
                if not dependency.conflict:
                    users[dependency][key] = None
        return users

    def usable(self, package: Package) -> bool:
        """Return whether the package was reached and lacks nothing."""
        return id(package) in self._members and id(package) not in self.lacking

    def claims(self, name: str) -> list[Claim]:
        """Return the claims of usable packages on a name, in the order of the repositories."""
        return [claim for claim in self.catalog.claims(name) if self.usable(claim.package)]

    def needs(self, package: Package) -> tuple[Dependency, ...]:
        """Return the dependencies and conflicts of a package that was reached."""
        return self._needs[id(package)]

    def slot(self, name: str) -> str:
        """Return the name under which a provider of ``name`` is chosen.

        That is the package's own name if all usable providers are versions of one package that may be chosen without
        another reason, and ``name`` itself otherwise.
        """
        slot = self._slots.get(name)
        if slot is None:
            claims = self.claims(name)
            packages = {claim.package.name for claim in claims}
            clear = len(packages) == 1 and all(claim.auto_selectable for claim in claims)
            slot = self._slots[name] = packages.pop() if clear else name
        return slot
