"""Solve a world: choose the packages that satisfy it, in the order in which they are installed::

    packages = parse_index(text, Repository(url="https://mirror/v3.23/main"))
    for package in solve(["alpine-base", "nodejs>=20"], packages, arch="x86_64"):
        print(package)

The rules are those of apk-tools 3. First the solver does what apk does, one pass without going back
(:mod:`imgkit.apk.deduction`): if apk finds a solution, the result is the same. If that pass fails, resolvelib searches
for a solution (:mod:`imgkit.apk.search`) with backtracking. The search is limited by a number of steps, so that the
answer is the same on every machine.
"""

from __future__ import annotations

import gc
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from imgkit.apk import explain
from imgkit.apk.candidates import Catalog, conditions_of, dependencies_of
from imgkit.apk.deduction import DeadEnd, deduce
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package
from imgkit.apk.order import Selection, needed, ordered, world_order
from imgkit.apk.reach import Reach
from imgkit.apk.search import NoSolution, Solution, extend, search
from imgkit.errors import RecipeError


class UnknownPackageError(RecipeError):
    """The recipe wants packages that no repository has."""


class UnknownTagError(RecipeError):
    """The recipe wants packages from repositories with a tag that no repository has."""


class UnsatisfiableError(RecipeError):
    """No set of packages satisfies the recipe."""


def solve(
    world: Sequence[str],
    packages: Iterable[Package],
    *,
    arch: str,
    installed: Mapping[str, Package] | None = None,
    standing: Iterable[str] = (),
) -> tuple[Package, ...]:
    """Choose the packages that satisfy ``world``, and nothing else.

    Args:
        world: dependencies, conflicts and repository tags as in ``/etc/apk/world``, in any order.
        packages: those of all repositories, earlier repositories first.
        arch: Alpine's name of the architecture (``x86_64``, ``aarch64``).
        installed: by name the packages of the system. They are preferred, and left out if nothing needs them.
        standing: the entries that the system's world has already. Names in ``world`` are decided before these.

    Returns:
        The packages in the order in which apk installs them, including those that are installed already.

    Raises:
        UnknownTagError: an entry has a tag that no repository has.
        UnknownPackageError: no package has the name of an entry; all such names are reported at once.
        UnsatisfiableError: there is no solution; the message says which package needs what.
        RecipeError: an entry of the world is not a valid dependency.
    """
    added = _parsed(world)
    wanted = sorted(dict.fromkeys([*_parsed([*standing]), *added]), key=world_order)
    first = {dependency.name for dependency in added}
    with _without_collection():
        catalog = Catalog(packages, arch, installed)
        _check_tags(wanted, catalog)
        _check_names(wanted, catalog)
        return ordered(_selected(catalog, wanted, first), wanted)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switch Python's cyclic garbage collector off, and afterwards to its former state.

    Nearly all objects of a solution live until its end, so the collector finds nothing, and takes half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _selected(catalog: Catalog, wanted: Sequence[Dependency], first: Container[str]) -> Selection:
    try:
        return _deduced(catalog, wanted, first)
    except DeadEnd as dead_end:
        return _searched(catalog, wanted, dead_end)


def _deduced(catalog: Catalog, wanted: Sequence[Dependency], first: Container[str]) -> Selection:
    """Return the choice of apk.

    Raises:
        DeadEnd: apk would refuse the world.
    """
    choices = deduce(catalog, wanted, first)
    packages = {package.name: package for package in choices.values()}
    selection = Selection(catalog, packages, choices)
    for asker in (None, *ordered(selection, wanted)):
        for dependency in wanted if asker is None else dependencies_of(asker):
            if not selection.permits(dependency, asker):
                raise DeadEnd(dependency.name, asker)
    return selection


def _searched(catalog: Catalog, wanted: Sequence[Dependency], dead_end: DeadEnd) -> Selection:
    """Search for a choice that apk, which stopped at ``dead_end``, does not find.

    Raises:
        UnsatisfiableError: there is none.
    """
    positive = [dependency for dependency in wanted if not dependency.conflict]
    reach = Reach(catalog, positive)
    _check_lacking(positive, reach)
    try:
        solution = search(reach, wanted)
    except NoSolution as failure:
        conflict = explain.Conflict(failure, dead_end, reach, wanted)
        raise UnsatisfiableError(conflict.message, hint=conflict.hint) from failure
    return _complete(catalog, wanted, solution)


