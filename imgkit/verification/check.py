"""Compare an image with its manifest, the quick way first.

1. The files: equal SHA-256 means the very file that was built.
2. Where the image's differs, the disk that a guest sees, byte by byte. This needs no appliance.
3. Where parts of that differ which hold files, the files, so that the difference gets names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imgkit.disk.regions import CHUNK, ESP, ROOT
from imgkit.disk.size import show_size
from imgkit.engines.guestfs.limits import DEFAULT_SECONDS, Limits
from imgkit.engines.guestfs.rawcopy import oddities, raw_disk
from imgkit.engines.guestfs.readback import Archive, ImageInfo, ImageReader, Mounted
from imgkit.errors import InputError
from imgkit.rootfs.digest import NodeRecord
from imgkit.verification.beside import compare_boot_files, is_as_built
from imgkit.verification.contents import LOST_AND_FOUND, Contents, compare_archive
from imgkit.verification.disk import DiskReport, compare_disk
from imgkit.verification.statement import Statement

log = logging.getLogger("imgkit")

Opener = Callable[[Path, Limits], AbstractContextManager[ImageReader]]
"""Starts an appliance that sees a raw disk: disk, limits → reader."""

_LEAST = 1 << 30
_HEADERS = 4096  # bytes of a path in an archive besides its content
_SAID = 5  # complaints of tar that are repeated


@dataclass
class Verification:
    """What came out.

    Attributes:
        proved: sentences about what is as it was built.
        faults: one line for each thing that is not; the image is as it was built where there are none.
    """

    proved: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is compared: the image, what is known of its file, and a folder for scratch files."""

    image: Path
    info: ImageInfo
    scratch: Path


def limits_for(stated: Statement, size: int | None, seconds: float | None) -> Limits:
    """Limits of reading an image of which this is stated, unless they are given: twice what was built."""
    disk = len(stated.disk.hashes) * CHUNK if stated.disk else 0
    files = sum(_size_of(record) + _HEADERS for record in stated.files.values())
    return Limits(size or max(_LEAST, 2 * disk, 2 * files), seconds or DEFAULT_SECONDS)


def _size_of(record: NodeRecord) -> int:
    size = record.get("size", 0)
    return size if type(size) is int and size > 0 else 0


def verify(subject: Subject, stated: Statement, limits: Limits, opener: Opener) -> Verification:
    """Compare an image, and what lies beside it, with its manifest.

    Raises:
        InputError: it cannot be read, or takes more than ``limits`` allow.
        HostError: the host lacks something.
    """
    verdict = Verification()
    same, faults = compare_boot_files(subject.image, stated)
    verdict.faults += faults
    if stated.image is not None and is_as_built(subject.image, stated.image):
        verdict.proved.append(f"{subject.image}: the very file that was built")
    else:
        _compare_disk(subject, stated, limits, opener, verdict)
    verdict.proved += [f"{name}: the very file that was built" for name in same]
    return verdict


def _compare_disk(subject: Subject, stated: Statement, limits: Limits, opener: Opener, verdict: Verification) -> None:
    log.info("%s: not the very file that was built, so its disk is compared", subject.image)
    verdict.faults += oddities(subject.image, subject.info, limits)
    raw = raw_disk(subject.image, subject.info, subject.scratch, limits)
    if stated.disk is None:
        verdict.faults.append(
            "the manifest is of an earlier imgkit and has no map of the disk: boot sector, partition table, boot"
            " loader, EFI system partition and everything outside of files could not be compared"
        )
        _compare_files(raw, stated, limits, opener, verdict, esp=False, pending=True)
        return
    report = compare_disk(raw, subject.info.virtual_size, stated.disk, limits)
    verdict.proved += [f"{subject.image}: {line}" for line in _proved(report)]
    verdict.faults += _located(report)
    files = report.touches(ROOT) or bool(report.pending)
    if files or report.touches(ESP):
        esp = report.touches(ESP)
        _compare_files(raw, stated, limits, opener, verdict, esp=esp, pending=bool(report.pending), root=files)


