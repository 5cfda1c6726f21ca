"""Read a finished image through libguestfs: for ``imgkit inspect`` and ``imgkit verify``.

Everything that comes back was written by the author of the image. It is read within limits, and parsed as text that may
hold anything. What the methods do is specified in :mod:`imgkit.engines.reading`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgkit.disk.layout import SECTOR, TYPE_GUIDS
from imgkit.disk.regions import BACKUP_SIZE
from imgkit.disk.size import show_size
from imgkit.engines.engineerrors import MAYBE_DAMAGED, LimitError, NoSpaceError, UnreadableImageError
from imgkit.engines.guestfs.appliancestart import wait
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Drive, Options, opened
from imgkit.engines.guestfs.lookscripts import (
    DATABASE,
    OFFSET,
    PARTITIONS_SCRIPT,
    look_script,
    mount_script,
    tar_script,
)
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import MORE_BYTES, MORE_TIME, Limits
from imgkit.engines.reading import Archive, Filesystem, FilesystemUsage, ImageDescription, PartitionDescription

_TAR_EXTRA = 1 << 30  # bytes for tar headers beyond the size of the disk; the file is sparse
_BLOCK = 1 << 20
_SPARE = 8 << 20  # bytes that stay free on the host


class GuestfsReader:
    """A read-only view of one image. Made by :func:`open_image`."""

    def __init__(self, channel: Channel, image: Path, info: ImageInfo, drive: Path, limits: Limits) -> None:
        self._channel, self._image, self._info, self._drive, self._limits = channel, image, info, drive, limits
        self._mounted: tuple[Filesystem, bool] | None = None

    def describe(self) -> ImageDescription:
        """Describe what is in the image; see :meth:`imgkit.engines.reading.ImageReader.describe`."""
        table = self._table()
        self._mount("root", replay=True)
        output = self._shell(look_script(self._limits.size))
        counts, database, rest = f"{output}\n\n".split("\n", 2)
        kernels, _, release = rest.partition("\n\n")
        block, blocks, free, inodes, inodes_free = map(int, counts.split())
        return ImageDescription(
            format=self._info.format,
            virtual_size=self._info.virtual_size,
            file_size=self._info.file_size,
            disk_guid=table.guid,
            partitioned_size=table.size,
            partitions=table.partitions,
            root=FilesystemUsage(
                size=block * blocks,
                used=block * (blocks - free),
                free=block * free,
                inodes=inodes,
                inodes_used=inodes - inodes_free,
            ),
            os_release=parse_os_release(base64.b64decode(release).decode(errors="replace")),
            kernels=tuple(kernels.split()),
            apk_installed=self._database(database),
        )

    def archive(self, filesystem: Filesystem = "root", *, replay: bool = True) -> Archive:
        """Read a filesystem as a tar archive; see :meth:`imgkit.engines.reading.ImageReader.archive`."""
        self._mount(filesystem, replay=replay)
        first_line, _, complaints = self._shell(tar_script(self._limits.size)).partition("\n")
        size, completeness = first_line.split()
        return Archive(self._drive, OFFSET, int(size), completeness == "whole", complaints.strip())

    def _database(self, size: str) -> str:
        """Return the package database, which the script has copied to the scratch drive.

        Args:
            size: what the script printed: the size in bytes, "none", or "special" for what is not a regular file.
        """
        if size == "none":
            return ""
        if not size.isdigit():
            raise UnreadableImageError(f"{self._image}: /{DATABASE} is not a regular file")
        if int(size) > self._limits.size:
            sizes = f"{show_size(int(size))}, more than {show_size(self._limits.size)}"
            raise LimitError(f"{self._image}: /{DATABASE} has {sizes}", hint=MORE_BYTES)
        pieces = Archive(self._drive, OFFSET, int(size), complete=True, complaints="").pieces()
        return b"".join(pieces).decode(errors="surrogateescape")

    def _mount(self, filesystem: Filesystem, *, replay: bool) -> None:
        """Mount a filesystem of the image, in place of the one that is mounted.

        Args:
            replay: whether the journal is replayed; that writes to an overlay in the appliance.
        """
        if self._mounted == (filesystem, replay):
            return
        partitions = self._table().partitions
        find = find_root if filesystem == "root" else find_esp
        number = find(self._image, partitions)
        self._mounted = None
        self._shell(mount_script(filesystem, number, replay=replay))
        self._mounted = filesystem, replay

    def _table(self) -> PartitionTable:
        return parse_partitions(self._image, self._shell(PARTITIONS_SCRIPT))

    def _shell(self, script: str) -> str:
        """Run a script in the appliance within the limits, and return its output."""
        try:
            if time.monotonic() > self._limits.deadline:  # many short requests take long, too
                raise TimeoutError
            self._channel.post({"op": "sh", "script": script})
            return str(self._channel.take(self._limits.deadline, self._watch_space))
        except TimeoutError as cause:
            message = f"{self._image}: could not be read within {self._limits.seconds:g} s"
            raise LimitError(message, hint=f"{MORE_TIME}; the image may be made to take forever") from cause
        except ApplianceError as cause:
            reason = re.sub(r"\s+", " ", cause.message).strip()
            raise UnreadableImageError(f"{self._image}: cannot be read: {reason}", hint=MAYBE_DAMAGED) from cause

    def _watch_space(self) -> None:
        """Stop before the disk of the scratch drive is full, on which QEMU would halt for good."""
        status = os.statvfs(self._drive)
        if status.f_bavail * status.f_frsize < _SPARE:
            raise NoSpaceError(f"{self._drive.parent}: no space left for what is read of the image", hint="make room")


def find_esp(image: Path, partitions: tuple[PartitionDescription, ...]) -> int:
    """Return the number of the EFI system partition: the first one if there are several.

    Raises:
        UnreadableImageError: there is none.
    """
    for partition in partitions:
        if partition.type.upper() == TYPE_GUIDS["esp"]:
            return partition.number
    raise UnreadableImageError(f"{image}: has no EFI system partition")


def find_root(image: Path, partitions: tuple[PartitionDescription, ...]) -> int:
    """Return the number of the root partition: the largest ext4 of the right partition type, or else of any type.

    Raises:
        UnreadableImageError: there is no ext4 filesystem.
    """
    candidates = [partition for partition in partitions if partition.filesystem == "ext4"]
    if not candidates:
        raise UnreadableImageError(f"{image}: has no ext4 filesystem")
    typed = [partition for partition in candidates if partition.type.upper() == TYPE_GUIDS["root"]]
    return max(typed or candidates, key=lambda partition: partition.size).number


@dataclass(frozen=True)
class PartitionTable:
    """A partition table.

    Attributes:
        guid: of the disk.
        size: bytes of the disk that the table was made for; 0 if it does not say.
        partitions: in the order of their places.
    """

    guid: str
    size: int
    partitions: tuple[PartitionDescription, ...]


def parse_partitions(image: Path, output: str) -> PartitionTable:
    """Parse what ``PARTITIONS_SCRIPT`` printed: the JSON of sfdisk, and paragraphs of blkid's for each partition.

    Raises:
        UnreadableImageError: there is no partition table, or none of type GPT.
    """
    table, *paragraphs = output.split("\n\n")
    try:
        body = json.loads(table)
    except ValueError as cause:
        raise UnreadableImageError(f"{image}: has no partition table") from cause
    filesystems = dict(map(_parse_blkid, paragraphs))
    if "bare" in body:
        return _bare_table(int(body["bare"]), filesystems.get("0", {}))
    parsed = body["partitiontable"]
    if parsed.get("label") != "gpt":
        raise UnreadableImageError(f"{image}: its partition table is {parsed.get('label')}, not GPT")
    partitions = [_partition(entry, filesystems) for entry in parsed.get("partitions", ())]
    usable = int(str(parsed.get("lastlba", 0)))  # the last sector before the backup table
    size = (usable + 1) * SECTOR + BACKUP_SIZE if usable else 0
    return PartitionTable(parsed["id"], size, tuple(sorted(partitions, key=lambda partition: partition.start)))


def _bare_table(size: int, found: Mapping[str, str]) -> PartitionTable:
    """Return the table of a disk of ``size`` bytes that is a filesystem as a whole: partition 0 is what blkid found."""
    filesystem, label, fs_uuid = (found.get(name, "") for name in ("TYPE", "LABEL", "UUID"))
    root = PartitionDescription(0, TYPE_GUIDS["root"], "", "", 0, size, filesystem, label, fs_uuid)
    return PartitionTable("", 0, (root,))


def _partition(entry: Mapping[str, object], filesystems: Mapping[str, Mapping[str, str]]) -> PartitionDescription:
    """Return a partition, from its entry in the JSON of sfdisk and what blkid has found, by number."""
    number = re.sub(r".*?([0-9]+)$", r"\1", str(entry["node"]))
    filesystem = filesystems.get(number, {})
    return PartitionDescription(
        number=int(number),
        type=str(entry["type"]),
        name=str(entry.get("name", "")),
        uuid=str(entry.get("uuid", "")),
        start=int(str(entry["start"])) * SECTOR,
        size=int(str(entry["size"])) * SECTOR,
        filesystem=filesystem.get("TYPE", ""),
        label=filesystem.get("LABEL", ""),
        fs_uuid=filesystem.get("UUID", ""),
    )


def _parse_blkid(paragraph: str) -> tuple[str, dict[str, str]]:
    """Return the number of a partition, and the values that ``blkid -o export`` printed."""
    number, _, lines = paragraph.strip().partition("\n")
    return number, dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)


def parse_os_release(text: str) -> dict[str, str]:
    """Return the assignments of an os-release file (os-release(5)), with quotes removed."""
    assignments = re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE)
    return {name: value.strip().strip("\"'") for name, value in assignments}


@contextmanager
def open_image(
    image: Path, scratch: Path, options: Options, limits: Limits | None = None, *, info: ImageInfo | None = None
) -> Iterator[GuestfsReader]:
    """Start an appliance that sees ``image`` read-only.

    Args:
        image: qcow2 or raw. It is never changed.
        scratch: an empty folder for temporary files.
        options: how the appliance runs.
        limits: how many bytes the appliance may hand over, which take as much space in ``scratch``, and how long
            reading may take. The default is the size of the disk, and 900 s.
        info: the format and size, if they are known; otherwise they are read. A raw disk may begin like a qcow2 file.

    Raises:
        UnreadableImageError: the file is not an image that can be read.
        EngineStartError: the appliance cannot be started on this host.
        NoSpaceError: there is no space for the scratch drive.
    """
    info = info or image_info(image)
    limits = limits or Limits(info.virtual_size + _TAR_EXTRA)
    drive = scratch / "tar.raw"
    try:
        with drive.open("wb") as file:
            file.truncate((limits.size // _BLOCK + 2) * _BLOCK)
    except OSError as cause:
        raise NoSpaceError(f"{scratch}: no room for {show_size(limits.size)}: {cause.strerror}") from cause
    deadline = time.monotonic() + options.launch_timeout
    drives = [Drive(image.resolve(), info.format, readonly=True), Drive(drive)]
    try:
        with opened(scratch, drives, options) as channel:
            wait(channel, deadline, options)
            yield GuestfsReader(channel, image, info, drive, limits)
    finally:
        drive.unlink(missing_ok=True)