def _parsed(world: Sequence[str]) -> list[Dependency]:
    wanted, problems = [], []
    for entry in dict.fromkeys(world):
        try:
            wanted.append(Dependency.parse(entry))
        except ValueError as cause:
            problems.append(f"package {cause}")
    if problems:
        raise RecipeError("; ".join(problems), problems=problems, hint="write name, name=1.2-r0, name~1.2 or !name")
    return wanted


def _check_tags(wanted: Sequence[Dependency], catalog: Catalog) -> None:
    """Refuse tags that no repository has, as apk does (it installs nothing then)."""
    unknown = [entry for entry in wanted if entry.tag is not None and entry.tag not in catalog.tags]
    if unknown:
        problems = [f"package {entry}: no repository has the tag @{entry.tag}" for entry in unknown]
        plain = ", ".join(str(replace(entry, tag=None)) for entry in unknown)
        raise UnknownTagError("; ".join(problems), problems=problems, hint=f"write {plain}")


def _check_names(wanted: Sequence[Dependency], catalog: Catalog) -> None:
    """Refuse names that no package has, all at once and with similar names."""
    problems, hints = [], []
    for entry in wanted:
        if entry.conflict or catalog.claims(entry.name) or entry.name in catalog.refused:
            continue
        problems.append(f"package {entry.name} is in no repository")
        close = explain.near_misses(entry.name, catalog)
        if close:
            hints.append(f"did you mean {' or '.join(close)} instead of {entry.name}?")
    if problems:
        raise UnknownPackageError("; ".join(problems), problems=problems, hint=" ".join(hints) or None)


def _check_lacking(wanted: Sequence[Dependency], reach: Reach) -> None:
    """Refuse, without a search, entries that only lead to packages with a dependency that nothing satisfies."""
    lacks = [
        explain.Lack(entry, reach)
        for entry in wanted
        if not any(reach.usable(claim.package) for claim in reach.serving(entry))
    ]
    if lacks:
        problems = [lack.message for lack in lacks]
        hints = dict.fromkeys(lack.hint for lack in lacks if lack.hint)
        raise UnsatisfiableError("; ".join(problems), problems=problems, hint="; ".join(hints) or None)


def _complete(catalog: Catalog, wanted: Sequence[Dependency], solution: Solution) -> Selection:
    """Remove what nothing asks for from the result of a search, and add what comes by install_if."""
    base = needed(Selection(catalog, solution.packages, solution.choices), wanted)
    full = _invite(catalog, wanted, Solution(base.packages, base.choices, solution.tags))
    return needed(Selection(catalog, full.packages, full.choices), wanted)


def _invite(catalog: Catalog, wanted: Sequence[Dependency], solution: Solution) -> Solution:
    """Add packages whose install_if holds, until there are no more of them.

    The packages of the solution stay: a package that does not fit beside them is left out, as apk does.
    """
    declined: set[int] = set()
    while True:
        selection = Selection(catalog, solution.packages)
        invited = [
            package
            for package in selection.triggered()
            if id(package) not in declined and _allowed(package, selection, solution)
        ]
        if not invited:
            return solution
        reach = Reach(catalog, wanted, [*solution.packages.values(), *invited])
        for batch in (invited, *([package] for package in invited)):  # all together; if that fails, one by one
            solution = _extended(reach, wanted, solution, batch)
        declined |= {id(package) for package in invited if solution.packages.get(package.name) is not package}


def _extended(reach: Reach, wanted: Sequence[Dependency], solution: Solution, invited: Sequence[Package]) -> Solution:
    """Add packages and what these need to a solution. Returns it unchanged if that is impossible."""
    missing = [package for package in invited if solution.packages.get(package.name) is not package]
    if not missing or not all(map(reach.usable, missing)):
        return solution
    try:
        return extend(reach, wanted, solution, missing)
    except NoSolution:
        return solution


def _allowed(package: Package, selection: Selection, solution: Solution) -> bool:
    """Return whether a package that meets a condition of this package's install_if may have its repository tag."""
    inviting = {claim.package.name for condition in conditions_of(package) for claim in selection.claims(condition)}
    return package.repository.has_tag({None}.union(*(solution.tags[name] for name in inviting)))
