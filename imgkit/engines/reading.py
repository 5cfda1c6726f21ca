"""Looking into a finished image through libguestfs, read-only: for ``imgkit inspect`` and ``imgkit verify``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from imgkit import diskimage, process
from imgkit.disk.layout import SECTOR, TYPE_GUIDS
from imgkit.engines.channel import ApplianceError, Channel, Drive, Options, opened, wait
from imgkit.engines.scripts import PRELUDE
from imgkit.errors import HostError, InputError

_TAR_EXTRA = 1 << 30  # room for tar headers beyond the size of the disk; the file is sparse
_BLOCK = 1 << 20
_MEMORY, _PATIENCE = 1 << 30, 20  # bytes and seconds for qemu-img, which reads what an image's author wrote
_IMAGES = "give it the qcow2 file that a build made, or a raw copy of it"


@dataclass(frozen=True)
class ImageInfo:
    """What qemu-img says: format, bytes of the virtual disk and bytes that the file takes."""

    format: Literal["raw", "qcow2"]
    virtual_size: int
    file_size: int


def image_info(image: Path) -> ImageInfo:
    """Format and size of an image, refused when it is not one file of its own.

    Raises:
        InputError: it is missing, damaged, no disk, of an unsupported format, or refers to other files of this host.
    """
    if not image.is_file():
        raise InputError(f"{image}: no such image")
    try:
        kind = diskimage.format_of(image)
        diskimage.check(image, kind)
        argv: list[str | Path] = ["qemu-img", "info", "-f", kind, "--output=json", image.absolute()]
        info = json.loads(process.run(argv, timeout=_PATIENCE, prepare=process.bounded(_MEMORY, _PATIENCE)))
    except HostError as cause:
        if "program not found" in cause.message:
            raise
        raise InputError(f"{image}: {cause.message}") from cause
    specific = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or specific.get("data-file"):
        raise InputError(f"{image}: refers to another file of this host, which is not followed")
    if info["format"] not in ("raw", "qcow2"):
        raise InputError(f"{image}: format {info['format']} is not supported", hint="qcow2 and raw are")
    if info["format"] == "raw" and not _is_disk(image):
        raise InputError(f"{image}: no disk image: it has neither a boot sector nor a partition table", hint=_IMAGES)
    return ImageInfo(info["format"], info["virtual-size"], info["actual-size"])


def _is_disk(image: Path) -> bool:
    """Whether a file that qemu-img calls raw, which is any that it knows nothing else of, can be a disk.

    Boot sectors and partition tables, GPT's with its protective MBR too, end their first sector with 55 AA (UEFI
    specification 5.2).
    """
    with image.open("rb") as source:
        return image.stat().st_size % SECTOR == 0 and source.read(SECTOR)[510:] == b"\x55\xaa"


class ImageReader:
    """A read-only view of one image. Made by :func:`open_image`."""

    def __init__(self, channel: Channel, image: Path, info: ImageInfo, scratch: Path) -> None:
        self._channel, self._image, self._info, self._scratch = channel, image, info, scratch
        self._root = ""

    def describe(self) -> dict[str, Any]:
        """What is in the image.

        Returns:
            ``format``, ``virtual_size``, ``file_size`` (bytes); ``disk_guid``; ``partitions``: a list of dicts with
            ``number``, ``type`` (GUID), ``name``, ``uuid``, ``start`` and ``size`` (bytes), ``filesystem``, ``label``
            and ``fs_uuid``; ``root``: ``size``, ``used``, ``free`` (bytes), ``inodes``, ``inodes_used``;
            ``os_release`` (a dict), ``kernels`` (names below ``lib/modules``), ``apk_installed`` (text of the
            database, "" if there is none).

        Raises:
            InputError: the image is damaged or has no Linux root filesystem.
        """
        disk_guid, partitions = self._partitions()
        self.mount()
        text = self._shell(_LOOK_SCRIPT)
        counts, _, rest = text.partition("\n")
        kernels, _, release = rest.partition("\n\n")
        block, blocks, free, inodes, inodes_free = map(int, counts.split())
        return {
            "format": self._info.format,
            "virtual_size": self._info.virtual_size,
            "file_size": self._info.file_size,
            "disk_guid": disk_guid,
            "partitions": partitions,
            "root": {
                "size": block * blocks,
                "used": block * (blocks - free),
                "free": block * free,
                "inodes": inodes,
                "inodes_used": inodes - inodes_free,
            },
            "os_release": parse_os_release(release),
            "kernels": kernels.split(),
            "apk_installed": self.read("/lib/apk/db/installed").decode(errors="surrogateescape"),
        }

    def read(self, path: str) -> bytes:
        """The contents of a regular file of the image; empty if there is none."""
        self.mount()
        target = self._scratch / "download"
        try:
            self._channel.call("download", path, str(target))
            return target.read_bytes()
        except ApplianceError:
            return b""
        finally:
            target.unlink(missing_ok=True)

    def read_tar(self, sink: BinaryIO) -> int:
        """Write the whole root filesystem as a tar archive (pax, numeric owners, extended attributes) to ``sink``.

        ``lost+found`` is the file system's own and is left out.

        Returns:
            Bytes written.

        Raises:
            InputError: part of the image cannot be read.
        """
        self.mount()
        counted = re.search(r"^([0-9]+) bytes", self._shell(_TAR_SCRIPT), re.MULTILINE)
        assert counted is not None, "dd says how much it copied"
        size = int(counted[1])
        with (self._scratch / "tar.raw").open("rb") as source:
            source.seek(_BLOCK)
            left = size
            while left:
                data = source.read(min(left, _BLOCK))
                if not data:
                    raise InputError(f"{self._image}: its root filesystem could not be read to the end")
                sink.write(data)
                left -= len(data)
        return size

    def mount(self) -> None:
        """Mount the root filesystem, read-only and without replaying its journal."""
        if not self._root:
            self._root = self._find_root()
            self._shell(f'{PRELUDE}disk=$(drive 0)\nmount -t ext4 -o ro,noload "${{disk}}{self._root}" /sysroot\n')

    def _find_root(self) -> str:
        partitions = self._partitions()[1]
        linux = [part for part in partitions if part["filesystem"] == "ext4"]
        if not linux:
            raise InputError(f"{self._image}: has no ext4 filesystem")
        best = [part for part in linux if part["type"].upper() == TYPE_GUIDS["root"]] or linux
        return str(max(best, key=lambda part: part["size"])["number"])

    def _partitions(self) -> tuple[str, list[dict[str, Any]]]:
        table, *filesystems = self._shell(_PARTITIONS_SCRIPT).split("\n\n")
        try:
            parsed = json.loads(table)["partitiontable"]
        except ValueError as cause:
            raise InputError(f"{self._image}: has no partition table") from cause
        if parsed.get("label") != "gpt":
            raise InputError(f"{self._image}: its partition table is {parsed.get('label')}, not GPT")
        known = dict(map(_parse_blkid, filesystems))
        return parsed["id"], sorted(
            (_partition(part, known) for part in parsed["partitions"]), key=lambda p: p["start"]
        )

    def _shell(self, script: str) -> str:
        try:
            return self._channel.shell(script)
        except ApplianceError as cause:
            said = re.sub(r"\s+", " ", cause.message).strip()
            raise InputError(f"{self._image}: cannot be read: {said}", hint="the image may be damaged") from cause


_PARTITIONS_SCRIPT = (
    PRELUDE
    + """