def _proved(report: DiskReport) -> Iterator[str]:
    if report.differences or report.pending:
        return
    grown = report.size != report.built
    yield "the same disk in another container: every byte that a guest sees is as it was built"
    if grown:
        yield f"enlarged from {show_size(report.built)} to {show_size(report.size)}: what was added is empty"
    if report.moved:
        yield (
            "the partition table was adapted to the new size: the size in the protective MBR, the place of the backup"
            " table, the last usable sector and the checksum differ, all else in it is as it was built"
        )


def _located(report: DiskReport) -> Iterator[str]:
    if report.pending:
        yield f"root filesystem: {report.pending}"
    regions = list(dict.fromkeys(each.region for each in report.differences))
    for region in regions:
        ranges = [(each.start, each.end) for each in report.differences if each.region == region]
        size = sum(end - start for start, end in ranges)
        shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:10])
        rest = f" and {len(ranges) - 10} more" if len(ranges) > 10 else ""
        yield f"{region}: differs within {size} bytes of the disk, at {shown}{rest}"


# ---- files -----------------------------------------------------------------------------------------------------------


def _compare_files(
    raw: Path,
    stated: Statement,
    limits: Limits,
    opener: Opener,
    verdict: Verification,
    *,
    esp: bool,
    pending: bool,
    root: bool = True,
) -> None:
    """Name the files that differ. One that is wrong before the journal is replayed is what the boot loader reads."""
    expected = {**LOST_AND_FOUND, **stated.files}
    with opener(raw, limits) as reader:
        # Replaying writes to the appliance's overlay, so what there is without comes first.
        unplayed = _compared(reader, "root", expected, limits, replay=False) if root and pending else []
        if root:
            lines = _compared(reader, "root", expected, limits)
            verdict.faults += lines
            verdict.faults += [f"{line} (before the journal is replayed)" for line in unplayed if line not in lines]
        if esp:
            verdict.faults += _compared(reader, "esp", _on_esp(stated), limits)


def _on_esp(stated: Statement) -> dict[str, NodeRecord]:
    """The files of the EFI system partition and their folders, owned as the appliance mounts it."""
    owner = {"mode": "0755", "uid": 0, "gid": 0}
    files = {
        "/" + name: {"type": "file", "size": each.size, "sha256": each.sha256, **owner}
        for name, each in stated.esp.items()
    }
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} | {"/"}
    return {**{path: {"type": "directory", **owner} for path in folders}, **files}


def _compared(
    reader: ImageReader, kind: Mounted, expected: Mapping[str, NodeRecord], limits: Limits, *, replay: bool = True
) -> list[str]:
    """One line for each path of a filesystem that is not as expected, or one that says that all are."""
    name = {"root": ROOT, "esp": ESP}[kind]
    try:
        archive = reader.archive(kind, replay=replay)
    except InputError as cause:
        return [f"{name}: {cause.message}"]
    contents = compare_archive(archive.pieces(), expected, limits.deadline)
    prefix = f"{name}: " if kind == "esp" else ""
    lines = [prefix + line for line in contents.lines]
    lines += [f"{name}: {line}" for line in _unread(archive, contents, limits)]
    return lines or [f"{name}: all {contents.paths} paths are as the manifest says: what differs is outside of files"]


def _unread(archive: Archive, contents: Contents, limits: Limits) -> Iterator[str]:
    if contents.more:
        yield f"{contents.more} further paths are not in the manifest"
    if not archive.whole:
        yield f"more than {show_size(limits.size)} in files; what is behind that was not compared"
    elif contents.fault:
        yield contents.fault
    said = archive.said.splitlines() if archive.whole else []
    yield from (re.sub(r"^tar: ", "", line) for line in said[:_SAID])
    if len(said) > _SAID:
        yield f"{len(said) - _SAID} further complaints about what could not be read"
