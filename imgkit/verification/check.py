"""Compare an image with its manifest, in three stages from quick to slow:

1. The files of the build are compared. If the SHA-256 of the image is that of the manifest, it is the file that was
   built.
2. If it is another file, the disk that a guest sees is compared byte by byte. This needs no appliance.
3. If the disk differs in a part that holds files, the files are compared, so that the difference can be named.

::

    result = verify(Subject(image, image_info(image), scratch), statement, limits, open_disk)
    for line in result.faults:
        print(line)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from imgkit.disk.regions import CHUNK, ESP, ROOT
from imgkit.disk.size import show_size
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import DEFAULT_SECONDS, Limits
from imgkit.engines.rawcopy import oddities, raw_disk
from imgkit.engines.reading import Archive, Filesystem, ImageReader
from imgkit.errors import InputError
from imgkit.rootfs.digest import NodeRecord
from imgkit.verification.beside import compare_boot_files, is_as_built
from imgkit.verification.contents import LOST_AND_FOUND, Contents, compare_archive
from imgkit.verification.disk import DiskReport, compare_disk
from imgkit.verification.statement import Statement

log = logging.getLogger("imgkit")

OpenDisk: TypeAlias = Callable[[Path, Limits], AbstractContextManager[ImageReader]]
"""Opens a raw disk for reading: disk, limits → reader."""

_LEAST_LIMIT = 1 << 30  # bytes
_HEADERS = 4096  # bytes of a path in an archive besides its content
_MOST_RANGES = 10  # of a region, that are listed
_MOST_COMPLAINTS = 5  # of tar, that are repeated


@dataclass
class Verification:
    """The result of a comparison.

    Attributes:
        proved: sentences about everything that is as it was built.
        faults: one line for each difference; empty if the image is as it was built.
    """

    proved: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """The image to compare, what is known about its file, and a folder for scratch files."""

    image: Path
    info: ImageInfo
    scratch: Path


def limits_for(stated: Statement, size: int | None, seconds: float | None) -> Limits:
    """Return the limits for reading an image with this manifest. By default they are twice what was built, and 900 s.

    Args:
        size, seconds: limits that the user has given; None takes the default.
    """
    disk = len(stated.disk.hashes) * CHUNK if stated.disk else 0
    files = sum(_size_of(record) + _HEADERS for record in stated.files.values())
    return Limits(size or max(_LEAST_LIMIT, 2 * disk, 2 * files), seconds or DEFAULT_SECONDS)


def _size_of(record: NodeRecord) -> int:
    """Return the size of a file in bytes, from a record that is not trusted."""
    size = record.get("size", 0)
    return size if type(size) is int and size > 0 else 0


def verify(subject: Subject, stated: Statement, limits: Limits, open_disk: OpenDisk) -> Verification:
    """Compare an image, and the kernel and initramfs beside it, with its manifest.

    Args:
        open_disk: called for a disk whose files have to be compared.

    Raises:
        InputError: the image cannot be read (UnreadableImageError), or reading it exceeds ``limits`` (LimitError).
        HostError: the host lacks a program, a kernel or space.
    """
    result = Verification()
    same, faults = compare_boot_files(subject.image, stated)
    result.faults += faults
    if stated.image is not None and is_as_built(subject.image, stated.image):
        result.proved.append(f"{subject.image}: the very file that was built")
    else:
        count = len(result.faults)
        _compare_disk(subject, stated, limits, open_disk, result)
        if len(result.faults) > count and Path(stated.image_name).suffix not in ("", subject.image.suffix):
            result.faults.insert(count, f"{subject.image.name}: the manifest is about {stated.image_name}")
    result.proved += [f"{name}: the very file that was built" for name in same]
    return result


def _compare_disk(
    subject: Subject, stated: Statement, limits: Limits, open_disk: OpenDisk, result: Verification
) -> None:
    log.info("%s: not the very file that was built, so its disk is compared", subject.image)
    result.faults += oddities(subject.image, subject.info, limits)
    raw = raw_disk(subject.image, subject.info, subject.scratch, limits)
    if stated.disk is None:
        result.faults.append(
            "the manifest is of an earlier imgkit and has no map of the disk: boot sector, partition table, boot"
            " loader, EFI system partition and everything outside of files could not be compared"
        )
        _compare_files(raw, stated, limits, open_disk, result, esp=False, pending=True)
        return
    report = compare_disk(raw, subject.info.virtual_size, stated.disk, limits)
    result.proved += [f"{subject.image}: {line}" for line in _proved(report)]
    result.faults += _located(report)
    files = report.touches(ROOT) or bool(report.pending)
    if files or report.touches(ESP):
        esp = report.touches(ESP)
        _compare_files(raw, stated, limits, open_disk, result, esp=esp, pending=bool(report.pending), root=files)


def _proved(report: DiskReport) -> Iterator[str]:
    """Yield sentences about a disk without a difference."""
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
    """Yield one line for each region of the disk that differs, with the ranges of bytes."""
    if report.pending:
        yield f"root filesystem: {report.pending}"
    regions = dict.fromkeys(difference.region for difference in report.differences)
    for region in regions:
        ranges = [(part.start, part.end) for part in report.differences if part.region == region]
        size = sum(end - start for start, end in ranges)
        shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:_MOST_RANGES])
        rest = f" and {len(ranges) - _MOST_RANGES} more" if len(ranges) > _MOST_RANGES else ""
        yield f"{region}: differs within {size} bytes of the disk, at {shown}{rest}"


# ---- files -----------------------------------------------------------------------------------------------------------


def _compare_files(
    raw: Path,
    stated: Statement,
    limits: Limits,
    open_disk: OpenDisk,
    result: Verification,
    *,
    esp: bool,
    pending: bool,
    root: bool = True,
) -> None:
    """Name the files that differ.

    Args:
        esp, root: which filesystems are compared.
        pending: whether the journal of the root filesystem has to be replayed. Then the filesystem is compared without
            replaying it as well, since that is what the boot loader reads.
    """
    expected = {**LOST_AND_FOUND, **stated.files}
    with open_disk(raw, limits) as reader:
        # This comes first, because replaying the journal writes to the overlay of the appliance.
        not_replayed = _compared(reader, "root", expected, limits, replay=False) if root and pending else []
        if root:
            lines = _compared(reader, "root", expected, limits)
            result.faults += lines
            result.faults += [f"{line} (before the journal is replayed)" for line in not_replayed if line not in lines]
        if esp:
            result.faults += _compared(reader, "esp", _on_esp(stated), limits)


def _on_esp(stated: Statement) -> dict[str, NodeRecord]:
    """Return the records of the EFI system partition's files and folders, with the owner that the mount gives them."""
    owner = {"mode": "0755", "uid": 0, "gid": 0}
    files = {
        "/" + name: {"type": "file", "size": file.size, "sha256": file.sha256, **owner}
        for name, file in stated.esp.items()
    }
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} | {"/"}
    return {**{path: {"type": "directory", **owner} for path in folders}, **files}


