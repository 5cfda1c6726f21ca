"""The file of a disk image: its format and size, read without trusting what the file says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgkit.disk import diskimage
from imgkit.disk.layout import SECTOR
from imgkit.errors import HostError, InputError
from imgkit.host import process

_MEMORY = 1 << 30  # bytes of address space for qemu-img, which reads what the author of an image wrote
_TIMEOUT = 20  # seconds for qemu-img
_USABLE = "give it the qcow2 file that a build made, or a raw copy of it"


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
        info = json.loads(process.run(argv, timeout=_TIMEOUT, prepare=process.bounded(_MEMORY, _TIMEOUT)))
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
        raise InputError(f"{image}: no disk image: it has neither a boot sector nor a partition table", hint=_USABLE)
    return ImageInfo(info["format"], info["virtual-size"], info["actual-size"])


def _is_disk(image: Path) -> bool:
    """Whether a file that qemu-img calls raw, which is any that it knows nothing else of, can be a disk.

    Boot sectors and partition tables, GPT's with its protective MBR too, end their first sector with 55 AA (UEFI
    specification 5.2).
    """
    with image.open("rb") as source:
        return image.stat().st_size % SECTOR == 0 and source.read(SECTOR)[510:] == b"\x55\xaa"
