"""Compare a tar archive of a filesystem with the files that a manifest lists, member by member.

The archive may come from a hostile image: it may have a million files, names with control characters, or end in the
middle. The memory that this takes depends on the manifest only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imgkit.disk.size import show_size
from imgkit.engines.engineerrors import MAYBE_DAMAGED, LimitError, UnreadableImageError
from imgkit.engines.limits import MORE_TIME
from imgkit.rootfs.digest import NodeRecord, differences
from imgkit.tree import tarstream, xattrs_of
from imgkit.tree.tarstream import Header, TarError, TarStream

_KINDS = {
    tarstream.REGULAR: "file",
    tarstream.DIRECTORY: "directory",
    tarstream.SYMLINK: "symbolic link",
    tarstream.CHARACTER: "device",
    tarstream.BLOCK_DEVICE: "device",
    tarstream.FIFO: "device",
}
_DEVICES = {tarstream.CHARACTER: "c", tarstream.BLOCK_DEVICE: "b", tarstream.FIFO: "p"}
_MOST_PATHS = 500_000  # of an archive whose records are kept; they take half a gigabyte of memory
_MOST_KEPT = 64 << 20  # bytes of a file whose content is kept
_MOST_UNEXPECTED = 10_000  # paths that are not in the manifest and are listed
LOST_AND_FOUND: Mapping[str, NodeRecord] = {"/lost+found": {"type": "directory", "mode": "0700", "uid": 0, "gid": 0}}
"""The folder that mke2fs makes, which is not in the manifest."""


@dataclass(frozen=True)
class Contents:
    """The result of comparing an archive.

    Attributes:
        lines: one line for each path that is not as expected, sorted; of unexpected paths the first 10,000.
        paths: how many paths the archive has.
        more: how many unexpected paths are not in ``lines``.
        fault: why the archive could not be read to its end; empty if it could.
    """

    lines: tuple[str, ...]
    paths: int
    more: int = 0
    fault: str = ""


def compare_archive(pieces: Iterable[bytes], expected: Mapping[str, NodeRecord], deadline: float) -> Contents:
    """Compare a tar archive with the records of a manifest.

    Args:
        pieces: the bytes of the archive.
        expected: path → record, as :func:`imgkit.rootfs.digest.records` makes them.
        deadline: in the time of :func:`time.monotonic`.

    Raises:
        LimitError: the comparison took too long.
    """
    records: dict[str, NodeRecord] = {}
    paths = unexpected = 0
    fault = ""
    stream = TarStream(iter(pieces))
    try:
        for header in stream:
            if time.monotonic() > deadline:
                raise LimitError("the files of the image could not be compared in time", hint=MORE_TIME)
            path = _path(header.name)
            paths += 1
            unexpected += path not in expected
            if path in expected or unexpected <= _MOST_UNEXPECTED:
                records[path] = _record(header, stream, records)
    except TarError as cause:
        fault = f"the archive of its files {cause}"
    lines = differences(with_one_leader(expected), with_one_leader(records))
    return Contents(tuple(lines), paths, max(0, unexpected - _MOST_UNEXPECTED), fault)


@dataclass(frozen=True)
class ArchivedFiles:
    """The files of an archive: path → record, and the contents of the files that were asked for."""

    records: Mapping[str, NodeRecord]
    kept: Mapping[str, bytes]


def read_archive(pieces: Iterable[bytes], deadline: float, keep: Collection[str] = ()) -> ArchivedFiles:
    """Read a tar archive: a record for each of its paths, with hard links in one form (:func:`with_one_leader`).

    Args:
        pieces: the bytes of the archive.
        deadline: in the time of :func:`time.monotonic`.
        keep: paths of regular files whose contents are returned.

    Raises:
        LimitError: there are more than 500,000 paths, a file that is kept has more than 64 MiB, or it took too long.
        UnreadableImageError: the archive is damaged.
    """
    records: dict[str, NodeRecord] = {}
    kept: dict[str, bytes] = {}
    stream = TarStream(iter(pieces))
    try:
        for header in stream:
            if time.monotonic() > deadline:
                raise LimitError("the files of the image could not be compared in time", hint=MORE_TIME)
            if len(records) >= _MOST_PATHS:
                raise LimitError(f"the image has more than {_MOST_PATHS} files")
            path = _path(header.name)
            copy = bytearray() if path in keep else None
            if copy is not None and header.size > _MOST_KEPT:
                raise LimitError(f"{path}: has {show_size(header.size)}, more than {show_size(_MOST_KEPT)}")
            records[path] = _record(header, stream, records, copy)
            if copy is not None:
                kept[path] = bytes(copy)
    except TarError as cause:
        raise UnreadableImageError(f"the archive of its files {cause}", hint=MAYBE_DAMAGED) from cause
    return ArchivedFiles(with_one_leader(records), kept)


def _path(name: str) -> str:
    """Return the path of a member in the filesystem, as the manifest has it."""
    inside = name.removeprefix("./").strip("/")
    return "/" if inside == "." else "/" + inside


def _record(
    header: Header, stream: TarStream, records: Mapping[str, NodeRecord], copy: bytearray | None = None
) -> NodeRecord:
    """Return the record of a member.

    Args:
        records: those of the members before it, which a hard link refers to.
        copy: takes the content of a regular file.
    """
    if header.kind == tarstream.HARD_LINK:
        target = _path(header.link)
        first = records.get(target, {"type": "file"})
        return {**first, "link": first.get("link", target)}
    owner = {"mode": f"{header.mode:04o}", "uid": header.uid, "gid": header.gid}
    record: dict[str, Any] = {"type": _KINDS[header.kind], **owner}
    if header.kind == tarstream.REGULAR:
        record |= {"size": header.size, "sha256": _sha256(stream.content(), copy)}
    elif header.kind == tarstream.SYMLINK:
        record["target"] = header.link
    elif header.kind in _DEVICES:
        record["device"] = _device(header)
    xattrs = xattrs_of(header.pax)
    if xattrs:
        record["xattrs"] = {name: value.hex() for name, value in sorted(xattrs.items())}
    return record


def _device(header: Header) -> str:
    return f"{_DEVICES[header.kind]} {header.major}:{header.minor}"


def _sha256(pieces: Iterator[memoryview], copy: bytearray | None) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        if copy is not None:
            copy += piece
    return digest.hexdigest()


def with_one_leader(records: Mapping[str, NodeRecord]) -> dict[str, NodeRecord]:
    """Return the records with hard links in one form: a file's other names link to its alphabetically first name.

    An archive may have the names in any order.
    """
    groups: dict[str, list[str]] = {}
    for path, record in records.items():
        if isinstance(record.get("link"), str):
            groups.setdefault(record["link"], []).append(path)
    changed = dict(records)
    for target, others in groups.items():
        first, *rest = sorted({target, *others} & records.keys() | {target})
        for path in {first, *rest} & records.keys():
            own = {key: value for key, value in records[path].items() if key != "link"}
            changed[path] = own if path == first else {**own, "link": first}
    return changed
