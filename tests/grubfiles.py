"""GRUB's files, made by hand: kernels as ELF files with a few instructions, and modules that are only bytes."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from imgkit.disk import grub
from imgkit.tree import Tree

ALLOC, WRITE, EXECUTE = 2, 1, 4
TEXT, DATA = ALLOC | EXECUTE, ALLOC | WRITE
LZMA = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
MACHINES = {"i386-pc": 3, "x86_64-efi": 62, "arm64-efi": 183}


@dataclass(frozen=True)
class Part:
    """A section: its bytes, or how many zeros it has. A relocation is offset, type, name of the symbol, addend."""

    name: str
    flags: int
    data: bytes = b""
    zeros: int = 0
    alignment: int = 16
    address: int = 0
    relocations: Sequence[tuple[int, int, str, int]] = ()


_Section: TypeAlias = tuple[str, int, int, int, bytes, int, int, Part | None]
"""Name, type, flags, address, bytes, link, info; and the part that it comes from."""


@dataclass
class Kernel:
    """A ``kernel.img``. ``symbols`` has the section and the value of each name; no section stands for "not defined"."""

    machine: int
    parts: Sequence[Part]
    symbols: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """Return the file."""
        wide = self.machine != 3
        numbers = {"": 0, "absolute": 0xFFF1, "common": 0xFFF2}
        numbers |= {part.name: number + 1 for number, part in enumerate(self.parts)}
        names = ["", *self.symbols]
        strings = b"".join(name.encode() + b"\0" for name in names)
        table = bytes(24)
        for name in names[1:]:
            section, value = self.symbols[name]
            number = numbers[section]
            table += struct.pack("<IBBHQQ", strings.index(b"\0" + name.encode() + b"\0") + 1, 0x10, 0, number, value, 0)
        sections: list[_Section] = [
            (part.name, 8 if part.zeros else 1, part.flags, part.address, part.data, 0, 0, part) for part in self.parts
        ]
        at = len(self.parts) + 1
        if wide:
            sections += [(".symtab", 2, 0, 0, table, at + 1, 1, None), (".strtab", 3, 0, 0, strings, 0, 0, None)]
            for part in self.parts:
                if part.relocations:
                    data = b"".join(
                        struct.pack("<QQq", offset, names.index(name) << 32 | kind, addend)
                        for offset, kind, name, addend in part.relocations
                    )
                    sections.append((f".rela{part.name}", 4, 0x40, 0, data, at, numbers[part.name], None))
        return _file(self.machine, sections, wide=wide)


def _file(machine: int, sections: Sequence[_Section], *, wide: bool) -> bytes:
    header, entry = (64, "<IIQQQQIIQQ") if wide else (52, "<IIIIIIIIII")
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    body, table = b"", struct.pack(entry, *(10 * (0,)))
    for name, kind, flags, address, data, link, info, part in [*sections, (".shstrtab", 3, 0, 0, names, 0, 0, None)]:
        body = body.ljust(-(-len(body) // 16) * 16, b"\0")
        size, alignment = (part.zeros or len(data), part.alignment) if part else (len(data), 8)
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        fixed = {2: 24, 4: 24}.get(kind, 0)
        table += struct.pack(entry, place, kind, flags, address, header + len(body), size, link, info, alignment, fixed)
        body += data
    count = len(sections) + 2
    place = header + len(body)
    fields = (1 if wide else 2, machine, 1, 0, 0, place, 0, header, 0, 0, struct.calcsize(entry), count, count - 1)
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", *fields) + body + table


def small_kernel(platform: str) -> bytes:
    """Return a kernel of a platform that has a bit of everything."""
    machine = MACHINES[platform]
    if machine == 3:
        text = Part(".text", TEXT, b"\x90" * 100, address=0x9000)
        data = Part(".data", DATA, b"data" * 10, address=0x9080)
        return Kernel(machine, (text, data, Part(".bss", DATA, zeros=64, address=0x90C0))).bytes()
    absolute = 1 if machine == 62 else 257
    parts = (
        Part(".text", TEXT, bytes(32)),
        Part(".data", DATA, bytes(64), relocations=[(8, absolute, "_start", 4)]),
        Part(".bss", DATA, zeros=100),
    )
    return Kernel(machine, parts, {"_start": (".text", 16)}).bytes()


def unpacked(core: bytes, decompressor: int = 2001) -> bytes:
    """Return what a core image for BIOS has in its compressed part, which follows a decompressor of that size."""
    packed, size = struct.unpack_from("<II", core, 512 + 8)
    data = core[512 + decompressor : 512 + decompressor + packed]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA]).decompress(data, size)


def fake_boot_img() -> bytes:
    """Return the boot sector of GRUB, as far as it is checked."""
    image = bytearray(512)
    image[:2] = b"\xeb\x63"
    image[0x66:0x68] = b"\xeb\x05"
    image[0x1FE:] = b"\x55\xaa"
    return bytes(image)


def grub_tree(*platforms: str) -> Tree:
    """Return a Tree with GRUB for these platforms, whose modules hold their names."""
    tree = Tree()
    for platform in platforms:
        where = f"usr/lib/grub/{platform}"
        for name in grub.MODULES[platform]:
            tree.write(f"{where}/{name}.mod", f"module {name}")
        tree.write(f"{where}/moddep.lst", "normal: boot\nboot:\n")
        tree.write(f"{where}/boot.mod", "module boot")
        tree.write(f"{where}/kernel.img", small_kernel(platform))
        if platform == "i386-pc":
            tree.write(f"{where}/boot.img", fake_boot_img())
            tree.write(f"{where}/diskboot.img", bytes(500) + struct.pack("<QHH", 2, 0, 0x820))
            tree.write(f"{where}/lzma_decompress.img", b"\xea" + bytes(2000))
    return tree
