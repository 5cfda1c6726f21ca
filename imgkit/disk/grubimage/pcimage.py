"""The core image for a PC's BIOS: ``diskboot.img``, a decompressor, and the compressed kernel with its modules.

The bytes of the compressed part depend on the library (liblzma), not on Python's version. 5.2.5, 5.4.1 and 5.8.1 make
equal ones with these settings.

Format: GRUB's sources, boot/i386/pc/diskboot.S, boot/i386/pc/startup_raw.S, include/grub/offsets.h.
"""

from __future__ import annotations

import lzma
import struct

from imgkit.disk.grubimage.grubmodules import GrubImageError
from imgkit.disk.grubimage.kernelelf import EM_386, SHT_PROGBITS, KernelElf
from imgkit.disk.layout import SECTOR

_LINK_ADDRESS = 0x9000  # where the kernel runs; after decompression it is copied there
_DECOMPRESSOR_ADDRESS = 0x8200
_KERNEL_END = 0x68000
_SIZES = struct.Struct("<II")  # in the decompressor: of the compressed data, and of what comes out
_SIZES_OFFSET = 8
_SECTOR_COUNT_OFFSET = SECTOR - 4  # in the last 12 bytes, a block list: sector, count, segment
# lc, lp, pb and the dictionary are built into the decompressor. The fast mode takes a quarter of the thorough one's
# time, for an image that is one twentieth larger.
_FILTER = {
    "id": lzma.FILTER_LZMA1,
    "dict_size": 1 << 16,
    "lc": 3,
    "lp": 0,
    "pb": 2,
    "mode": lzma.MODE_FAST,
    "mf": lzma.MF_HC4,
    "nice_len": 64,
    "depth": 0,
}


def pc_image(kernel: KernelElf, area: bytes, decompressor: bytes, diskboot: bytes) -> bytes:
    """Return the core image.

    Args:
        kernel: GRUB's ``kernel.img``, which is linked for its address.
        area: the modules, from :func:`~imgkit.disk.grubimage.grubmodules.module_area`.
        decompressor: GRUB's ``lzma_decompress.img``.
        diskboot: GRUB's ``diskboot.img``.

    Raises:
        GrubImageError: one of the files is not what it should be.
    """
    if len(diskboot) != SECTOR:
        raise GrubImageError(f"diskboot.img has {len(diskboot)} bytes instead of {SECTOR}")
    if not _SIZES_OFFSET + _SIZES.size <= len(decompressor) <= _LINK_ADDRESS - _DECOMPRESSOR_ADDRESS:
        raise GrubImageError(f"lzma_decompress.img has {len(decompressor)} bytes")
    content = _linked(kernel) + area
    packed = lzma.compress(content, format=lzma.FORMAT_RAW, filters=[_FILTER])
    core = bytearray(decompressor + packed)
    _SIZES.pack_into(core, _SIZES_OFFSET, len(packed), len(content))
    head = bytearray(diskboot)
    struct.pack_into("<H", head, _SECTOR_COUNT_OFFSET, -(-len(core) // SECTOR) & 0xFFFF)
    return bytes(head + core)


def _linked(kernel: KernelElf) -> bytes:
    """Return the kernel as it lies in memory from its address on, without what begins as zeros."""
    if kernel.machine != EM_386:
        raise GrubImageError("kernel.img is for another machine than i386")
    parts = [section for section in kernel.sections if section.is_text or section.is_data or section.is_bss]
    end = max((section.address + section.size for section in parts), default=0)
    if min((section.address for section in parts), default=0) < _LINK_ADDRESS or end > _KERNEL_END:
        raise GrubImageError(f"kernel.img is not linked for addresses from {_LINK_ADDRESS:#x} to {_KERNEL_END:#x}")
    image = bytearray()
    for section in parts:
        if section.kind == SHT_PROGBITS:
            start = section.address - _LINK_ADDRESS
            image = image.ljust(start + section.size, b"\0")
            image[start : start + section.size] = section.data
    return bytes(image)
