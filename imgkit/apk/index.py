"""Parse and write package records: the text of an ``APKINDEX``, and the head of a record of the installed database.

A record has one field on each line, ``X:value``; a blank line separates records. The letters (apk-tools 3; apk-index(5)
has those of an index)::

    C identity   P name   V version   A architecture   S size   I installed size   T description   U url   L license
    o origin   m maintainer   t build time   c commit   k provider priority   D depends   p provides   i install if
    r replaces   q replaces priority   (these two in the installed database only)

D, p, i and r may be on several lines, which add up. Unknown lower-case letters are ignored. An unknown upper-case
letter says that the package needs something this reader does not know, so the package is not installable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from imgkit.apk.dependency import Dependency, Provide, is_package_name, is_package_version
from imgkit.errors import InputError
from imgkit.tree.numbers import parse_number


@dataclass(frozen=True, slots=True)
class Repository:
    """Where packages come from.

    Attributes:
        position: the place in the list of repositories; earlier ones are preferred.
        url: the folder that has the packages.
        tag: only dependencies that ask for this tag may use the packages ("edge" for a line ``@edge URL``).
        other_tags: those of further repositories that have the same package; None stands for one without a tag.
    """

    position: int = 0
    url: str = ""
    tag: str | None = None
    other_tags: frozenset[str | None] = frozenset()

    def has_tag(self, tags: AbstractSet[str | None]) -> bool:
        """Return whether a package from here may be used where these tags are allowed, None for none."""
        return self.tag in tags or not self.other_tags.isdisjoint(tags)


NOWHERE = Repository()


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The metadata of one package. Sizes are in bytes, times in seconds since 1970; relations are words as written."""

    name: str
    version: str
    arch: str = "noarch"
    identity: str = ""
    size: int = 0
    installed_size: int = 0
    description: str = ""
    url: str = ""
    license: str = ""
    origin: str = ""
    maintainer: str = ""
    build_time: int = 0
    commit: str = ""
    provider_priority: int = 0
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    install_if: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    replaces_priority: int = 0
    repository: Repository = NOWHERE
    fault: str = ""
    """Why this package can never be installed, empty if nothing is wrong with it."""

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"


# letter → field, in the order in which a record is written.
FIELDS = {
    "C": "identity",
    "P": "name",
    "V": "version",
    "A": "arch",
    "S": "size",
    "I": "installed_size",
    "T": "description",
    "U": "url",
    "L": "license",
    "o": "origin",
    "m": "maintainer",
    "t": "build_time",
    "c": "commit",
    "k": "provider_priority",
    "D": "depends",
    "p": "provides",
    "i": "install_if",
    "r": "replaces",
    "q": "replaces_priority",
}
_ALWAYS_WRITTEN = frozenset("CPVASITUL")
_NUMBERS = frozenset("SItkq")
_LISTS = frozenset("Dpir")
_MOST_PACKAGES = 200_000  # in one index; the largest one of Alpine has 25,000


def parse_index(text: str, repository: Repository) -> tuple[Package, ...]:
    """Parse the text of an ``APKINDEX``. Returns its packages in its order.

    Raises:
        InputError: the text is not an index (a line without a letter, a malformed number, a record without a name or
            version), or has too many packages.
    """
    shared: dict[str, str] = {}  # one object for each text that recurs: thousands of origins, maintainers, so: names
    where = f"package index of {repository.url or 'the repository'}"
    if text.count("\nP:") > _MOST_PACKAGES:
        raise InputError(f"{where}: has more than {_MOST_PACKAGES} packages")
    return tuple(_record(block.split("\n"), repository, shared.setdefault, where) for block in _blocks(text))


def parse_record(lines: Iterable[str], repository: Repository = NOWHERE) -> Package:
    """Parse one record.

    Args:
        lines: those of the record without blank ones. Of a record of the installed database these are the lines before
            the first ``F:``.
        repository: where the package comes from.

    Raises:
        InputError: a line has no letter, a number is malformed, or the name or version is missing.
    """
    return _record(lines, repository, lambda _, text: text, "package record")


def format_record(package: Package) -> str:
    """Write a record in the order of apk: one line for each field, each with a newline, and no blank line at the end.

    Raises:
        ValueError: a value has a line break, which would forge a field.
    """
    lines = []
    for letter, name in FIELDS.items():
        value = getattr(package, name)
        if not value and letter not in _ALWAYS_WRITTEN:
            continue
        text = " ".join(value) if letter in _LISTS else str(value)
        if "\n" in text:
            raise ValueError(f"{package}: line break in field {letter}")
        lines.append(f"{letter}:{text}\n")
    return "".join(lines)


def _blocks(text: str) -> Iterable[str]:
    return (stripped for block in text.split("\n\n") if (stripped := block.strip("\n")))


def _record(lines: Iterable[str], repository: Repository, share: Callable[[str, str], str], where: str) -> Package:
    values: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    fault = ""
    for line in lines:
        letter, colon, value = line.partition(":")
        if not colon or len(letter) != 1:
            raise InputError(f"{where}: {line[:80]!r} is not a field of a package record")
        if letter in _LISTS:
            lists.setdefault(letter, []).append(value)
        elif letter in FIELDS:
            values[letter] = value
        elif letter.isupper():
            fault = f"its record has the unknown field {letter}"
    values |= {letter: " ".join(parts) for letter, parts in lists.items()}
    if not values.get("P") or not values.get("V"):
        raise InputError(f"{where}: a record has no name or no version")
    return _package(values, repository, fault, share, where)


def _package(
    values: dict[str, str], repository: Repository, fault: str, share: Callable[[str, str], str], where: str
) -> Package:
    known: dict[str, object] = {}
    for letter, value in values.items():
        if letter in _NUMBERS:
            known[FIELDS[letter]] = _number(value, f"{where}: {values['P']}: field {letter}")
        elif letter in _LISTS:
            known[FIELDS[letter]] = tuple([share(word, word) for word in value.split()])
        else:
            known[FIELDS[letter]] = share(value, value)
    known["fault"] = fault or _fault(values)
    return Package(repository=repository, **known)  # type: ignore[arg-type]


def _number(text: str, field: str) -> int:
    number = parse_number(text)
    if number is None:
        raise InputError(f"{field}: {text[:40]!r} is not a number")
    return number


def _fault(values: dict[str, str]) -> str:
    """Return why a package with these values can never be installed, empty if it can."""
    if not is_package_name(values["P"]):
        return "its name is not a valid package name"
    if not is_package_version(values["V"]):
        return "its version has characters that no version has"
    try:
        for word in values.get("D", "").split():
            if Dependency.parse(word).tag:
                return f"its dependency {word} names a repository, which only a world may"
        for word in values.get("p", "").split():
            Provide.parse(word)
    except ValueError as cause:
        return f"its record is broken: {cause}"
    return ""
