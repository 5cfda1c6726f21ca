"""What is in the folder of caches: downloads, unpacked packages, images, layers, clusters and so on.

Each part of imgkit has a folder of its own there (:mod:`imgkit.fetch.cache`, :mod:`imgkit.fetch.kept`,
:mod:`imgkit.planning.imagestore`, :mod:`imgkit.oci.layercache`, :mod:`imgkit.engines.native.clustercache`,
:mod:`imgkit.image.containermachine`,
:mod:`imgkit.engines.guestfs.quickstart`). A file that is used gets the time of its use, so the age of an entry is the
time since it was last used. Nothing here is changed::

    for entry in cache_entries(default_folder()):
        print(entry.kind, entry.name, entry.size)
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from imgkit.errors import HostError
from imgkit.host import lookup

EntryKind: TypeAlias = Literal[
    "download",
    "unfinished download",
    "record",
    "image",
    "unpacked",
    "result",
    "layer",
    "clusters",
    "machine",
    "appliance",
    "npm",
    "measurement",
    "kept",
]
"""What an entry is. Entries that are "kept" are never removed: dates of the newest indexes that were seen, the offline
mirror of a checkout, and what imgkit does not know."""

_KNOWN = ("locks",)  # empty files, which nobody may remove while others wait for them
_DAY = 86400
_PACKAGE = re.compile(rb'\{"name":"([^"]+)"')
_MOST_NAME = 512  # bytes of a record that are read for its name
_MOST_CONTROL = 1 << 20  # bytes of a package that are read for its name


@dataclass(frozen=True)
class CacheEntry:
    """A file or folder of the cache.

    Attributes:
        name: what it is, as far as that is known: ``nodejs-24.1.0-r0``, the URL of an index, a digest.
        path: relative to the folder of the cache.
        more: further files of the same entry.
        size: bytes on the disk.
        used: when it was last used, in seconds since 1970.
    """

    kind: EntryKind
    name: str
    path: Path
    more: tuple[Path, ...]
    size: int
    used: float

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files and folders."""
        return (self.path, *self.more)


def cache_entries(folder: Path) -> list[CacheEntry]:
    """Return everything that is in the cache, that which was not used for the longest time first.

    Raises:
        HostError: the folder, or one in it, may not be read.
    """
    found = [entry for part in _parts(folder) for entry in _READERS.get(part.name, _unknown)(folder, part)]
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def _parts(folder: Path) -> list[Path]:
    parts = [path for path in _listed(folder) if path.name not in _KNOWN]
    for part in parts:
        if lookup.is_folder(part, HostError):
            _listed(part)  # raises if it may not be read, which those who look into it later take for nothing there
    return parts


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if it is not there.

    Raises:
        HostError: it may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise HostError(f"{folder}: {cause.strerror}", hint="IMGKIT_CACHE names the folder of the cache") from cause


def _entry(folder: Path, kind: EntryKind, name: str, *paths: Path) -> Iterator[CacheEntry]:
    """Yield the entry of some files or folders, unless they have just been removed by another process."""
    with suppress(OSError):
        statuses = [path.lstat() for top in paths for path in _walk(top)]
        size = sum(status.st_blocks * 512 for status in statuses)
        used = max(path.lstat().st_mtime for path in paths)
        first, *more = (path.relative_to(folder) for path in paths)
        yield CacheEntry(kind, name, first, tuple(more), size, used)


def _walk(top: Path) -> Iterator[Path]:
    yield top
    if top.is_dir() and not top.is_symlink():
        for parent, folders, files in os.walk(top):
            yield from (Path(parent, name) for name in (*folders, *files))


def _downloads(folder: Path, part: Path) -> Iterator[CacheEntry]:
    """Yield the files that are named by a hash. What they are is in the records of URLs, or in the files."""
    urls = _urls(folder)
    for path in part.glob("*/*"):
        yield from _entry(folder, "download", urls.get(path.name) or _package_name(path) or path.name[:16], path)


def _urls(folder: Path) -> Mapping[str, str]:
    """Return SHA-256 → the URL that the file was downloaded from, as far as there are records of it."""
    known = {}
    for path in (folder / "urls").glob("*/*.json"):
        with suppress(OSError, ValueError, LookupError, TypeError):
            record = json.loads(path.read_bytes())
            known[str(record["sha256"])] = str(record["url"])
    return known


def _package_name(path: Path) -> str:
    """Return the name and version of a package from its ``.PKGINFO``; empty if the file is not a package."""
    with (
        suppress(tarfile.TarError, OSError, EOFError, zlib.error, ValueError),
        gzip.open(path) as source,
        tarfile.open(fileobj=source, mode="r|", ignore_zeros=True) as archive,
    ):
        for member in archive:
            if member.offset_data > _MOST_CONTROL or not member.name.startswith("."):
                return ""
            content = archive.extractfile(member) if member.name == ".PKGINFO" else None
            if content is not None:
                return _identity(content.read(_MOST_CONTROL).decode(errors="replace"))
    return ""


