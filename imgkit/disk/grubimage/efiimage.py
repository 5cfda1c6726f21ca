"""The core image for EFI: a PE32+ application with GRUB's kernel, its modules, and the places to relocate.

Format: Microsoft, "PE Format": "COFF File Header", "Optional Header", "Section Table", "The .reloc Section". The bytes
are those of grub-mkimage 2.06, down to its fixed time stamp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imgkit.disk.grubimage.efikernel import HEADERS, PAGE, EfiKernel, place_kernel
from imgkit.disk.grubimage.kernelelf import EM_AARCH64, EM_X86_64, KernelElf

_MACHINES = {EM_X86_64: 0x8664, EM_AARCH64: 0xAA64}  # by the ELF number
_TIME = 0x54A48E00  # 2015-01-01
_FLAGS = 0x020E  # executable; without line numbers, local symbols and debugging information
_MAGIC_PE32_PLUS = 0x020B
_SUBSYSTEM = 10  # an EFI application
_STACK_AND_HEAP = 0x10000  # EFI ignores them
_DIRECTORIES, _BASE_RELOCATIONS = 16, 5

_COFF = struct.Struct("<HHIIIHH")
_OPTIONAL = struct.Struct("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII")
_DIRECTORY = struct.Struct("<II")
_SECTION = struct.Struct("<8sIIIIIIHHI")
_CODE, _INITIALIZED = 0x20, 0x40
_DISCARDABLE, _EXECUTE, _READ, _WRITE = 0x02000000, 0x20000000, 0x40000000, 0x80000000
_BLOCK = struct.Struct("<II")  # address of a page, bytes of this block
_DIR64 = 10 << 12  # a base relocation: an address of 64 bits


def _dos_stub() -> bytes:
    """Return the MS-DOS program at the start, which says that it is none, with the place of what follows it."""
    header = struct.pack("<2s13H32xI", b"MZ", 0x90, 3, 0, 4, 0, 0xFFFF, 0, 0xB8, 0, 0, 0, 0x40, 0, 0x80)
    # push cs; pop ds; mov dx, message; mov ah, 9; int 21h; mov ax, 4C01h; int 21h
    code = bytes.fromhex("0e1fba0e00b409cd21b8014ccd21")
    return (header + code + b"This program cannot be run in DOS mode.\r\r\n$").ljust(0x80, b"\0")


@dataclass(frozen=True)
class _PeSection:
    name: bytes
    flags: int
    data: bytes  # whole pages


def efi_image(kernel: KernelElf, area: bytes) -> bytes:
    """Return the EFI application.

    Args:
        kernel: GRUB's ``kernel.img``, which is not linked.
        area: the modules, from :func:`~imgkit.disk.grubimage.grubmodules.module_area`.

    Raises:
        GrubImageError: ``kernel`` is not a kernel for EFI.
    """
    placed = place_kernel(kernel)
    code, data = placed.image[: placed.code_size], placed.image[placed.code_size :]
    modules = area.ljust(-(-len(area) // PAGE) * PAGE, b"\0")
    relocations = b"".join(_blocks(placed.fixups))
    sections = (
        _PeSection(b".text", _CODE | _EXECUTE | _READ, code),
        _PeSection(b".data", _INITIALIZED | _READ | _WRITE, data),
        _PeSection(b"mods", _INITIALIZED | _READ | _WRITE, modules),
        _PeSection(b".reloc", _INITIALIZED | _DISCARDABLE | _READ, relocations),
    )
    headers = _headers(_MACHINES[kernel.machine], placed, sections)
    return b"".join((headers.ljust(HEADERS, b"\0"), *(section.data for section in sections)))


def _headers(machine: int, placed: EfiKernel, sections: tuple[_PeSection, ...]) -> bytes:
    size = HEADERS + sum(len(section.data) for section in sections)
    code, *others = sections
    relocations = others[-1].data
    optional = _OPTIONAL.pack(
        _MAGIC_PE32_PLUS,
        *(0, 0),  # the linker's version
        *(len(code.data), sum(len(section.data) for section in others[:-1]), 0),
        *(placed.start, HEADERS, 0),  # first instruction, first byte of code, preferred address
        *(PAGE, PAGE),  # alignment in memory and in the file
        *(0, 0, 0, 0, 0, 0, 0),  # versions
        *(size, HEADERS, 0, _SUBSYSTEM, 0),
        *(4 * (_STACK_AND_HEAP,)),
        *(0, _DIRECTORIES),
    )
    directories = [(0, 0)] * _DIRECTORIES
    directories[_BASE_RELOCATIONS] = (size - len(relocations), len(relocations))
    optional += b"".join(_DIRECTORY.pack(*directory) for directory in directories)
    table, offset = b"", HEADERS
    for section in sections:
        length = len(section.data)
        table += _SECTION.pack(section.name, length, offset, length, offset, 0, 0, 0, 0, section.flags)
        offset += length
    coff = _COFF.pack(machine, len(sections), _TIME, 0, 0, len(optional), _FLAGS)
    return _dos_stub() + b"PE\0\0" + coff + optional + table


def _blocks(fixups: Iterable[int]) -> Iterator[bytes]:
    """Yield the base relocations, a block for each page; the last one is filled so that all are whole pages."""
    pages: list[tuple[int, list[int]]] = []
    for address in fixups:
        if not pages or pages[-1][0] != address // PAGE:
            pages.append((address // PAGE, []))
        pages[-1][1].append(_DIR64 | address % PAGE)
    before = 0
    for number, (page, entries) in enumerate(pages):
        size = _BLOCK.size + 2 * len(entries)
        aligned = -(-size // 8) * 8 if number < len(pages) - 1 else -(-(before + size) // PAGE) * PAGE - before
        yield (_BLOCK.pack(page * PAGE, aligned) + struct.pack(f"<{len(entries)}H", *entries)).ljust(aligned, b"\0")
        before += aligned
