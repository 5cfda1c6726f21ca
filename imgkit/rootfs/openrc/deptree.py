"""Write OpenRC's dependency cache when the image is built, which OpenRC would otherwise compute at every boot.

When OpenRC starts, it copies /var/cache/rc (which its own service ``savecache`` writes) to /run/openrc, and computes
the dependencies only if a service or a configuration file is newer. Format and rules: OpenRC,
src/librc/librc-depend.c.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from imgkit.errors import RecipeError
from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.openrc.depends import ServiceDeclaration, watched
from imgkit.rootfs.openrc.keptdeclarations import declarations_or_take
from imgkit.rootfs.openrc.services import INIT, runlevels
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Tree

log = logging.getLogger("imgkit")

_CACHE = "var/cache/rc"
_REVERSE = {
    "ineed": "needsme",
    "iuse": "usesme",
    "iwant": "wantsme",
    "iafter": "ibefore",
    "ibefore": "iafter",
    "iprovide": "providedby",
}
_EARLIER = ("ineed", "iwant", "iuse", "iafter")


@dataclass
class ServiceEntry:
    """A service, or a name that services provide. ``related`` maps a kind of relation to names."""

    name: str
    related: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Add a name unless it is there already."""
        names = self.related.setdefault(kind, [])
        if name not in names:
            names.append(name)

    def drop(self, kind: str, name: str) -> None:
        """Remove a name if it is there."""
        names = self.related.get(kind, [])
        if name in names:
            names.remove(name)


def install_cache(tree: Tree, *, epoch: int, kept: KeptSteps | None = None) -> bool:
    """Write the cache into ``tree``.

    Without the cache the image works too, but boots more slowly. So a service script that cannot be computed is only
    logged, and nothing is written.

    Args:
        kept: the results of earlier builds; None computes everything.

    Returns:
        True if the cache was written.

    Raises:
        RecipeError: a service would never start, because another one provides its name.
    """
    if INIT not in tree:
        return False
    try:
        services = declarations_or_take(tree, kept or KeptSteps())
    except Unsupported as cause:
        log.info("OpenRC computes its dependencies at every boot: %s", cause)
        return False
    _refuse_lost(tree, services)
    nodes = [tree.stat(path) for path in watched(tree)]
    newest = max([epoch, *(node.mtime for node in nodes if node is not None)])
    tree.write(f"{_CACHE}/deptree", render(resolve(services)), mtime=newest)
    files = _config_files(services)
    if files:
        tree.write(f"{_CACHE}/depconfig", "".join(f"{name}\n" for name in files), mtime=newest)
    return True


def _refuse_lost(tree: Tree, services: Iterable[ServiceDeclaration]) -> None:
    """Refuse a service whose name another one provides: OpenRC takes it for started as soon as that one is."""
    enabled = {name for names in runlevels(tree).values() for name in names}
    for service in services:
        provided = {word for kind, words in service.declared if kind == "iprovide" for word in words}
        lost = sorted((provided & enabled) - {service.name})
        if service.name in enabled and lost:
            raise RecipeError(
                f"{lost[0]}: the service {service.name} provides this name, so OpenRC would never start {lost[0]}",
                hint="give the service another name, or leave one of the two out of services",
            )


def _config_files(services: Iterable[ServiceDeclaration]) -> list[str]:
    """Return the other files whose change makes the cache stale (``config`` in a service's ``depend``), each once."""
    return list(
        dict.fromkeys(
            word for service in services for kind, words in service.declared if kind == "config" for word in words
        )
    )


def resolve(services: Sequence[ServiceDeclaration]) -> list[ServiceEntry]:
    """Return all entries: what services declare, the names that they provide, and the reverse of every relation."""
    entries = [_declared_entry(service) for service in services]
    provided = [name for entry in entries for name in entry.related.get("iprovide", [])]
    entries += [ServiceEntry(name) for name in dict.fromkeys(provided)]
    first: dict[str, ServiceEntry] = {}
    for entry in entries:
        first.setdefault(entry.name, entry)
    for entry in entries:
        _add_reverse_relations(entry, first)
    for entry in entries:
        _drop_circles(entry, first)
    return entries


def _declared_entry(service: ServiceDeclaration) -> ServiceEntry:
    """Return the entry of a service with what its script declares."""
    entry = ServiceEntry(service.name)
    for kind, words in service.declared:
        if kind != "config":
            names = entry.related.setdefault(kind, [])
            for word in words:
                _declare(entry, kind, names, word)
    return entry


def _declare(entry: ServiceEntry, kind: str, names: list[str], word: str) -> None:
    """Add one word of a declaration; ``!name`` removes a name.

    If a service lists another in both ``before`` and ``after``, the later entry wins.
    """
    if word.startswith("!"):
        entry.drop(kind, word[1:])
    elif not word.endswith(".sh") and (kind, word) != ("iprovide", entry.name):
        names.append(word)
        if kind == "ibefore":
            entry.drop("iafter", word)
        elif kind in _EARLIER:
            entry.drop("ibefore", word)


def _add_reverse_relations(entry: ServiceEntry, first: dict[str, ServiceEntry]) -> None:
    """Add the reverse of each relation of ``entry`` to the service that it names."""
    for kind, reverse in _REVERSE.items():
        for name in entry.related.get(kind, []):
            if name in first:
                first[name].add(reverse, entry.name)
            elif kind == "ineed":
                entry.add("broken", name)


def _drop_circles(entry: ServiceEntry, first: dict[str, ServiceEntry]) -> None:
    """Drop ``before`` relations to services that ``entry`` depends on, by name or by what they provide."""
    earlier = [name for kind in _EARLIER for name in entry.related.get(kind, [])]
    if "providedby" not in entry.related:
        earlier.append(entry.name)
    for name in list(entry.related.get("ibefore", [])):
        if any(_is_or_provides(first.get(other), name) for other in earlier):
            entry.drop("ibefore", name)
            if name in first:
                first[name].drop("iafter", entry.name)


def _is_or_provides(entry: ServiceEntry | None, name: str) -> bool:
    return entry is not None and (entry.name == name or name in entry.related.get("iprovide", []))


def render(entries: Iterable[ServiceEntry]) -> str:
    """Return the text of the cache file: one assignment of a shell variable per line."""
    lines = []
    for number, entry in enumerate(entries):
        lines.append(f"depinfo_{number}_service='{entry.name}'\n")
        for kind, names in entry.related.items():
            lines += [f"depinfo_{number}_{kind}_{index}='{name}'\n" for index, name in enumerate(names)]
    return "".join(lines)
