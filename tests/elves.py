"""Make small ELF files with the headers that a test needs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from imgkit.rootfs.binaries.elf import ET_DYN, MACHINES

_BASE = 0x10000  # address of the file's first byte, so that addresses and offsets differ


def make_elf(
    architecture: str = "x86_64",
    *,
    kind: int = ET_DYN,
    interpreter: str | None = None,
    needed: Sequence[str] = (),
    runpath: str | None = None,
    rpath: str | None = None,
    soname: str | None = None,
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return an ELF file of these properties; it has no code."""
    machine, bits, order = MACHINES[architecture]
    wide = bits == 64
    strings = bytearray(b"\0")

    def text(value: str) -> int:
        place = len(strings)
        strings.extend(value.encode() + b"\0")
        return place

    tags = [(1, text(name)) for name in needed]
    tags += [(tag, text(value)) for tag, value in ((14, soname), (15, rpath), (29, runpath)) if value is not None]
    dynamic_size = (len(tags) + 2) * (16 if wide else 8)
    count = 1 + (interpreter is not None) + bool(tags)
    header_size, segment_size, section_size = (64, 56, 64) if wide else (52, 32, 40)
    interp_at = header_size + count * segment_size
    interp = (interpreter or "").encode() + b"\0"
    dynamic_at = interp_at + len(interp)
    strings_at = dynamic_at + dynamic_size
    word = order + ("QQ" if wide else "II")
    dynamic = b"".join(struct.pack(word, *tag) for tag in [*tags, (5, _BASE + strings_at), (0, 0)])
    body = interp + dynamic + bytes(strings)
    total = interp_at + len(body)

    def segment(number: int, offset: int, size: int) -> bytes:
        if wide:
            return struct.pack(order + "IIQQQQQQ", number, 4, offset, _BASE + offset, 0, size, size, 1)
        return struct.pack(order + "IIIIIIII", number, offset, _BASE + offset, 0, size, size, 4, 1)

    segments = segment(1, 0, total)
    segments += segment(3, interp_at, len(interp)) if interpreter is not None else b""
    segments += segment(2, dynamic_at, len(dynamic)) if tags else b""
    table, contents, rows = _sections(sections, total, order, wide=wide)
    ident = b"\x7fELF" + bytes((bits // 32, 1 if order == "<" else 2, 1)) + bytes(9)
    numbers = (kind, machine, 1, 0, header_size, total + len(contents) if rows else 0, 0)
    layout = order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH")
    header = ident + struct.pack(
        layout, *numbers, header_size, segment_size, count, section_size, rows, max(rows - 1, 0)
    )
    return header + segments + body + contents + table


def _sections(sections: Mapping[str, bytes] | None, start: int, order: str, *, wide: bool) -> tuple[bytes, bytes, int]:
    """(section table, contents, number of rows) for sections of these names; the table of names is the last."""
    if sections is None:
        return b"", b"", 0
    layout = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    names, contents = b"\0", b""
    rows = [struct.pack(layout, *([0] * 10))]
    for name, data in [*sections.items(), (".shstrtab", None)]:
        at, names = len(names), names + name.encode() + b"\0"
        data = names if data is None else data
        rows.append(struct.pack(layout, at, 1, 0, 0, start + len(contents), len(data), 0, 0, 1, 0))
        contents += data
    return b"".join(rows), contents, len(rows)
