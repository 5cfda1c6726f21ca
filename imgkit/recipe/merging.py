"""Combine the fields of a recipe with those of the recipe that it builds on.

==============================================  ====================================================================
fields                                          what becomes of them
==============================================  ====================================================================
``packages`` (everywhere), ``disk_packages``    added; an entry replaces the base's entries for the same package, so
                                                that ``!name`` takes a package away
``services``                                    added at the end of each runlevel; ``!name`` takes a service away
``users``, ``files``, ``repositories``          added; an entry with the same name, path or URL replaces the base's
                                                in its place; ``!name`` takes a repository away
``overlay``, ``overlays``                       copied after the base's
``container``, its ``env`` and ``labels``,      merged by key; None takes a key away
``architectures`` and each of them
all others                                      replaced
==============================================  ====================================================================

Each value keeps the module that it comes from, for messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TypeAlias

from imgkit.recipe.module import public_values
from imgkit.recipe.spec import Recipe

_MAPPINGS = re.compile(r"|services|container|container\.(env|labels)|architectures(\.[^.]+)?")
_PACKAGES = re.compile(r"(|container\.|architectures\.[^.]+\.)packages|disk_packages")
_SERVICES = re.compile(r"services\.[^.]+")
_KEYS: Mapping[str, str] = MappingProxyType({"users": "name", "files": "path", "repositories": "url"})
OVERLAYS = frozenset({"overlay", "overlays"})
"""Two forms of one fact: what replaces one of them, or adds to it, does so to both."""
_PACKAGE_NAME = re.compile(r"!?([^<>=~@]*)")  # in front of a version or a tag


@dataclass(frozen=True)
class Stated:
    """A value of a recipe, and the module that states it.

    Attributes:
        value: a mapping or a list of further such values, or any other value as it is.
        origin: what messages call the module.
    """

    value: object
    origin: str

    def plain(self) -> object:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {name: item.plain() for name, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def origin_of(self, place: str) -> str:
        """Return the module that states what is at ``place``, such as ``users.0.uid``: the nearest that is known."""
        name, _, rest = place.partition(".")
        inner: object = None
        if isinstance(self.value, dict):
            inner = self.value.get(name)
        elif isinstance(self.value, list) and name.isdecimal() and int(name) < len(self.value):
            inner = self.value[int(name)]
        return inner.origin_of(rest) if isinstance(inner, Stated) else self.origin


Problems: TypeAlias = list[str]


def stated(value: object, origin: str) -> Stated:
    """Return a value of a module with its origin, all the way down."""
    if isinstance(value, ModuleType):
        value = public_values(value)
    if isinstance(value, Mapping):
        return Stated({name: stated(item, origin) for name, item in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Stated([stated(item, origin) for item in value], origin)
    return Stated(value, origin)


def merged(base: Stated, own: Stated) -> tuple[Stated, list[str]]:
    """Combine the fields of a recipe with those of its base.

    Args:
        base: the fields of the base, made by :func:`stated`; what it builds on itself has been merged already.
        own: the fields of the recipe.

    Returns:
        The fields, and problems: what is to be taken away, and is not there. Each begins with its field.
    """
    problems: Problems = []
    return _mapping("", _overlays_listed(base, own), _overlays_listed(own, base), problems), problems


def _overlays_listed(fields: Stated, others: Stated) -> Stated:
    """Return fields whose overlays are one list, if other fields have overlays as well."""
    own = _items(fields)
    if not (own.keys() & OVERLAYS and _items(others).keys() & OVERLAYS):
        return fields
    folders: list[Stated] = []
    for name in sorted(own.keys() & OVERLAYS):
        value = own[name].value
        folders += value if isinstance(value, list) else [own[name]] if value is not None else []
    rest = {name: item for name, item in own.items() if name not in OVERLAYS}
    return Stated({**rest, "overlays": Stated(folders, fields.origin)}, fields.origin)


def _items(fields: Stated) -> dict[str, Stated]:
    assert isinstance(fields.value, dict)
    return fields.value


def _combined(place: str, base: Stated, own: Stated, problems: Problems) -> Stated:
    """Combine the values that a recipe and its base have at the same place."""
    if isinstance(base.value, dict) and isinstance(own.value, dict) and _MAPPINGS.fullmatch(place):
        return _mapping(place, base, own, problems)
    if isinstance(base.value, list) and isinstance(own.value, list):
        for names, combine in _LISTS:
            if names(place):
                return Stated(list(combine(place, base.value, own.value, problems)), own.origin)
    return own


def _mapping(place: str, base: Stated, own: Stated, problems: Problems) -> Stated:
    """Merge by key. None removes what the base has, but not a field of the recipe."""
    result = dict(_items(base))
    for name, item in _items(own).items():
        inner = f"{place}.{name}" if place else str(name)
        before = result.get(name) or _default(inner)
        if before is None:
            result[name] = item
        elif item.value is None and place:
            result.pop(name, None)
        else:
            result[name] = _combined(inner, before, item, problems)
    return Stated(result, own.origin)


def _default(place: str) -> Stated | None:
    """Return what a recipe is combined with if its base states nothing at this place."""
    if place == "repositories":
        return stated(Recipe.model_fields[place].default, "")
    return Stated([], "") if _SERVICES.fullmatch(place) else None


def _packages(_place: str, base: list[Stated], own: list[Stated], _problems: Problems) -> Iterator[Stated]:
    named = {_package(item) for item in own} - {None}
    yield from (item for item in base if _package(item) not in named)
    yield from own


def _package(item: Stated) -> str | None:
    match = _PACKAGE_NAME.match(item.value) if isinstance(item.value, str) else None
    return match[1] if match else None


def _services(place: str, base: list[Stated], own: list[Stated], problems: Problems) -> Iterator[Stated]:
    kept = _without(place, base, own, "service in this runlevel", problems)
    yield from kept
    present = [item.value for item in kept]
    yield from (item for item in own if not _removed(item) and item.value not in present)


def _records(place: str, base: list[Stated], own: list[Stated], problems: Problems) -> Iterator[Stated]:
    kept = _without(place, base, own, "repository", problems) if place == "repositories" else base
    fresh = {_key(place, item): item for item in own if not (place == "repositories" and _removed(item))}
    for item in kept:
        key = _key(place, item)
        yield fresh.pop(key) if key is not None and key in fresh else item
    # What has no key, which the model refuses, and what the base has not; in the order of the recipe.
    yield from (item for item in own if _key(place, item) is None or fresh.get(_key(place, item)) is item)


def _key(place: str, item: Stated) -> str | None:
    """Return what identifies an entry of a list: its name, path or URL."""
    value = item.plain()
    found = value.get(_KEYS[place]) if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _without(place: str, base: list[Stated], own: list[Stated], what: str, problems: Problems) -> list[Stated]:
    """Return the entries of the base that the recipe does not take away."""
    gone = [name for item in own if (name := _removed(item))]
    present = [item.value for item in base]
    problems += [
        f"{place}: !{name}: the recipe that this one extends has no such {what}" for name in gone if name not in present
    ]
    return [item for item in base if item.value not in gone]


def _removed(item: Stated) -> str:
    """Return the name that an entry takes away: "x" for ``!x``; empty for any other entry."""
    return item.value[1:] if isinstance(item.value, str) and item.value.startswith("!") else ""


def _overlays(_place: str, base: list[Stated], own: list[Stated], _problems: Problems) -> Iterator[Stated]:
    yield from base
    yield from own


_Combine: TypeAlias = Callable[[str, list[Stated], list[Stated], Problems], Iterator[Stated]]
_LISTS: tuple[tuple[Callable[[str], object], _Combine], ...] = (
    (_PACKAGES.fullmatch, _packages),
    (_SERVICES.fullmatch, _services),
    (_KEYS.__contains__, _records),
    ("overlays".__eq__, _overlays),
)
"""Which lists are combined, and how; others are replaced."""