def _identity(info: str) -> str:
    values = dict(line.split(" = ", 1) for line in info.splitlines() if " = " in line)
    return f"{values.get('pkgname', '?')}-{values.get('pkgver', '?')}"


def _records(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.glob("*/*.json"):
        name = {"urls": "of a URL", "vouched": "of a signature"}.get(part.name, part.name)
        yield from _entry(folder, "record", f"{name}, {path.stem[:16]}", path)


def _unfinished(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.iterdir():
        yield from _entry(folder, "unfinished download", path.name, path)


def _images(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.glob("names/*.json"):
        name = path.stem[:16]
        with suppress(OSError, ValueError, LookupError, TypeError):
            name = str(json.loads(path.read_bytes())["name"])
        yield from _entry(folder, "image", name, path)
    for path in part.glob("blobs/*/*"):
        yield from _entry(folder, "image", f"{path.parent.name}:{path.name[:16]}", path)


def _layers(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.glob("*/*.json"):
        blob = path.with_suffix(".blob")
        yield from _entry(folder, "layer", path.stem[:16], path, *([blob] if blob.exists() else []))


def _clusters(folder: Path, part: Path) -> Iterator[CacheEntry]:
    """Yield an entry for all compressed chunks that were last used on the same day; there are thousands of them."""
    days: dict[int, list[tuple[Path, os.stat_result]]] = {}
    for top in part.iterdir():
        with suppress(OSError), os.scandir(top) as objects:
            for found in objects:
                with suppress(FileNotFoundError):  # a build has just removed it
                    status = found.stat(follow_symlinks=False)
                    days.setdefault(int(status.st_mtime // _DAY), []).append((Path(found.path), status))
    for chunks in days.values():
        first, *more = (path.relative_to(folder) for path, _ in chunks)
        size = sum(status.st_blocks * 512 for _, status in chunks)
        name = f"{len(chunks)} compressed chunks of disks" if more else "1 compressed chunk of a disk"
        used = max(status.st_mtime for _, status in chunks)
        yield CacheEntry("clusters", name, first, tuple(more), size, used)


def _results(kind: EntryKind, what: str) -> Callable[[Path, Path], Iterator[CacheEntry]]:
    """Return a reader of a part of the form of :mod:`imgkit.fetch.kept`."""

    def read(folder: Path, part: Path) -> Iterator[CacheEntry]:
        for name, files in _by_stem(part.glob("*/*")).items():
            yield from _entry(folder, kind, f"{what}, {name[:16]}", *files)

    return read


def _unpacked(folder: Path, part: Path) -> Iterator[CacheEntry]:
    """Yield unpacked packages, whose records begin with their names (:mod:`imgkit.planning.unpackedpackages`)."""
    for key, files in _by_stem(part.glob("*/*")).items():
        yield from _entry(folder, "unpacked", _name_in(files[0]) or key[:16], *files)


def _name_in(record: Path) -> str:
    """Return the name in the record of a package; empty if it has none."""
    with suppress(OSError), record.open("rb") as source:
        known = _PACKAGE.search(source.read(_MOST_NAME))
        return known[1].decode(errors="replace") if known else ""
    return ""


def _by_stem(paths: Iterable[Path]) -> Mapping[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(paths, reverse=True):  # the record first, by which a result counts as there
        found.setdefault(path.stem, []).append(path)
    return found


def _machines(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from _entry(folder, "machine", path.name[:16], path)


def _appliances(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.iterdir():
        if path.name != "lock":
            yield from _entry(folder, "appliance", path.name, path)


def _whole(kind: EntryKind, name: str) -> Callable[[Path, Path], Iterator[CacheEntry]]:
    return lambda folder, part: _entry(folder, kind, name, part)


def _measurements(folder: Path, part: Path) -> Iterator[CacheEntry]:
    for path in part.glob("*.json"):
        yield from _entry(folder, "measurement", f"accelerator, {path.stem[:16]}", path)


def _unknown(folder: Path, part: Path) -> Iterator[CacheEntry]:
    yield from _entry(folder, "kept", f"{part.name}, which is not imgkit's", part)


_READERS: Mapping[str, Callable[[Path, Path], Iterator[CacheEntry]]] = {
    "sha256": _downloads,
    "keyed": _downloads,
    "urls": _records,
    "vouched": _records,
    "tmp": _unfinished,
    "images": _images,
    "layers": _layers,
    "clusters": _clusters,
    "unpacked": _unpacked,
    "bases": _results("unpacked", "contents of a minirootfs"),
    "installed": _results("result", "installed packages"),
    "initramfs": _results("result", "initramfs"),
    "services": _results("result", "dependencies of services"),
    "modules": _results("result", "examined kernel modules"),
    "grub": _results("result", "GRUB's core image"),
    "machines": _machines,
    "appliance": _appliances,
    "npm": _whole("npm", "packages of payloads"),
    "probe": _measurements,
    "newest": _whole("kept", "dates of the newest indexes that were seen"),
    "fixtures": _whole("kept", "the offline mirror of a checkout (IMGKIT_FIXTURES)"),
}
"""Folder below the cache's → what yields its entries."""
