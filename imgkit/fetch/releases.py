"""``latest-releases.yaml``: the list of a branch's newest releases, with the hashes of their files.

The list is a convenience, not a source of trust: the signature of the file that it names decides. Entries of other
kinds, and entries that lack keys, are ignored::

    release = newest_minirootfs(listing, arch="x86_64")
    print(release.version, release.file)
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
_MAX_BYTES = 1 << 18  # a real list has 10 KiB
_MAX_VALUES = 5_000  # a real list has 300 values: keys, values, mappings
_MAX_SHOWN = 300  # characters of a list of versions in a message
_MAX_DEPTH = 8  # a real list is a list of mappings of text
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}\Z"), "sha512": re.compile(r"[0-9a-f]{128}\Z")}


class _Loader(yaml.BaseLoader):
    """A YAML loader that makes nothing but text, lists and mappings, and only a few of them (3.20 stays text).

    Values are counted as they are read, before anything is made of them. Aliases are refused: with them a short text
    makes a huge value, and no list of releases has any.
    """

    def __init__(self, text: bytes | str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value; called by PyYAML."""
        self._values += 1
        if self._values > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values")
        if self._depth >= _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has aliases")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True)
class Release:
    """One downloadable file.

    Attributes:
        flavor: the kind of file, ``alpine-minirootfs``.
        file: its name, without folders.
        sha256, sha512: in hex, empty if the list does not have the hash. :func:`parse_releases` needs one of them.
        size: in bytes, 0 if the list does not have it.
        arch: Alpine's name of the architecture, empty if the list does not have it.
    """

    flavor: str
    version: str
    file: str
    sha256: str = ""
    sha512: str = ""
    size: int = 0
    arch: str = ""


def newest_minirootfs(
    text: bytes | str, *, arch: str, version: str | None = None, name: str = "latest-releases.yaml"
) -> Release:
    """Return the newest minirootfs that the list has for ``arch``.

    Args:
        text: the list.
        arch: Alpine's name of the architecture, ``x86_64``.
        version: return exactly this version instead of the newest.
        name: what messages call the list (its URL).

    Raises:
        InputError: the text is not a list of releases, or has no such entry.
    """
    releases = [release for release in parse_releases(text, name=name) if release.flavor == MINIROOTFS]
    fitting = [release for release in releases if release.arch in (arch, "") and version in (None, release.version)]
    if not fitting:
        have = ", ".join(sorted({f"{release.version} {release.arch}".strip() for release in releases})) or "none at all"
        wanted = f"{MINIROOTFS} {version} for {arch}" if version else f"{MINIROOTFS} for {arch}"
        raise InputError(f"{name}: has no {wanted}", hint=f"it has: {have[:_MAX_SHOWN]}")
    return max(fitting, key=lambda release: _order(release.version))


def parse_releases(text: bytes | str, *, name: str = "latest-releases.yaml") -> tuple[Release, ...]:
    """Return all complete entries of the list, in its order.

    An entry is complete when it has a flavor, a version, a file name without folders and a SHA-256 or SHA-512.

    Raises:
        InputError: the text is not YAML, or not a list of mappings.
    """
    entries = _load(text, name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name}: is not a list of releases", hint="check the mirror's URL")
    return tuple(release for entry in entries if (release := _release(entry)) is not None)


def _load(text: bytes | str, name: str) -> object:
    """Return the YAML value in ``text``."""
    if len(text) > _MAX_BYTES:
        raise InputError(f"{name}: is not a list of releases: it has {len(text)} bytes", hint="check the mirror's URL")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - makes nothing but text, lists and mappings
    except (yaml.YAMLError, ValueError) as cause:
        reason = str(cause).partition("\n")[0]
        raise InputError(f"{name}: is not valid YAML ({reason})", hint="check the mirror's URL") from cause


def _release(entry: dict[object, object]) -> Release | None:
    """Return the release that an entry describes; None if the entry is not complete."""
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
        **hashes,
    )


def _order(version: str) -> tuple[tuple[int, ...], str, int]:
    """Return the sort key of a version: 3.20.0_rc1 < 3.20.0 < 3.20.3 < 3.20.10. Versions of edge are dates."""
    match = _VERSION.match(version)
    assert match is not None, "parse_releases returns no other versions"
    numbers, kind, number = match.groups()
    return tuple(int(part) for part in numbers.split(".")), kind or "~", int(number or 0)
