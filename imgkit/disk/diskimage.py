"""What a disk image says of itself, before any program opens it: the header of qcow2, and nothing else is followed.

A guest, or whoever made an image, may write anything into it. One that names other files would show those of the host
to its guest, so it is refused; and the programs that open an image are told its format, so that none has to guess.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Literal, TypeAlias

from imgkit.errors import InputError

Format: TypeAlias = Literal["raw", "qcow2"]

MAGIC = b"QFI\xfb"
# QEMU's docs/interop/qcow2.txt: the header up to header_length; incompatible features.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED
_VERSION_3 = 3
_RAW_NAMES = (".raw",)
# First bytes of formats that are none of ours, from QEMU's block drivers. As raw disks they would boot nothing.
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
_LOOKED_AT = 512


def format_of(path: Path) -> Format:
    """The format of an image: "qcow2" where it has that one's header, "raw" otherwise.

    A file that is called ``….raw`` is a raw disk, and may not begin as qcow2: its guest could have written that.

    Raises:
        InputError: it cannot be read, is of another format, or not what its name says.
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
            raise InputError(f"{path}: format {name} is not supported", hint="qcow2 and raw are")
    return "raw"


def check(path: Path, kind: str, *, name: Path | None = None) -> None:
    """Refuse an image that is more than one file, or that QEMU would have to guess at.

    Args:
        path: the image.
        kind: "qcow2" or "raw", as it will be opened.
        name: what messages call it; None for its path.

    Raises:
        InputError: it cannot be read, or is no regular file or block device; it refers to another file or is encrypted;
            its header makes no sense or needs features that are not known.
    """
    name = name or path
    if kind not in ("raw", "qcow2"):
        raise InputError(f"{name}: format {kind} is not supported", hint="qcow2 and raw are")
    start = _start(path, name)
    if kind == "qcow2":
        _check_qcow2(start, name)


def _check_qcow2(start: bytes, name: Path) -> None:
    fields = _HEADER.unpack(start[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    magic, version, backing_offset, backing_size, encryption = fields[0], fields[1], fields[2], fields[3], fields[6]
    features = fields[13] if version >= _VERSION_3 else 0
    if magic != MAGIC or version not in (2, _VERSION_3):
        raise InputError(f"{name}: no qcow2 image of version 2 or 3")
    if backing_offset or backing_size or features & _DATA_FILE:
        raise InputError(f"{name}: refers to another file of this host, which is not followed")
    if encryption:
        raise InputError(f"{name}: is encrypted, which is not supported")
    if features & _CORRUPT:
        raise InputError(f"{name}: is marked as damaged", hint="qemu-img check -r all mends what can be mended")
    if features & ~_KNOWN:
        raise InputError(f"{name}: needs features of qcow2 that are not known here ({features & ~_KNOWN:#x})")


def _start(path: Path, name: Path | None = None) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise InputError(f"{name or path}: no disk image: it is not a file")
            return os.pread(descriptor, _LOOKED_AT, 0)
        finally:
            os.close(descriptor)
    except OSError as cause:
        raise InputError(f"{name or path}: cannot be read: {cause.strerror}") from cause
