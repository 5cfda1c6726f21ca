"""Read the format and size of an image file without trusting what the file says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgkit.disk import diskimage
from imgkit.disk.layout import SECTOR
from imgkit.engines.engineerrors import UnreadableImageError
from imgkit.errors import HostError
from imgkit.host import lookup, process

_MEMORY = 1 << 30  # bytes of address space for qemu-img, which reads what the author of an image wrote
_TIMEOUT = 20  # seconds for qemu-img
_USABLE = "give it the qcow2 file that a build made, or a raw copy of it"


@dataclass(frozen=True)
class ImageInfo:
    """What qemu-img reports about an image.

    Attributes:
        format: the format of the file.
        virtual_size: bytes of the disk that a guest sees.
        file_size: bytes that the file takes on the host's disk.
    """

    format: Literal["raw", "qcow2"]
    virtual_size: int
    file_size: int


def image_info(image: Path) -> ImageInfo:
    """Return the format and size of an image that consists of one file.

    Raises:
        UnreadableImageError: the image is missing or cannot be looked up, is damaged, no disk, of an unsupported
            format, or refers to other files of this host.
        MissingProgramError: qemu-img is missing.
    """
    if not lookup.is_file(image, UnreadableImageError):
        if lookup.is_folder(image, UnreadableImageError):
            hint = "imgkit run, inspect and verify take the container image in such a folder"
            raise UnreadableImageError(f"{image}: a folder, not a disk image", hint=hint)
        raise UnreadableImageError(f"{image}: no such image")
    try:
        kind = diskimage.format_of(image)
        diskimage.check(image, kind)
        argv: list[str | Path] = ["qemu-img", "info", "-f", kind, "--output=json", image.absolute()]
        info = json.loads(process.run(argv, timeout=_TIMEOUT, prepare=process.bounded(_MEMORY, _TIMEOUT)))
    except process.MissingProgramError:
        raise
    except HostError as cause:
        raise UnreadableImageError(f"{image}: {cause.message}") from cause
    specific = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or specific.get("data-file"):
        raise UnreadableImageError(f"{image}: refers to another file of this host, which is not followed")
    if info["format"] not in ("raw", "qcow2"):
        raise UnreadableImageError(f"{image}: format {info['format']} is not supported", hint="qcow2 and raw are")
    if info["format"] == "raw" and not _is_disk(image):
        message = f"{image}: not a disk image: it has no boot sector, no partition table, and is no ext4 filesystem"
        raise UnreadableImageError(message, hint=_USABLE)
    return ImageInfo(info["format"], info["virtual-size"], info["actual-size"])


def _is_disk(image: Path) -> bool:
    """Return whether a raw file can be a disk, or a filesystem alone. For qemu-img every unknown file is raw.

    Boot sectors and partition tables, GPT's with its protective MBR too, end their first sector with 55 AA (UEFI
    specification 5.2).
    """
    with image.open("rb") as source:
        signed = source.read(SECTOR)[510:] == b"\x55\xaa"
    return image.stat().st_size % SECTOR == 0 and (signed or diskimage.is_filesystem(image))
