"""Unpack the kernel in an x86 bzImage: the ELF file that virtual machine monitors start without a boot loader.

Format: Linux, Documentation/arch/x86/boot.rst (setup_sects at 0x1F1, the magic number at 0x202, payload_offset and
payload_length at 0x248). This module is imported in the process that holds libguestfs, so it needs the standard
library only; zstd is given to it.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable

MAX_KERNEL = 256 << 20
"""The most bytes of an unpacked kernel; Alpine's has 50 MB."""

_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248
_SECTOR = 512
_ELF = b"\x7fELF"


class BzImageError(ValueError):
    """The kernel cannot be unpacked; the message says why."""


def is_bzimage(image: bytes) -> bool:
    """Return whether this is a bzImage of x86."""
    return image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def unpack(image: bytes, unzstd: Callable[[bytes], bytes]) -> bytes:
    """Return the ELF file in a bzImage.

    Args:
        image: the whole bzImage.
        unzstd: unpacks one zstd frame, and ignores what follows it.

    Raises:
        BzImageError: it is no bzImage, is damaged, has an unknown compression, or has something else inside.
        Exception: whatever ``unzstd`` raises.
    """
    if not is_bzimage(image) or len(image) < _PAYLOAD + 8:
        raise BzImageError("not a bzImage")
    begin = ((image[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    payload = image[begin + offset : begin + offset + length]
    if len(payload) < length:
        raise BzImageError("it is cut off")
    try:
        kernel = _unpack(payload, unzstd)
    except (lzma.LZMAError, zlib.error, EOFError) as cause:
        raise BzImageError(f"it is damaged: {cause}") from cause
    if not kernel.startswith(_ELF):
        raise BzImageError("what is compressed in it is no ELF file")
    return kernel


def _unpack(payload: bytes, unzstd: Callable[[bytes], bytes]) -> bytes:
    """Return the unpacked payload. The length that follows a compressed stream is ignored."""
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor(memlimit=MAX_KERNEL).decompress(payload, MAX_KERNEL)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload, MAX_KERNEL)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return unzstd(payload[:-4])
    raise BzImageError(f"its compression is unknown ({payload[:4].hex()})")
