"""The bytes that a guest sees of an image, as a raw disk: for reading images that may be hostile.

qemu-img is asked first how much data there is, so that a file of a few kilobytes cannot fill the host's disk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection
from pathlib import Path

from imgkit.disk.size import show_size
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import Limits
from imgkit.errors import HostError, InputError
from imgkit.host import process

_SPARE = 64 << 20  # bytes that stay free on the host
_MEMORY = 2 << 30  # bytes of address space for qemu-img, whose threads each take some
_THREADS = 16  # that it has at most
_CHECKED = (0, 2, 3)  # qemu-img check: all is well, there are corruptions, there are leaks


def raw_disk(image: Path, info: ImageInfo, folder: Path, limits: Limits) -> Path:
    """A raw disk with what a guest sees of ``image``: a sparse copy in ``folder``, or the image itself if it is raw.

    Raises:
        InputError: it holds more data than ``limits`` allow, is damaged, or took too long.
        HostError: qemu-img is missing, or there is no room for the copy.
    """
    if info.format == "raw":
        return image.resolve()
    size = _data_size(image, info, limits)
    if size > limits.size:
        message = f"{image}: holds {show_size(size)} of data, where {show_size(limits.size)} are read at most"
        raise InputError(message, hint="--limit reads more")
    _check_room(folder, size)
    target = folder / "disk.raw"
    words = ("convert", "-f", info.format, "-O", "raw", "-S", "64k", image.resolve(), target)
    _qemu_img(image, limits, *words, largest=info.virtual_size)
    return target


def oddities(image: Path, info: ImageInfo, limits: Limits) -> list[str]:
    """What a qcow2 file holds besides the disk that a guest sees, and no build writes; one line each.

    Raises:
        InputError: qemu-img cannot tell.
    """
    if info.format == "raw":
        return []
    said = json.loads(_qemu_img(image, limits, "info", "--output=json", "-f", info.format, image.resolve()))
    about = said.get("format-specific", {}).get("data", {})
    lines = [f"snapshot {str(each.get('name'))[:100]!r} inside the file" for each in said.get("snapshots", ())[:10]]
    lines += [f"bitmap {str(each.get('name'))[:100]!r} inside the file" for each in about.get("bitmaps", ())[:10]]
    if about.get("corrupt"):
        lines.append("the file is marked as corrupt")
    return [*lines, *_inconsistencies(image, info, limits)]


def _inconsistencies(image: Path, info: ImageInfo, limits: Limits) -> list[str]:
    """Whether each cluster of the file is used once, as qemu-img says; one that nobody uses harms nobody.

    Two places of a disk that share one cluster read as they were built, and are written to together.
    """
    words = ("check", "--output=json", "-f", info.format, image.resolve())
    said = json.loads(_qemu_img(image, limits, *words, good=_CHECKED))
    counts = {what: said.get(what, 0) for what in ("corruptions", "check-errors")}
    return [f"the file is inconsistent: {count} {what} (qemu-img check)" for what, count in counts.items() if count]


def _data_size(image: Path, info: ImageInfo, limits: Limits) -> int:
    """Bytes of data in the image, about: zeros and holes left out, compressed ones as large as they become."""
    words = ("measure", "--output=json", "-f", info.format, "-O", "qcow2", image.resolve())
    return int(json.loads(_qemu_img(image, limits, *words))["required"])


def _qemu_img(image: Path, limits: Limits, *words: str | Path, largest: int = 0, good: Collection[int] = (0,)) -> bytes:
    seconds = math.ceil(limits.left * _THREADS)
    try:
        prepare = process.bounded(_MEMORY, seconds, largest)
        return process.run(["qemu-img", *words], timeout=limits.left, prepare=prepare, good=good)
    except HostError as cause:
        if "program not found" in cause.message or "No space left" in cause.message:
            raise
        raise InputError(f"{image}: {cause.message}", hint="the image may be damaged") from cause


def _check_room(folder: Path, size: int) -> None:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < size + _SPARE:
        message = f"{folder}: only {show_size(free)} free, and reading the image takes {show_size(size + _SPARE)}"
        raise HostError(message, hint="make room, or give it a raw copy of the image")
