"""Looking into a finished image through libguestfs, read-only: for ``imgkit inspect`` and ``imgkit verify``."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imgkit.disk.layout import SECTOR, TYPE_GUIDS
from imgkit.disk.size import show_size
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Drive, Options, opened, wait
from imgkit.engines.guestfs.scripts import PRELUDE
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import Limits
from imgkit.errors import HostError, InputError

_TAR_EXTRA = 1 << 30  # room for tar headers beyond the size of the disk; the file is sparse
_BLOCK = 1 << 20
Mounted: TypeAlias = Literal["root", "esp"]

_SPARE = 8 << 20  # bytes that stay free on the host


@dataclass(frozen=True)
class Archive:
    """A tar archive of a filesystem of the image, on the scratch drive of the appliance.

    Attributes:
        size: bytes of it.
        whole: False if there was more than the drive holds.
        said: what tar complained of: things that could not be read, and what no archive can hold.
    """

    path: Path
    size: int
    whole: bool
    said: str

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        left = self.size
        with self.path.open("rb") as source:
            source.seek(_BLOCK)
            while left and (data := source.read(min(left, _BLOCK))):
                left -= len(data)
                yield data


class ImageReader:
    """A read-only view of one image. Made by :func:`open_image`."""

    def __init__(self, channel: Channel, image: Path, info: ImageInfo, drive: Path, limits: Limits) -> None:
        self._channel, self._image, self._info, self._drive, self._limits = channel, image, info, drive, limits
        self._mounted = ""

    def describe(self) -> dict[str, Any]:
        """What is in the image.

        Returns:
            ``format``, ``virtual_size``, ``file_size`` (bytes); ``disk_guid``; ``partitions``: a list of dicts with
            ``number``, ``type`` (GUID), ``name``, ``uuid``, ``start`` and ``size`` (bytes), ``filesystem``, ``label``
            and ``fs_uuid``; ``root``: ``size``, ``used``, ``free`` (bytes), ``inodes``, ``inodes_used``;
            ``os_release`` (a dict), ``kernels`` (names below ``lib/modules``), ``apk_installed`` (text of the
            database, "" if there is none).

        Raises:
            InputError: the image is damaged, has no Linux root filesystem, or what is read of it is too large or no
                regular file.
        """
        disk_guid, partitions = self._partitions()
        self.mount("root")
        said = self._shell(look_script(self._limits.size))
        counts, database, rest = f"{said}\n\n".split("\n", 2)
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
            "os_release": parse_os_release(base64.b64decode(release).decode(errors="replace")),
            "kernels": kernels.split(),
            "apk_installed": self._database(database),
        }

    def _database(self, said: str) -> str:
        """The database that the script has put on the scratch drive; ``said`` is its size, or why it is not there."""
        if said == "none":
            return ""
        if not said.isdigit():
            raise InputError(f"{self._image}: /{DATABASE} is no regular file")
        size = int(said)
        if size > self._limits.size:
            message = f"{self._image}: /{DATABASE} has {show_size(size)}, more than {show_size(self._limits.size)}"
            raise InputError(message, hint="--limit reads more")
        pieces = Archive(self._drive, size, whole=True, said="").pieces()
        return b"".join(pieces).decode(errors="surrogateescape")

    def archive(self, kind: Mounted = "root", *, replay: bool = True) -> Archive:
        """A filesystem of the image as a tar archive (pax, numeric owners, extended attributes), sorted by name.

        It is on the scratch drive, so it stays until the next call only.

        Args:
            replay: as in :meth:`mount`.

        Raises:
            InputError: the image has no such filesystem, it cannot be mounted, or it took too long.
        """
        self.mount(kind, replay=replay)
        first, _, said = self._shell(tar_script(self._limits.size)).partition("\n")
        size, whole = first.split()
        return Archive(self._drive, int(size), whole == "whole", said.strip())

    def mount(self, kind: Mounted = "root", *, replay: bool = True) -> None:
        """Mount a filesystem of the image, in place of the one that is mounted.

        Args:
            replay: as the kernel sees it after it has replayed the journal, which it does when the image boots. It
                writes to an overlay of the appliance. Boot loaders do not do that, and see what is there without.
        """
        wanted = f"{kind} {replay}"
        if self._mounted == wanted:
            return
        what = self._find_root() if kind == "root" else self._find_esp()
        filesystem, options = ("ext4", "errors=continue") if kind == "root" else ("vfat", "errors=continue,umask=022")
        if kind == "root" and not replay:
            options += ",noload"
        self._mounted = ""
        self._shell(
            f"{PRELUDE}disk=$(drive 0)\nif mountpoint -q /sysroot; then umount /sysroot; fi\n"
            f'mount -t {filesystem} -o {SAFE},{options} "${{disk}}{what}" /sysroot\n'
        )
        self._mounted = wanted

    def _find_esp(self) -> str:
        partitions = self._partitions()[1]
        esp = [part for part in partitions if part["type"].upper() == TYPE_GUIDS["esp"]]
        if not esp:
            raise InputError(f"{self._image}: has no EFI system partition")
        return str(esp[0]["number"])

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
            if time.monotonic() > self._limits.deadline:  # many quick questions take long, too
                raise TimeoutError
            self._channel.post({"op": "sh", "script": script})
            return str(self._channel.take(self._limits.deadline, self._watch_space))
        except TimeoutError as cause:
            message = f"{self._image}: could not be read within {self._limits.seconds:g} s"
            raise InputError(message, hint="--timeout gives it more; the image may be made to take for ever") from cause
        except ApplianceError as cause:
            said = re.sub(r"\s+", " ", cause.message).strip()
            raise InputError(f"{self._image}: cannot be read: {said}", hint="the image may be damaged") from cause

    def _watch_space(self) -> None:
        """QEMU halts for good when the disk of the scratch drive is full, so stop before that."""
        status = os.statvfs(self._drive)
        if status.f_bavail * status.f_frsize < _SPARE:
            raise HostError(f"{self._drive.parent}: no space left for what is read of the image", hint="make room")


SAFE = "ro,nodev,nosuid,noexec"
"""How the filesystems of an image are mounted: nothing in it is a device or a program to the appliance."""

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
DATABASE = "lib/apk/db/installed"

BENEATH = """
beneath() {
    local todo=$1 here=$root part target links=0
    while [ -n "$todo" ]; do
        part=${todo%%/*}
        case $todo in */*) todo=${todo#*/} ;; *) todo= ;; esac
        case $part in
            ''|.) continue ;;
            ..) if [ "$here" != "$root" ]; then here=${here%/*}; fi; continue ;;
        esac
        here=$here/$part
        if [ -L "$here" ]; then
            links=$((links + 1))
            if [ "$links" -gt 40 ]; then return 1; fi
            target=$(readlink -n "$here"; echo .)
            target=${target%.}
            case $target in /*) here=$root ;; *) here=${here%/*} ;; esac
            todo=$target/$todo
        fi
    done
    result=$here
}
"""
"""A function of bash: ``beneath PATH`` sets ``result`` to where ``PATH`` leads to below ``$root``, as in a chroot.

The kernel would follow links of the image into the appliance. Status 1 for more than 40 links.
"""

_TEXT = 65536  # bytes of os-release and of the list of kernels that are looked at


def look_script(limit: int) -> str:
    """Print how full the root filesystem is, the size of the package database, the kernels, and os-release in base64.

    The database itself goes to the scratch drive, from 1 MiB on, if it has at most ``limit`` bytes.
    """
    return f"""{PRELUDE}{BENEATH}
root=/sysroot
target=$(drive 1)
stat -f -c '%S %b %f %c %d' "$root"
if ! beneath {DATABASE} || [ ! -e "$result" ]; then echo none
elif [ ! -f "$result" ]; then echo special
else
    size=$(stat -c %s "$result")
    if [ "$size" -le {limit} ]; then
        dd if="$result" of="$target" bs={_BLOCK} seek=1 count={-(-limit // _BLOCK)} oflag=direct status=none
    fi
    echo "$size"
fi
if beneath lib/modules && [ -d "$result" ]; then {{ ls -b "$result" 2>/dev/null || true; }} | head -c {_TEXT}; fi
echo
for path in etc/os-release usr/lib/os-release; do
    if beneath "$path" && [ -f "$result" ]; then head -c {_TEXT} "$result" | base64; break; fi
done
"""


def tar_script(limit: int) -> str:
    """Write what is mounted at /sysroot to the scratch drive as a tar archive of at most ``limit`` bytes.

    The archive begins at 1 MiB, past anything that looks for partition tables. A line is printed with its size and
    "whole" or "more"; what tar complained of follows.
    """
    most = -(-limit // _BLOCK) * _BLOCK
    return f"""{PRELUDE}
target=$(drive 1)
set +e
tar -C /sysroot --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --xattrs --xattrs-include='*' \\
    --one-file-system --sort=name -b 2048 -cf - . 2>/tmp/tar.said |
    dd of="$target" bs={_BLOCK} seek=1 count={most // _BLOCK} iflag=fullblock oflag=direct 2>/tmp/dd.said
ended=("${{PIPESTATUS[@]}}")
set -e
if [ "${{ended[1]}}" != 0 ]; then cat /tmp/dd.said; exit 1; fi
size=$(tail -n 1 /tmp/dd.said)
size=${{size%% *}}
if [ "$size" -lt {most} ] || [ "${{ended[0]}}" = 0 ]; then echo "$size whole"; else echo "$size more"; fi
head -c {_TEXT} /tmp/tar.said
"""


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
def open_image(
    image: Path, scratch: Path, options: Options, limits: Limits | None = None, *, info: ImageInfo | None = None
) -> Iterator[ImageReader]:
    """Start an appliance that sees ``image`` read-only.

    Args:
        image: qcow2 or raw; is never changed.
        scratch: an empty folder for temporary files.
        options: how the appliance runs.
        limits: bytes that the appliance may hand over, which take as much room in ``scratch``, and how long reading
            may take; none takes the size of the disk.
        info: what is known of the image already. A raw disk may begin like a qcow2 file.

    Raises:
        InputError: this is no image that can be read.
        HostError: the appliance cannot be started here.
    """
    info = info or image_info(image)
    limits = limits or Limits(info.virtual_size + _TAR_EXTRA)
    drive = scratch / "tar.raw"
    try:
        with drive.open("wb") as file:
            file.truncate((limits.size // _BLOCK + 2) * _BLOCK)
    except OSError as cause:
        raise HostError(f"{scratch}: no room for {show_size(limits.size)}: {cause.strerror}") from cause
    deadline = time.monotonic() + options.launch_timeout
    drives = [Drive(image.resolve(), info.format, readonly=True), Drive(drive)]
    try:
        with opened(scratch, drives, options) as channel:
            wait(channel, deadline, options)
            yield ImageReader(channel, image, info, drive, limits)
    finally:
        drive.unlink(missing_ok=True)
