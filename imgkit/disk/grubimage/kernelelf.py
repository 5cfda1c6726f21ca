"""Read GRUB's ``kernel.img``: the sections, symbols and relocations of an ELF file.

Format: System V ABI, chapter 4, "Sections", "Symbol Table" and "Relocation".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imgkit.disk.grubimage.grubmodules import GrubImageError

EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
SHT_PROGBITS, SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 4, 8, 9
SHN_UNDEF, SHN_ABS = 0, 0xFFF1

_ALLOCATED, _EXECUTABLE = 2, 4
_IDENT = 16
_HEADER = {32: struct.Struct("<HHIIIIIHHHHHH"), 64: struct.Struct("<HHIQQQIHHHHHH")}  # e_type … e_shstrndx
_SECTION = {32: struct.Struct("<IIIIIIIIII"), 64: struct.Struct("<IIQQQQIIQQ")}
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")


@dataclass(frozen=True)
class ElfSection:
    """A section. ``link`` and ``info`` are numbers of sections; ``data`` is empty if it has no bytes in the file."""

    kind: int
    flags: int
    address: int
    size: int
    link: int
    info: int
    alignment: int
    data: bytes

    @property
    def is_text(self) -> bool:
        """Whether it is code."""
        return self.flags & (_ALLOCATED | _EXECUTABLE) == _ALLOCATED | _EXECUTABLE

    @property
    def is_data(self) -> bool:
        """Whether it is data with bytes in the file."""
        return self.flags & (_ALLOCATED | _EXECUTABLE) == _ALLOCATED and self.kind != SHT_NOBITS

    @property
    def is_bss(self) -> bool:
        """Whether it is data that begins as zeros."""
        return self.flags & (_ALLOCATED | _EXECUTABLE) == _ALLOCATED and self.kind == SHT_NOBITS


@dataclass(frozen=True)
class ElfSymbol:
    """A symbol. ``section`` is a number, or :data:`SHN_UNDEF` or :data:`SHN_ABS`; ``value`` is relative to it."""

    name: str
    section: int
    value: int


@dataclass(frozen=True)
class ElfRelocation:
    """A place in a section that depends on the address of a symbol; ``kind`` is a number of the machine's ABI."""

    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class KernelElf:
    """The file, with all sections in their order."""

    machine: int
    sections: tuple[ElfSection, ...]

    def symbols(self) -> list[ElfSymbol]:
        """Return the symbols, in the order to which relocations refer.

        Raises:
            GrubImageError: there is no table of symbols, or it is damaged.
        """
        table = next((section for section in self.sections if section.kind == SHT_SYMTAB), None)
        if table is None:
            raise GrubImageError("kernel.img has no symbols")
        names = self._section(table.link).data
        try:
            return [
                ElfSymbol(names[name : names.index(b"\0", name)].decode("latin-1"), section, value)
                for name, _, _, section, value, _ in _SYMBOL.iter_unpack(table.data)
            ]
        except (struct.error, ValueError) as cause:
            raise GrubImageError("kernel.img has a damaged table of symbols") from cause

    def relocations(self) -> Iterator[tuple[int, list[ElfRelocation]]]:
        """Yield the number of each section that has relocations and is part of the image, with them.

        Raises:
            GrubImageError: a table is damaged.
        """
        for section in self.sections:
            if section.kind == SHT_REL:
                raise GrubImageError("kernel.img has relocations without addends")
            if section.kind != SHT_RELA:
                continue
            target = self._section(section.info)
            if not (target.is_text or target.is_data):
                continue
            try:
                entries = [
                    ElfRelocation(offset, info & 0xFFFFFFFF, info >> 32, addend)
                    for offset, info, addend in _RELOCATION.iter_unpack(section.data)
                ]
            except struct.error as cause:
                raise GrubImageError("kernel.img has a damaged table of relocations") from cause
            yield section.info, entries

    def _section(self, number: int) -> ElfSection:
        if number >= len(self.sections):
            raise GrubImageError(f"kernel.img has no section {number}")
        return self.sections[number]


def read_kernel(data: bytes, bits: int) -> KernelElf:
    """Read a ``kernel.img`` of a machine with pointers of so many bits.

    Raises:
        GrubImageError: it is another kind of file, or it is damaged.
    """
    if data[:4] != b"\x7fELF" or data[4:6] != bytes((bits // 32, 1)):
        raise GrubImageError(f"kernel.img is not an ELF file of {bits} bits")
    try:
        _, machine, _, _, _, table, _, _, _, _, size, count, _ = _HEADER[bits].unpack_from(data, _IDENT)
        sections = tuple(_section(data, bits, table + number * size) for number in range(count))
    except struct.error as cause:
        raise GrubImageError("kernel.img is cut off") from cause
    return KernelElf(machine, sections)


def _section(data: bytes, bits: int, place: int) -> ElfSection:
    _, kind, flags, address, offset, size, link, info, alignment, _ = _SECTION[bits].unpack_from(data, place)
    content = b"" if kind == SHT_NOBITS else data[offset : offset + size]
    if kind != SHT_NOBITS and len(content) != size:
        raise GrubImageError("kernel.img is cut off")
    return ElfSection(kind, flags, address, size, link, info, max(alignment, 1), content)
