"""Check the header of a disk image before any program opens the image.

A guest, or the author of an image, may write anything into it. An image that names other files would show files of the
host to its guest, so it is refused. Programs that open an image are told its format, so that none has to guess.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal, TypeAlias

from imgkit.disk import ext4, gpt, qcow2tables
from imgkit.disk.qcow2format import CORRUPT, DATA_FILE, KNOWN_FEATURES, MAGIC, VERSION_3, Qcow2Header
from imgkit.disk.regions import TABLE_END
from imgkit.errors import InputError

Format: TypeAlias = Literal["raw", "qcow2"]

_RAW_NAMES = (".raw",)
# First bytes of formats that imgkit does not support, from QEMU's block drivers. As raw disks they would not boot.
_FOREIGN = {
    b"KDMV": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"COWD": "vmdk",
    b"conectix": "vpc",
    b"vhdxfile": "vhdx",
    b"<<< ": "vdi",
    b"QED\0": "qed",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"LUKS\xba\xbe": "luks",
}
_VHD_COOKIE = b"conectix"  # "Virtual Hard Disk Image Format Specification": a VHD of fixed size has it at its end only
_BOOT_SIGNATURE = b"\x55\xaa"
_START_SIZE = 512  # bytes that are read
_DAMAGED = "download or build it again"


def format_of(path: Path) -> Format:
    """Return the format of an image: "qcow2" if it begins with the magic number of qcow2, "raw" otherwise.

    A file with a name that ends in ``.raw`` is a raw disk. It must not begin as qcow2, which a guest can write.

    Raises:
        InputError: the image cannot be read, has another format, or is not what its name says.
    """
    start = _start(path)
    if start.startswith(MAGIC):
        if path.suffix in _RAW_NAMES:
            raise InputError(
                f"{path}: begins as a qcow2 image, though its name says raw",
                hint="a guest can write that; rename it if it is qcow2",
            )
        return "qcow2"
    for magic, name in _FOREIGN.items():
        if start.startswith(magic):
            raise _foreign(path, name)
    if path.suffix not in _RAW_NAMES and _end(path).startswith(_VHD_COOKIE):
        raise _foreign(path, "vpc")
    return "raw"


def _foreign(path: Path, name: str) -> InputError:
    hint = f"qcow2 and raw are; qemu-img convert -O qcow2 {path.name} {path.stem}.qcow2 makes a copy of it"
    return InputError(f"{path}: format {name} is not supported", hint=hint)


def is_filesystem(path: Path) -> bool:
    """Return whether an image is an ext4 filesystem as a whole, without a boot sector and a partition table.

    Raises:
        InputError: the image cannot be read, has another format, or is not what its name says.
    """
    if format_of(path) != "raw":
        return False
    try:
        with path.open("rb") as source:
            head = source.read(2 * ext4.SUPERBLOCK)
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror}") from cause
    return head[510:512] != _BOOT_SIGNATURE and ext4.stated_size(head[ext4.SUPERBLOCK :]) > 0


def check(path: Path, kind: str, *, name: Path | None = None) -> None:
    """Refuse an image that consists of several files, or whose format QEMU would have to guess.

    Args:
        path: the image.
        kind: the format that it will be opened as.
        name: what messages call it; None for its path.

    Raises:
        InputError: the image cannot be read, is neither a regular file nor a block device, refers to another file or
            is encrypted, has a header that is not valid or needs unknown features, is truncated, or ``kind`` is not
            supported.
    """
    name = name or path
    if kind not in ("raw", "qcow2"):
        raise InputError(f"{name}: format {kind} is not supported", hint="qcow2 and raw are")
    start = _start(path, name)
    if kind == "qcow2":
        _check_qcow2(start, name)
    _check_complete(path, kind, name)


def _check_qcow2(start: bytes, name: Path) -> None:
    header = Qcow2Header.parse(start)
    features = header.incompatible if header.version >= VERSION_3 else 0
    if header.magic != MAGIC or header.version not in (2, VERSION_3):
        raise InputError(f"{name}: not a qcow2 image of version 2 or 3")
    if header.backing_offset or header.backing_size or features & DATA_FILE:
        raise InputError(f"{name}: refers to another file of this host, which is not followed")
    if header.encryption:
        raise InputError(f"{name}: is encrypted, which is not supported")
    if features & CORRUPT:
        raise InputError(f"{name}: is marked as damaged", hint="qemu-img check -r all mends what can be mended")
    if features & ~KNOWN_FEATURES:
        raise InputError(f"{name}: needs features of qcow2 that are not known here ({features & ~KNOWN_FEATURES:#x})")


def _check_complete(path: Path, kind: str, name: Path) -> None:
    try:
        if kind == "qcow2" and qcow2tables.is_truncated(path):
            raise InputError(f"{name}: damaged or truncated: it refers to data beyond its end", hint=_DAMAGED)
        if kind == "raw":
            _check_raw(path, name)
    except OSError as cause:
        raise InputError(f"{name}: cannot be read: {cause.strerror}") from cause


def _check_raw(path: Path, name: Path) -> None:
    """Compare the size of a raw disk with what its partition table, or its only filesystem, says."""
    with path.open("rb") as source:
        head = source.read(TABLE_END)
        size = source.seek(0, os.SEEK_END)
    needed = gpt.least_size(head) or ext4.stated_size(head[ext4.SUPERBLOCK : 2 * ext4.SUPERBLOCK])
    if needed > size:
        raise InputError(f"{name}: damaged or truncated: {size} bytes of a disk of {needed}", hint=_DAMAGED)


def _end(path: Path) -> bytes:
    """Return the last 512 bytes of a file; fewer if it is shorter."""
    try:
        with path.open("rb") as source:
            source.seek(max(0, source.seek(0, os.SEEK_END) - _START_SIZE))
            return source.read(_START_SIZE)
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror}") from cause


def _start(path: Path, name: Path | None = None) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise InputError(f"{name or path}: not a disk image: it is not a file")
            return os.pread(descriptor, _START_SIZE, 0)
        finally:
            os.close(descriptor)
    except OSError as cause:
        raise InputError(f"{name or path}: cannot be read: {cause.strerror}") from cause
