"""Make a raw copy of an image that may be hostile, with the bytes that a guest sees.

qemu-img is asked first how much data there is, so that a file of a few kilobytes cannot fill the host's disk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from imgkit.disk.size import show_size
from imgkit.engines.engineerrors import MAYBE_DAMAGED, LimitError, NoSpaceError, UnreadableImageError
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import MORE_BYTES, Limits
from imgkit.errors import HostError
from imgkit.host import process

_SPARE = 64 << 20  # bytes that stay free on the host
_MOST_LISTED = 10  # snapshots and bitmaps that are named
_MEMORY = 2 << 30  # bytes of address space for qemu-img, whose threads each take some
_THREADS = 16  # the most threads that qemu-img has
_CHECK_STATUSES = (0, 2, 3)  # of qemu-img check: no faults, corruptions, leaked clusters


def raw_disk(image: Path, info: ImageInfo, folder: Path, limits: Limits) -> Path:
    """Return a raw disk with the bytes that a guest sees.

    It is a sparse copy of ``image`` in ``folder``, or the image itself if that is raw.

    Raises:
        LimitError: the image holds more data than ``limits`` allow, or copying it took too long.
        UnreadableImageError: the image is damaged.
        NoSpaceError: there is no space for the copy.
        HostError: qemu-img is missing.
    """
    if info.format == "raw":
        return image.resolve()
    size = _data_size(image, info, limits)
    if size > limits.size:
        message = f"{image}: holds {show_size(size)} of data, where {show_size(limits.size)} are read at most"
        raise LimitError(message, hint=MORE_BYTES)
    _check_room(folder, size)
    target = folder / "disk.raw"
    words = ("convert", "-f", info.format, "-O", "raw", "-S", "64k", image.resolve(), target)
    _qemu_img(image, limits, *words, largest=info.virtual_size)
    return target


def oddities(image: Path, info: ImageInfo, limits: Limits) -> list[str]:
    """Return one line for each thing in a qcow2 file that no build writes, apart from the disk that a guest sees.

    Raises:
        UnreadableImageError, LimitError, HostError: as for :func:`raw_disk`.
    """
    if info.format == "raw":
        return []
    report = json.loads(_qemu_img(image, limits, "info", "--output=json", "-f", info.format, image.resolve()))
    qcow2 = report.get("format-specific", {}).get("data", {})
    lines = [f"snapshot {_name(snapshot)} inside the file" for snapshot in report.get("snapshots", ())[:_MOST_LISTED]]
    lines += [f"bitmap {_name(bitmap)} inside the file" for bitmap in qcow2.get("bitmaps", ())[:_MOST_LISTED]]
    if qcow2.get("corrupt"):
        lines.append("the file is marked as corrupt")
    return [*lines, *_inconsistencies(image, info, limits)]


def _name(thing: Mapping[str, object]) -> str:
    """Return the beginning of the name of a snapshot or bitmap, in quotes."""
    return repr(str(thing.get("name"))[:100])


def _inconsistencies(image: Path, info: ImageInfo, limits: Limits) -> list[str]:
    """Return the inconsistencies that ``qemu-img check`` reports, such as a cluster that is used twice.

    Two places of a disk that share one cluster read as they were built; a write to one of them changes both. A cluster
    that is not used at all does no harm.
    """
    words = ("check", "--output=json", "-f", info.format, image.resolve())
    report = json.loads(_qemu_img(image, limits, *words, good=_CHECK_STATUSES))
    counts = {kind: report.get(kind, 0) for kind in ("corruptions", "check-errors")}
    return [f"the file is inconsistent: {count} {kind} (qemu-img check)" for kind, count in counts.items() if count]


def _data_size(image: Path, info: ImageInfo, limits: Limits) -> int:
    """Return roughly how many bytes of data a raw copy would have, without zeros and holes."""
    words = ("measure", "--output=json", "-f", info.format, "-O", "qcow2", image.resolve())
    return int(json.loads(_qemu_img(image, limits, *words))["required"])


def _qemu_img(image: Path, limits: Limits, *words: str | Path, largest: int = 0, good: Collection[int] = (0,)) -> bytes:
    """Run qemu-img within the limits, and return its output.

    Args:
        largest: the most bytes of a file that it may write.
    """
    seconds = math.ceil(limits.left * _THREADS)
    try:
        prepare = process.bounded(_MEMORY, seconds, largest)
        return process.run(["qemu-img", *words], timeout=limits.left, prepare=prepare, good=good)
    except process.MissingProgramError:
        raise
    except process.ProgramTimeoutError as cause:
        raise LimitError(f"{image}: {cause.message}", hint=MAYBE_DAMAGED) from cause
    except HostError as cause:
        if isinstance(cause, process.ProgramError) and "No space left" in cause.last_line:
            raise
        raise UnreadableImageError(f"{image}: {cause.message}", hint=MAYBE_DAMAGED) from cause


def _check_room(folder: Path, size: int) -> None:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < size + _SPARE:
        message = f"{folder}: only {show_size(free)} free, and reading the image takes {show_size(size + _SPARE)}"
        raise NoSpaceError(message, hint="make room, or give it a raw copy of the image")
