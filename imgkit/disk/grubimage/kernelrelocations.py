"""Relocate GRUB's kernel for a machine with EFI: write the addresses of its symbols into its code and data.

Formats: the ABI supplements "System V, AMD64" (4.4, relocation types) and "ELF for the Arm 64-bit Architecture" (5.7).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

from imgkit.disk.grubimage.grubmodules import GrubImageError
from imgkit.disk.grubimage.kernelelf import EM_AARCH64, EM_X86_64

_ABS64_X86, _ABS64_ARM = 1, 257
_GOT_PAGE, _GOT_LOW12 = 311, 312  # R_AARCH64_ADR_GOT_PAGE, R_AARCH64_LD64_GOT_LO12_NC
ABSOLUTE: Mapping[int, int] = MappingProxyType({EM_X86_64: _ABS64_X86, EM_AARCH64: _ABS64_ARM})
"""Machine → the kind of relocation that is an address of 64 bits, which the firmware relocates once more."""

THROUGH_TABLE: Mapping[int, frozenset[int]] = MappingProxyType(
    {EM_X86_64: frozenset(), EM_AARCH64: frozenset({_GOT_PAGE, _GOT_LOW12})}
)
"""Machine → the kinds that do not refer to the symbol, but to an entry of a table that has its address."""

_PAGE = 0x1000
_WORD = (1 << 64) - 1

Apply = Callable[[bytearray, int, int, int], None]
"""Changes an image: the image, the offset in it, the value that the symbol and the addend make, the own address."""


def apply_relocation(machine: int, kind: int, image: bytearray, offset: int, value: int, place: int) -> None:
    """Relocate one place of an image.

    Args:
        machine: the ELF number of the machine.
        kind: the number of the relocation.
        offset: of the place in ``image``.
        value: the address of the symbol with the addend, or that of its entry in the table (:data:`THROUGH_TABLE`).
        place: the address of the place.

    Raises:
        GrubImageError: the kind is not known, the place is outside, or the address is out of reach.
    """
    apply = _KINDS[machine].get(kind)
    if apply is None:
        raise GrubImageError(f"kernel.img has a relocation of type {kind}, which is not known")
    try:
        apply(image, offset, value, place)
    except struct.error as cause:
        raise GrubImageError("kernel.img has a relocation outside of its section") from cause


def _absolute64(image: bytearray, offset: int, value: int, place: int) -> None:
    del place
    (before,) = struct.unpack_from("<Q", image, offset)
    struct.pack_into("<Q", image, offset, before + value & _WORD)


def _relative64(image: bytearray, offset: int, value: int, place: int) -> None:
    _absolute64(image, offset, value - place, 0)


def _relative32(image: bytearray, offset: int, value: int, place: int) -> None:
    (before,) = struct.unpack_from("<I", image, offset)
    struct.pack_into("<I", image, offset, before + value - place & 0xFFFFFFFF)


def _branch(image: bytearray, offset: int, value: int, place: int) -> None:
    """B and BL: 26 bits, in instructions."""
    distance = value - place
    if distance % 4 or not -(1 << 27) <= distance < 1 << 27:
        raise GrubImageError("kernel.img has a branch to an address that is out of reach")
    _set_bits(image, offset, 0x03FFFFFF, distance >> 2)


def _page(image: bytearray, offset: int, value: int, place: int) -> None:
    """ADRP: the distance in pages, its low 2 bits in bits 29 and 30, the other 19 from bit 5 on."""
    distance = (value & -_PAGE) - (place & -_PAGE)
    if not -(1 << 32) <= distance < 1 << 32:
        raise GrubImageError("kernel.img refers to a page that is out of reach")
    pages = distance >> 12
    _set_bits(image, offset, 0x60FFFFE0, (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5)


def _low12(image: bytearray, offset: int, value: int, place: int) -> None:
    """ADD: the offset in the page, from bit 10 on."""
    del place
    _set_bits(image, offset, 0x003FFC00, (value & 0xFFF) << 10)


def _low12_of_load(image: bytearray, offset: int, value: int, place: int) -> None:
    """LDR and STR of 64 bits: the offset in the page, in units of 8 bytes, from bit 10 on."""
    del place
    _set_bits(image, offset, 0x003FFC00, (value >> 3 & 0x1FF) << 10)


def _set_bits(image: bytearray, offset: int, mask: int, bits: int) -> None:
    (instruction,) = struct.unpack_from("<I", image, offset)
    struct.pack_into("<I", image, offset, instruction & ~mask & 0xFFFFFFFF | bits & mask)


def _nothing(image: bytearray, offset: int, value: int, place: int) -> None:
    del image, offset, value, place


_KINDS: Mapping[int, Mapping[int, Apply]] = MappingProxyType(
    {
        EM_X86_64: MappingProxyType(
            {
                0: _nothing,
                _ABS64_X86: _absolute64,
                2: _relative32,  # PC32
                4: _relative32,  # PLT32: there is no table of procedures, the symbol is called directly
                24: _relative64,  # PC64
            }
        ),
        EM_AARCH64: MappingProxyType(
            {
                _ABS64_ARM: _absolute64,
                261: _relative32,  # PREL32
                275: _page,  # ADR_PREL_PG_HI21
                277: _low12,  # ADD_ABS_LO12_NC
                282: _branch,  # JUMP26
                283: _branch,  # CALL26
                286: _low12_of_load,  # LDST64_ABS_LO12_NC
                _GOT_PAGE: _page,
                _GOT_LOW12: _low12_of_load,
            }
        ),
    }
)
