"""What of a catalog a search has to look at: what can be reached, without what could never be installed there."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from imgkit.apk.candidates import Catalog, Claim, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package


class Reach:
    """The part of a catalog that some dependencies can lead to, without the packages that lack something.

    A package lacks something when one of its dependencies has no claim on it that serves (:meth:`serving`), or only
    claims of packages that lack something themselves; ``lacking`` has them by ``id`` with the first such dependency, in
    the order in which they were found (so that following the reasons ends).
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
        """The claims that satisfy a dependency and may be chosen for it.

        A virtual claim without a priority may be where something else can want the package. These are claims of all
        packages that were reached, the lacking ones included.
        """
        return [
            claim
            for claim in self.catalog.matching(dependency)
            if claim.auto_selectable or id(claim.package) in self._wanted
        ]

    def _walk(self, follows: Callable[[Claim], bool]) -> dict[int, Package]:
        """The packages that the roots lead to through claims that ``follows`` holds for."""
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
        """Find what lacks something, which leaves fewer packages to want a virtual provider, until nothing changes."""
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
