"""``latest-releases.yaml``: what the newest release of a branch is, and the hashes of its files.

The list is a convenience, not a source of trust: the signature of the file that it names decides. Entries of new
kinds, and entries that lack keys, are passed over as long as the wanted one is complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from imgkit.errors import InputError

MINIROOTFS = "alpine-minirootfs"
_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})(?:_(alpha|beta|rc|pre)([0-9]{0,9}))?\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z")
_ARCH = re.compile(r"[a-z0-9_]{0,32}\Z")
_MOST_BYTES = 1 << 18  # a real list has 10 KiB
_MOST_VALUES = 5_000  # a real list has 300 values: keys, values, mappings
_MOST_SHOWN = 300  # characters of what a list has, in a message
_DEEPEST = 8  # a list of mappings of text
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}\Z"), "sha512": re.compile(r"[0-9a-f]{128}\Z")}


class _Loader(yaml.BaseLoader):
    """Makes nothing but text, lists and mappings (3.20 is no number), and only a few of them.

    Values are counted as they are read, before anything is made of them. Aliases, which repeat what was read without
    being as long, are in no list of releases.
    """

    def __init__(self, text: bytes | str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES} values")
        if self._depth >= _DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {_DEEPEST} levels")
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has aliases")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True)
class Release:
    """One downloadable file. Empty strings and a ``size`` of 0 are what the list does not say; one hash is there."""

    flavor: str
    version: str
    file: str
    sha256: str = ""
    sha512: str = ""
    size: int = 0
    arch: str = ""
    branch: str = ""
    date: str = ""


def newest_minirootfs(
    text: bytes | str, *, arch: str, version: str | None = None, name: str = "latest-releases.yaml"
) -> Release:
    """The newest minirootfs that the list has for ``arch``.

    Args:
        text: the list.
        arch: Alpine's name of the architecture, ``x86_64``.
        version: take exactly this one.
        name: what messages call the list (its URL).

    Raises:
        InputError: the text is no such list, or has no such entry.
    """
    found = [release for release in parse_releases(text, name=name) if release.flavor == MINIROOTFS]
    fitting = [release for release in found if release.arch in (arch, "") and version in (None, release.version)]
    if not fitting:
        have = ", ".join(sorted({f"{release.version} {release.arch}".strip() for release in found})) or "none at all"
        wanted = f"{MINIROOTFS} {version} for {arch}" if version else f"{MINIROOTFS} for {arch}"
        raise InputError(f"{name}: has no {wanted}", hint=f"it has: {have[:_MOST_SHOWN]}")
    return max(fitting, key=lambda release: _order(release.version))


def parse_releases(text: bytes | str, *, name: str = "latest-releases.yaml") -> tuple[Release, ...]:
    """All complete entries of the list, in its order.

    An entry is complete when it has a flavor, a version, a file name without folders and a SHA-256 or SHA-512.

    Raises:
        InputError: it is not YAML, or not a list of mappings.
    """
    entries = _load(text, name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name}: is not a list of releases", hint="check the mirror's URL")
    return tuple(release for entry in entries if (release := _release(entry)) is not None)


def _load(text: bytes | str, name: str) -> object:
    if len(text) > _MOST_BYTES:
        raise InputError(f"{name}: is no list of releases: it has {len(text)} bytes", hint="check the mirror's URL")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - makes nothing but text, lists and mappings
    except (yaml.YAMLError, ValueError) as cause:
        reason = str(cause).partition("\n")[0]
        raise InputError(f"{name}: is not YAML that can be read ({reason})", hint="check the mirror's URL") from cause


def _release(entry: dict[object, object]) -> Release | None:
    values = {str(key): value.strip() for key, value in entry.items() if isinstance(value, str)}
    file, version = values.get("file") or values.get("iso", ""), values.get("version", "")
    hashes = {kind: values.get(kind, "").lower() for kind in _HEX}
    hashes = {kind: value for kind, value in hashes.items() if _HEX[kind].match(value)}
    known = values.get("flavor") and _VERSION.match(version) and _ARCH.match(values.get("arch", ""))
    if not (known and _FILE.match(file) and hashes):
        return None
    size = values.get("size", "")
    return Release(
        flavor=values["flavor"],
        version=version,
        file=file,
        size=int(size) if size.isascii() and size.isdigit() and len(size) < 16 else 0,
        arch=values.get("arch", ""),
        branch=values.get("branch", ""),
        date=values.get("date", ""),
        **hashes,
    )


def _order(version: str) -> tuple[tuple[int, ...], str, int]:
    """A key that sorts releases: 3.20.0_rc1 < 3.20.0 < 3.20.3 < 3.20.10, and dates (edge) by themselves."""
    match = _VERSION.match(version)
    assert match is not None, "parse_releases lets nothing else through"
    numbers, kind, number = match.groups()
    return tuple(int(part) for part in numbers.split(".")), kind or "~", int(number or 0)
