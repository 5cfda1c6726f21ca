"""Place GRUB's kernel for EFI in memory: its sections one after the other, with all addresses resolved.

The image is made for addresses from :data:`HEADERS` on. The firmware puts it anywhere else and adds the difference to
the places in ``fixups``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imgkit.disk.grubimage.grubmodules import GrubImageError
from imgkit.disk.grubimage.kernelelf import SHN_ABS, SHN_UNDEF, ElfRelocation, ElfSection, KernelElf
from imgkit.disk.grubimage.kernelrelocations import ABSOLUTE, THROUGH_TABLE, apply_relocation

PAGE = 0x1000
"""Bytes to which the sections of the image are aligned, in memory and in the file."""
HEADERS = PAGE
"""Bytes of the headers, which come before the first section."""
_TABLE_ALIGNMENT = 16
_MAX_SIZE = 16 << 20  # of the image, which really has 100 KiB; a damaged file must not take all memory
_WORD = (1 << 64) - 1
_START = ("_start", "start")


@dataclass(frozen=True)
class EfiKernel:
    """The kernel as it lies in memory.

    Attributes:
        image: the bytes from the address :data:`HEADERS` on, whole pages.
        code_size: how many of them are code, whole pages.
        start: the address of the first instruction.
        fixups: the addresses of the places that hold an address of 64 bits, in the order of the relocations.
    """

    image: bytes
    code_size: int
    start: int
    fixups: tuple[int, ...]


@dataclass(frozen=True)
class _Places:
    """Where the sections lie in the image: number → offset. ``bss`` is the end of the data, ``end`` that of all."""

    offsets: Mapping[int, int]
    code_size: int
    bss: int
    end: int


def place_kernel(kernel: KernelElf) -> EfiKernel:
    """Return the kernel as it lies in memory.

    Raises:
        GrubImageError: the file is not a kernel for EFI, or it has what is not known here.
    """
    if kernel.machine not in ABSOLUTE:
        raise GrubImageError(f"kernel.img is for a machine that is not known, {kernel.machine}")
    places = _places(kernel.sections)
    relocations = list(kernel.relocations())
    addresses, start = _addresses(kernel, places)
    table_offset = _up(places.end, _TABLE_ALIGNMENT)
    table = _table(kernel.machine, (entry for _, entries in relocations for entry in entries), addresses)
    image = bytearray(_up(table_offset + _up(8 * len(table), _TABLE_ALIGNMENT), PAGE))
    for number, offset in places.offsets.items():
        data = kernel.sections[number].data
        image[offset : offset + len(data)] = data
    struct.pack_into(f"<{len(table)}Q", image, table_offset, *(address & _WORD for address in table))
    fixups = []
    for number, entries in relocations:
        section, limit = places.offsets[number], kernel.sections[number].size
        for entry in entries:
            offset = section + entry.offset
            value = _value(entry, addresses)
            if entry.kind == ABSOLUTE[kernel.machine]:
                fixups.append(HEADERS + offset)
            elif entry.kind in THROUGH_TABLE[kernel.machine]:
                value = HEADERS + table_offset + 8 * table[value]
            if entry.offset >= limit:
                raise GrubImageError("kernel.img has a relocation outside of its section")
            apply_relocation(kernel.machine, entry.kind, image, offset, value, HEADERS + offset)
    fixups += [HEADERS + table_offset + 8 * number for number in range(len(table))]
    return EfiKernel(bytes(image), places.code_size, start, tuple(fixups))


def _places(sections: Iterable[ElfSection]) -> _Places:
    """Put the code first, then the data, then what begins as zeros."""
    numbered = list(enumerate(sections))
    offsets: dict[int, int] = {}
    end = _put([(number, section) for number, section in numbered if section.is_text], 0, offsets)
    code_size = end = _up(end, PAGE)
    bss = _put([(number, section) for number, section in numbered if section.is_data], end, offsets)
    end = _put([(number, section) for number, section in numbered if section.is_bss], bss, offsets)
    return _Places(offsets, code_size, bss, _up(end, PAGE))


def _put(sections: Iterable[tuple[int, ElfSection]], end: int, offsets: dict[int, int]) -> int:
    """Add sections at ``end``, and return the new one."""
    for number, section in sections:
        if PAGE % section.alignment:
            raise GrubImageError(f"kernel.img has a section that is aligned to {section.alignment} bytes")
        offsets[number] = _up(end, section.alignment)
        end = offsets[number] + section.size
    if end > _MAX_SIZE:
        raise GrubImageError(f"kernel.img is larger than {_MAX_SIZE >> 20} MiB")
    return end


def _addresses(kernel: KernelElf, places: _Places) -> tuple[list[int], int]:
    """Return the address of each symbol, and the one at which the kernel begins.

    Raises:
        GrubImageError: a symbol is not defined, or the kernel does not begin in its code.
    """
    bounds = {"__bss_start": HEADERS + places.bss, "_end": HEADERS + places.end}
    addresses: list[int] = []
    starts: list[int] = []
    for symbol in kernel.symbols():
        if symbol.section == SHN_ABS or (symbol.section == SHN_UNDEF and not symbol.name):
            address = symbol.value
        elif symbol.section == SHN_UNDEF:
            if symbol.name not in bounds:
                raise GrubImageError(f"kernel.img does not define {symbol.name}")
            address = bounds[symbol.name]
        elif symbol.section >= len(kernel.sections):
            raise GrubImageError(f"kernel.img has no section {symbol.section}")
        else:
            address = HEADERS + places.offsets.get(symbol.section, 0) + symbol.value
        addresses.append(address)
        if symbol.name in _START:
            starts.append(address)
    if not starts:
        raise GrubImageError("kernel.img does not define _start")
    if not 0 <= starts[0] - HEADERS < places.code_size:
        raise GrubImageError("kernel.img begins outside of its code")
    return addresses, starts[0]


def _table(machine: int, entries: Iterable[ElfRelocation], addresses: list[int]) -> dict[int, int]:
    """Return the table of addresses: address → number of its entry."""
    values = (_value(entry, addresses) for entry in entries if entry.kind in THROUGH_TABLE[machine])
    return {value: number for number, value in enumerate(dict.fromkeys(values))}


def _value(entry: ElfRelocation, addresses: list[int]) -> int:
    if entry.symbol >= len(addresses):
        raise GrubImageError(f"kernel.img has a relocation for symbol {entry.symbol}, which it does not have")
    return addresses[entry.symbol] + entry.addend


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
