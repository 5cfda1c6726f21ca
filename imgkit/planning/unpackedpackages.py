"""Packages that were verified and unpacked once: the next build takes their contents from the cache.

Below the folder of the cache, in the form of :mod:`imgkit.fetch.kept`::

    unpacked/ab/abcd….record    what :func:`imgkit.apk.package.open_package` returned for a package
    unpacked/ab/abcd….blob      the contents of its files, one after the other

The key of a package is a hash over its identity and the trusted keys, which are all that decides whether it is accepted
and what is in it. Only packages are kept that were verified as a whole. Whenever one is taken, its checksums are
compared again, since the disk, a power failure or an editor may have changed it; a package that is damaged is unpacked
anew. The file of a package that is taken need neither be there nor be read::

    unpacked = UnpackedPackages(cache.folder)
    kept = unpacked.take_all(plan.packages, base)
    opened = unpacked.open_all(plan.packages, kept, files, base, work / "packages")
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from imgkit import __version__
from imgkit.apk.package import PackageFile
from imgkit.apk.signature import Keyring
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import HostError
from imgkit.fetch.kept import Kept, say_unkept
from imgkit.fetch.keptcontents import load_content, moved, store_content
from imgkit.fetch.pool import side_by_side
from imgkit.host.processors import usable_processors
from imgkit.planning.base import Base
from imgkit.planning.download import limit_of, open_planned
from imgkit.planning.plan import PlannedPackage
from imgkit.tree import File, HashedSlice
from imgkit.tree.noderecords import load_node, store_node

log = logging.getLogger("imgkit")

MOST_BYTES = 8 << 30
"""Bytes of all packages that are kept."""
_FORMAT = f"imgkit {__version__} package 2"  # changes with the record, and with what a package may hold
_MOST_THREADS = 8  # each takes a few MiB of memory
_T = TypeVar("_T")


@dataclass(frozen=True)
class KeptPackage:
    """A package from the cache. ``sha256`` is that of the file that it was unpacked from, in hex."""

    file: PackageFile
    sha256: str


class UnpackedPackages:
    """The unpacked packages below the folder of a cache."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._kept = Kept(folder, "unpacked", most_bytes)

    def take_all(self, packages: Sequence[PlannedPackage], base: Base) -> dict[str, KeptPackage]:
        """Return name → package, of those that are kept and not damaged."""
        ordered = _largest_first(packages)
        taken = _in_parallel([partial(self._take, planned, base) for planned in ordered])
        return {
            planned.package.name: package
            for planned, package in zip(ordered, taken, strict=True)
            if package is not None
        }

    def open_all(
        self,
        packages: Sequence[PlannedPackage],
        kept: Mapping[str, KeptPackage],
        files: Mapping[str, Path],
        base: Base,
        spool: Path,
    ) -> dict[str, PackageFile]:
        """Verify and unpack what is not kept, on all processors, and keep it.

        Args:
            packages: with the SHA-256 of their files.
            kept: from :meth:`take_all`.
            files: package name → file of those that are not kept.
            spool: a new folder, which takes the contents of packages if the cache cannot.

        Returns:
            Name → package, for those that are kept and those that have a file.

        Raises:
            InputError: a file is not the package that the plan names, or holds what no package may hold.
            HostError: the host has no space left for the contents.
        """
        spool.mkdir()
        missing = files.keys() - kept.keys()
        todo = _largest_first([planned for planned in packages if planned.package.name in missing])
        opened = _in_parallel([partial(self._open, planned, files, base, spool) for planned in todo])
        if todo:
            self._kept.shrink()
        names = [planned.package.name for planned in todo]
        return {name: package.file for name, package in kept.items()} | dict(zip(names, opened, strict=True))

    def _take(self, planned: PlannedPackage, base: Base) -> KeptPackage | None:
        key = _key(planned, base)
        data = self._kept.take(key)
        if data is None:
            return None
        try:
            record = json.loads(data)
            file = _load(record, self._kept.blob(key))
            sha256 = str(record["sha256"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
            self._kept.forget(key, f"its record cannot be read: {fault}")
            return None
        nodes = [entry.node for entry in file.entries if isinstance(entry.node, File)]
        contents = [node.content for node in nodes if isinstance(node.content, HashedSlice)]
        if sum(content.size for content in contents) > limit_of(planned.package):
            return None
        return KeptPackage(file, sha256)

    def _open(self, planned: PlannedPackage, files: Mapping[str, Path], base: Base, spool: Path) -> PackageFile:
        """Unpack a package into the cache; if that cannot be written, into the spool."""
        try:
            with self._kept.scratch() as work:
                return self._open_and_keep(planned, files, base, work / "blob")
        except (OSError, HostError) as fault:
            say_unkept(log, planned.file_name, fault)
        return open_planned(files, base, spool / planned.package.name, planned.package)

    def _open_and_keep(self, planned: PlannedPackage, files: Mapping[str, Path], base: Base, blob: Path) -> PackageFile:
        blob.touch()  # a package may have no files
        file = open_planned(files, base, blob, planned.package)
        key = _key(planned, base)
        place = self._kept.blob(key)
        record = {
            "name": planned.file_name.removesuffix(".apk"),  # the first one, for imgkit cache list
            "sha256": planned.sha256,
            "scripts": {kind: script.decode("latin-1") for kind, script in file.scripts.items()},
            "triggers": file.triggers,
            "replaces": file.replaces,
            "priority": file.replaces_priority,
            "entries": [_store_entry(entry) for entry in file.entries],
        }
        self._kept.add(key, json.dumps(record, separators=(",", ":")).encode(), blob)
        return replace(file, entries=tuple(replace(entry, node=moved(entry.node, place)) for entry in file.entries))


def _largest_first(packages: Iterable[PlannedPackage]) -> list[PlannedPackage]:
    """Return packages in an order in which several processors end at nearly the same time."""
    return sorted(packages, key=lambda planned: planned.package.installed_size, reverse=True)


def _in_parallel(jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    return side_by_side(jobs, workers=usable_processors(_MOST_THREADS))


def _key(planned: PlannedPackage, base: Base) -> str:
    keyring: Keyring = base.keyring_of(planned.url)
    return hashlib.sha256(f"{_FORMAT}\n{planned.package.identity}\n{keyring.digest}".encode()).hexdigest()


def _store_entry(entry: PackageEntry) -> list[Any]:
    checksum = None if entry.checksum is None else entry.checksum.hex()
    return [entry.path, checksum, entry.uname, entry.gname, store_node(entry.node, store_content)]


def _load(record: Mapping[str, Any], blob: Path) -> PackageFile:
    content = partial(load_content, blob)
    entries = tuple(
        PackageEntry(path, load_node(node, content), None if checksum is None else bytes.fromhex(checksum), *names)
        for path, checksum, *names, node in record["entries"]
    )
    scripts = {kind: text.encode("latin-1") for kind, text in record["scripts"].items()}
    triggers, replaces = tuple(record["triggers"]), tuple(record["replaces"])
    return PackageFile(entries, MappingProxyType(scripts), triggers, replaces, int(record["priority"]))
