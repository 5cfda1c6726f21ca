"""Recognise programs and libraries of macOS and Windows by the first bytes of their formats, Mach-O and PE.

Formats: Apple's ``mach-o/loader.h`` and ``mach-o/fat.h``; Microsoft's PE/COFF specification. Only a few hundred bytes
of a file are read.
"""

from __future__ import annotations

import struct

from imgkit.rootfs.binaries import elf
from imgkit.tree import Content

# Mach-O for one machine, of 32 and 64 bits, as a little-endian and as a big-endian machine writes it.
_MACH_O = frozenset(bytes.fromhex(magic) for magic in ("cefaedfe", "cffaedfe", "feedface", "feedfacf"))
_FAT = frozenset(bytes.fromhex(magic) for magic in ("cafebabe", "cafebabf"))
# Machines in one file. A Java class, which begins with the same magic, has its version in this place: 45 or more.
_MAX_FAT_MACHINES = 40
# "Actually portable executables" run on Linux too: they are PE files and shell scripts at the same time.
_PORTABLE = b"MZqFpD"
_WINDOWS_SUBSYSTEMS = (1, 2, 3)  # native, graphical, console; programs of firmware and Linux kernels have others
_CLR_HEADER = 14  # the data directory that only .NET assemblies have, which are for no particular system
_PE_HEADERS = 512


def foreign_system(content: Content, start: bytes) -> str | None:
    """Return ``"macOS"`` or ``"Windows"``, None for anything else (ELF files too).

    Args:
        start: the first :data:`imgkit.rootfs.binaries.elf.HEADER_SIZE` bytes of ``content``.
    """
    if start[:4] in _MACH_O:
        return "macOS"
    if start[:4] in _FAT and len(start) >= 8 and 0 < int.from_bytes(start[4:8], "big") < _MAX_FAT_MACHINES:
        return "macOS"
    return "Windows" if start[:2] == b"MZ" and _is_windows(content, start) else None


def _is_windows(content: Content, start: bytes) -> bool:
    """Return whether a file that begins with the magic of DOS is a program or library that needs Windows."""
    if start.startswith(_PORTABLE) or len(start) < 64:
        return False
    headers = elf.read_part(content, struct.unpack_from("<I", start, 60)[0], _PE_HEADERS)
    if headers[:4] != b"PE\0\0" or len(headers) < 24 + 96:
        return False
    magic, subsystem = struct.unpack_from("<H", headers, 24)[0], struct.unpack_from("<H", headers, 24 + 68)[0]
    directories = 24 + {0x10B: 96, 0x20B: 112}.get(magic, _PE_HEADERS)  # PE32, PE32+
    clr = headers[directories + 8 * _CLR_HEADER :][:8]
    return subsystem in _WINDOWS_SUBSYSTEMS and not any(clr)
