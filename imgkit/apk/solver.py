"""Which packages a world amounts to, in the order in which they are installed.

The rules are those of apk-tools 3 for a fresh installation. First comes what apk does, one pass without going back
(:mod:`imgkit.apk.deduction`): where apk finds a solution this one is the same. Where that pass ends, resolvelib goes on
searching, and does go back; a number of steps bounds that, so that the answer is the same on every machine.
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
from imgkit.apk.search import Found, NoSolution, extend, search
from imgkit.errors import RecipeError


class UnknownPackageError(RecipeError):
    """The recipe wants packages that no repository has."""


class UnsatisfiableError(RecipeError):
    """There is no set of packages that gives the recipe what it wants."""


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
        packages: of all repositories, earlier repositories first.
        arch: Alpine's name of the architecture (``x86_64``, ``aarch64``).
        standing: further entries, which the system's world has already: names in ``world`` are decided before these.
        installed: by name what the system has already; such versions are preferred, and gone if nothing needs them.

    Returns:
        The packages in the order in which apk installs them, those that are installed already included.

    Raises:
        RecipeError: an entry of the world is no dependency, or has a tag that no repository has.
        UnknownPackageError: nothing has the name of an entry; all such names are reported at once.
        UnsatisfiableError: there is no solution; the message says who needs what.
    """
    added = _parsed(world)
    wanted = sorted(dict.fromkeys([*_parsed([*standing]), *added]), key=world_order)
    first = {one.name for one in added}
    with _without_collection():
        catalog = Catalog(packages, arch, installed)
        _check_tags(wanted, catalog)
        _check_names(wanted, catalog)
        return ordered(_selected(catalog, wanted, first), wanted)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python's cyclic garbage collector off: nearly all that is made lives until the end, so it would look in vain.

    It takes half of the time otherwise. What it was before is restored.
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
    """The choice of apk.

    Raises:
        DeadEnd: apk would refuse.
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
    """A choice that apk, which stopped at ``dead_end``, does not find.

    Raises:
        UnsatisfiableError: there is none.
    """
    positive = [one for one in wanted if not one.conflict]
    reach = Reach(catalog, positive)
    _check_lacking(positive, reach)
    try:
        found = search(reach, wanted)
    except NoSolution as failure:
        conflict = explain.Conflict(failure, dead_end, reach, wanted)
        raise UnsatisfiableError(conflict.message, hint=conflict.hint) from failure
    return _complete(catalog, wanted, found)


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
    unknown = [one for one in wanted if one.tag is not None and one.tag not in catalog.tags]
    if unknown:
        problems = [f"package {one}: no repository has the tag @{one.tag}" for one in unknown]
        plain = ", ".join(str(replace(one, tag=None)) for one in unknown)
        raise RecipeError("; ".join(problems), problems=problems, hint=f"write {plain}")


def _check_names(wanted: Sequence[Dependency], catalog: Catalog) -> None:
    """Refuse names that nobody has, all at once and with what may have been meant."""
    problems, hints = [], []
    for one in wanted:
        if one.conflict or catalog.claims(one.name) or one.name in catalog.refused:
            continue
        problems.append(f"package {one.name} is in no repository")
        close = explain.near_misses(one.name, catalog)
        if close:
            hints.append(f"did you mean {' or '.join(close)} instead of {one.name}?")
    if problems:
        raise UnknownPackageError("; ".join(problems), problems=problems, hint=" ".join(hints) or None)


def _check_lacking(wanted: Sequence[Dependency], reach: Reach) -> None:
    """Refuse what can be seen without a search: a package somewhere below has a dependency that nobody satisfies."""
    lacks = [
        explain.Lack(one, reach)
        for one in wanted
        if not any(reach.usable(claim.package) for claim in reach.serving(one))
    ]
    if lacks:
        problems = [lack.message for lack in lacks]
        hints = dict.fromkeys(lack.hint for lack in lacks if lack.hint)
        raise UnsatisfiableError("; ".join(problems), problems=problems, hint="; ".join(hints) or None)


def _complete(catalog: Catalog, wanted: Sequence[Dependency], found: Found) -> Selection:
    """What was found without anything superfluous, with what comes by install_if."""
    base = needed(Selection(catalog, found.packages, found.choices), wanted)
    full = _invite(catalog, wanted, Found(base.packages, base.choices, found.tags))
    return needed(Selection(catalog, full.packages, full.choices), wanted)


def _invite(catalog: Catalog, wanted: Sequence[Dependency], found: Found) -> Found:
    """Add packages whose install_if holds, until there are no more of them.

    What has been found stays as it is: a package that does not fit beside it is left out, as apk does it.
    """
    declined: set[int] = set()
    while True:
        selection = Selection(catalog, found.packages)
        invited = [one for one in selection.triggered() if id(one) not in declined and _allowed(one, selection, found)]
        if not invited:
            return found
        reach = Reach(catalog, wanted, [*found.packages.values(), *invited])
        for batch in (invited, *([one] for one in invited)):  # all together, which is the rule, or as many as fit
            found = _extended(reach, wanted, found, batch)
        declined |= {id(one) for one in invited if found.packages.get(one.name) is not one}


def _extended(reach: Reach, wanted: Sequence[Dependency], found: Found, invited: Sequence[Package]) -> Found:
    """``found`` with more packages and what these need, or as it is if that is impossible."""
    missing = [one for one in invited if found.packages.get(one.name) is not one]
    if not missing or not all(reach.usable(one) for one in missing):
        return found
    try:
        return extend(reach, wanted, found, missing)
    except NoSolution:
        return found


def _allowed(package: Package, selection: Selection, found: Found) -> bool:
    """Whether the repository tag of a package is allowed to one of those that invited it."""
    tag = package.repository.tag
    inviting = {claim.package.name for one in conditions_of(package) for claim in selection.claims(one)}
    return tag is None or any(tag in found.tags[name] for name in inviting)