def _compared(
    reader: ImageReader,
    filesystem: Filesystem,
    expected: Mapping[str, NodeRecord],
    limits: Limits,
    *,
    replay: bool = True,
) -> list[str]:
    """Return one line for each path of a filesystem that differs, or a line which says that none does."""
    name = {"root": ROOT, "esp": ESP}[filesystem]
    try:
        archive = reader.archive(filesystem, replay=replay)
    except InputError as cause:
        return [f"{name}: {cause.message}"]
    contents = compare_archive(archive.pieces(), expected, limits.deadline)
    prefix = f"{name}: " if filesystem == "esp" else ""
    lines = [prefix + line for line in contents.lines]
    lines += [f"{name}: {line}" for line in _unread(archive, contents, limits)]
    return lines or [f"{name}: all {contents.paths} paths are as the manifest says: what differs is outside of files"]


def _unread(archive: Archive, contents: Contents, limits: Limits) -> Iterator[str]:
    """Yield one line for each thing that could not be compared."""
    if contents.more:
        yield f"{contents.more} further paths are not in the manifest"
    if not archive.complete:
        yield f"more than {show_size(limits.size)} in files; what is behind that was not compared"
    elif contents.fault:
        yield contents.fault
    complaints = archive.complaints.splitlines() if archive.complete else []
    yield from (re.sub(r"^tar: ", "", line) for line in complaints[:_MOST_COMPLAINTS])
    if len(complaints) > _MOST_COMPLAINTS:
        yield f"{len(complaints) - _MOST_COMPLAINTS} further complaints about what could not be read"