disk=$(drive 0)
sfdisk --json "$disk" || { echo "no partition table"; exit 1; }
for node in "$disk"[0-9]*; do
    echo
    echo "${node#"$disk"}"
    blkid -p -o export -s TYPE -s LABEL -s UUID "$node" || true
done
"""
)
_LOOK_SCRIPT = (
    PRELUDE
    + """
stat -f -c '%S %b %f %c %d' /sysroot
if [ -d /sysroot/lib/modules ]; then ls /sysroot/lib/modules; fi
echo
if [ -f /sysroot/etc/os-release ] && [ ! -L /sysroot/etc/os-release ]; then cat /sysroot/etc/os-release
elif [ -f /sysroot/usr/lib/os-release ]; then cat /sysroot/usr/lib/os-release; fi
"""
)
# The archive begins at 1 MiB of the scratch drive, past anything that looks for partition tables; dd says its length.
_TAR_SCRIPT = (
    PRELUDE
    + f"""
target=$(drive 1)
tar -C /sysroot --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --xattrs --xattrs-include='*' \\
    --one-file-system --sort=name --exclude=./lost+found -b 2048 -cf - . |
    dd of="$target" bs={_BLOCK} seek=1 iflag=fullblock oflag=direct
"""
)


def _partition(part: dict[str, Any], known: dict[str, dict[str, str]]) -> dict[str, Any]:
    number = re.sub(r".*?([0-9]+)$", r"\1", part["node"])
    filesystem = known.get(number, {})
    return {
        "number": int(number),
        "type": part["type"],
        "name": part.get("name", ""),
        "uuid": part.get("uuid", ""),
        "start": part["start"] * SECTOR,
        "size": part["size"] * SECTOR,
        "filesystem": filesystem.get("TYPE", ""),
        "label": filesystem.get("LABEL", ""),
        "fs_uuid": filesystem.get("UUID", ""),
    }


def _parse_blkid(text: str) -> tuple[str, dict[str, str]]:
    number, _, rest = text.strip().partition("\n")
    return number, dict(line.split("=", 1) for line in rest.splitlines() if "=" in line)


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file (os-release(5)), quotes removed."""
    found = re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE)
    return {name: value.strip().strip("\"'") for name, value in found}


@contextmanager
def open_image(image: Path, scratch: Path, options: Options) -> Iterator[ImageReader]:
    """Start an appliance that sees ``image`` read-only.

    Args:
        image: qcow2 or raw; is never changed.
        scratch: an empty folder for temporary files.
        options: how the appliance runs.

    Raises:
        InputError: this is no image that can be read.
        HostError: the appliance cannot be started here.
    """
    info = image_info(image)
    tar = scratch / "tar.raw"
    try:
        with tar.open("wb") as file:
            file.truncate((info.virtual_size + _TAR_EXTRA) // _BLOCK * _BLOCK)
    except OSError as cause:
        size = info.virtual_size >> 30
        raise HostError(f"{scratch}: no room for the files of a disk of {size} GiB: {cause.strerror}") from cause
    deadline = time.monotonic() + options.launch_timeout
    drives = [Drive(image.resolve(), info.format, readonly=True), Drive(tar)]
    try:
        with opened(scratch, drives, options) as channel:
            wait(channel, deadline, options)
            yield ImageReader(channel, image, info, scratch)
    finally:
        tar.unlink(missing_ok=True)
