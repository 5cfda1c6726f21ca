"""Compare an archive of a filesystem with what a manifest lists, member by member.

The archive may be of a hostile image: a million files, names with control characters, an end in the middle. What is
kept in memory is bounded by the manifest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imgkit.apk import tarstream
from imgkit.apk.tarstream import Header, TarError, TarStream
from imgkit.errors import InputError
from imgkit.rootfs.digest import NodeRecord, differences
from imgkit.tree import xattrs_of

_KINDS = {
    tarstream.REGULAR: "file",
    tarstream.DIRECTORY: "directory",
    tarstream.SYMLINK: "symbolic link",
    tarstream.CHARACTER: "device",
    tarstream.BLOCK_DEVICE: "device",
    tarstream.FIFO: "device",
}
_DEVICES = {tarstream.CHARACTER: "c", tarstream.BLOCK_DEVICE: "b", tarstream.FIFO: "p"}
_KEPT = 10_000  # paths that are not in the manifest and are still looked at
LOST_AND_FOUND: Mapping[str, NodeRecord] = {"/lost+found": {"type": "directory", "mode": "0700", "uid": 0, "gid": 0}}
"""What mke2fs makes besides the files of the manifest."""


@dataclass(frozen=True)
class Contents:
    """What an archive was found to hold.

    Attributes:
        lines: one for each path that is not as it should be, sorted; of unexpected ones the first 10,000.
        paths: how many there are in the archive.
        more: unexpected paths that are not in ``lines``.
        fault: why the archive could not be read to its end; empty if it could.
    """

    lines: tuple[str, ...]
    paths: int
    more: int = 0
    fault: str = ""


def compare_archive(pieces: Iterable[bytes], expected: Mapping[str, NodeRecord], deadline: float) -> Contents:
    """Compare a tar archive with ``expected``: path → record, as :func:`imgkit.rootfs.digest.records` makes them.

    Args:
        deadline: in the time of :func:`time.monotonic`.

    Raises:
        InputError: it took too long.
    """
    found: dict[str, NodeRecord] = {}
    paths = strangers = 0
    fault = ""
    stream = TarStream(iter(pieces))
    try:
        for header in stream:
            if time.monotonic() > deadline:
                raise InputError("the files of the image could not be compared in time", hint="--timeout gives more")
            path = _path(header.name)
            paths += 1
            strangers += path not in expected
            if path in expected or strangers <= _KEPT:
                found[path] = _record(header, stream, found)
    except TarError as cause:
        fault = f"the archive of its files {cause}"
    lines = differences(with_one_leader(expected), with_one_leader(found))
    return Contents(tuple(lines), paths, max(0, strangers - _KEPT), fault)


def _path(name: str) -> str:
    inside = name.removeprefix("./").strip("/")
    return "/" if inside == "." else "/" + inside


def _record(header: Header, stream: TarStream, found: Mapping[str, NodeRecord]) -> NodeRecord:
    if header.kind == tarstream.HARD_LINK:
        target = _path(header.link)
        first = found.get(target, {"type": "file"})
        return {**first, "link": first.get("link", target)}
    owner = {"mode": f"{header.mode:04o}", "uid": header.uid, "gid": header.gid}
    facts: dict[str, Any] = {"type": _KINDS[header.kind], **owner}
    if header.kind == tarstream.REGULAR:
        facts |= {"size": header.size, "sha256": _sha256(stream.content())}
    elif header.kind == tarstream.SYMLINK:
        facts["target"] = header.link
    elif header.kind in _DEVICES:
        facts["device"] = _device(header)
    xattrs = xattrs_of(header.pax)
    if xattrs:
        facts["xattrs"] = {name: value.hex() for name, value in sorted(xattrs.items())}
    return facts


def _device(header: Header) -> str:
    return f"{_DEVICES[header.kind]} {header.major}:{header.minor}"


def _sha256(pieces: Iterator[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def with_one_leader(records: Mapping[str, NodeRecord]) -> dict[str, NodeRecord]:
    """The same records, but of all names of one file the first in the alphabet is the one that the others link to."""
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
