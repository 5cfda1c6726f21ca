"""Read what an ELF file states: machine, interpreter, needed libraries, search paths.

    facts = read(content)      # None if it is not an ELF file
    facts.is_for("x86_64")

Formats: System V ABI, chapters 4 and 5 (file and program headers, dynamic section). Only the few hundred bytes that
matter are read, so thousands of files (or one of a hundred megabytes) cost little; a general ELF library reads the
whole file and takes longer than everything else that is done with the Tree.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from imgkit.tree import Content, HashedSlice, Inline, Slice

_MAGIC = b"\x7fELF"

# Alpine's name of an architecture → (e_machine, bits, byte order); numbers from the gABI's registry.
MACHINES: Mapping[str, tuple[int, int, str]] = MappingProxyType(
    {
        "x86_64": (62, 64, "<"),
        "aarch64": (183, 64, "<"),
        "x86": (3, 32, "<"),
        "armhf": (40, 32, "<"),
        "armv7": (40, 32, "<"),
        "ppc64le": (21, 64, "<"),
        "s390x": (22, 64, ">"),
        "riscv64": (243, 64, "<"),
        "loongarch64": (258, 64, "<"),
    }
)
_NAMES = {2: "sparc", 3: "x86", 8: "mips", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64"}
_NAMES |= {243: "riscv64", 247: "bpf", 258: "loongarch64"}

EM_BPF = 247
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_NAMED = frozenset({_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH})
_MAX_TABLE = 1 << 20  # of one header table or dynamic section, bytes; real ones have a few kilobytes
_MAX_SEGMENTS = 64 << 10  # of the table of segments, bytes; Linux takes no more (fs/binfmt_elf.c)
_MAX_NAMES = 4096  # of needed libraries and search paths; real files have a few hundred at most
_MAX_STRING = 4096
_HEADERS = {32: "HHIIIIIHHHHHH", 64: "HHIQQQIHHHHHH"}  # e_type … e_shstrndx
_SECTION = {32: "IIIIIIIIII", 64: "IIQQQQIIQQ"}
HEADER_SIZE = 64


class ElfError(ValueError):
    """The file begins like an ELF file, but is damaged."""


@dataclass(frozen=True)
class Elf:
    """Facts about one ELF file. ``search`` has its DT_RPATH and DT_RUNPATH entries, with ``$ORIGIN`` unexpanded."""

    type: int
    machine: int
    bits: int
    order: str
    interpreter: str | None = None
    needed: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    soname: str | None = None

    def is_for(self, architecture: str) -> bool:
        """Return whether this file is for Alpine's ``architecture``.

        Raises:
            KeyError: the architecture is unknown.
        """
        return (self.machine, self.bits, self.order) == MACHINES[architecture]

    @property
    def machine_name(self) -> str:
        """The machine's name for messages."""
        name = _NAMES.get(self.machine, f"machine {self.machine}")
        return "x32" if name == "x86_64" and self.bits == 32 else name


@dataclass(frozen=True)
class _Segment:
    """A row of the program header table: type, place in the file, address in memory, bytes in the file."""

    kind: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True)
class _Header:
    """The fields of the file header that are used here."""

    facts: Elf
    segments_at: int
    segment_size: int
    segments: int
    sections_at: int
    section_size: int
    sections: int
    names: int


def may_be_elf(content: Content) -> bool:
    """Return whether a content may be an ELF file, as far as that is known without opening it."""
    return not isinstance(content, HashedSlice) or content.start == _MAGIC


def read_part(content: Content, offset: int, size: int) -> bytes:
    """Return up to ``size`` bytes at ``offset`` of ``content``, if possible without reading what comes before them."""
    size = max(0, min(size, content.size - offset))
    if isinstance(content, Inline):
        return content.data[offset : offset + size]
    if isinstance(content, Slice):
        return content.part(offset, size) if size else b""
    with content.open() as source:
        source.read(offset)
        return source.read(size)


def read(content: Content) -> Elf | None:
    """Return the facts of an ELF file, None if ``content`` does not begin like one.

    Raises:
        ElfError: its headers are damaged.
    """
    start = read_part(content, 0, HEADER_SIZE)
    if start[:4] != _MAGIC:
        return None
    header = _header(start)
    if header.facts.type not in (ET_EXEC, ET_DYN):
        return header.facts
    segments = _segments(content, header)
    interpreter = next((_interpreter(content, segment) for segment in segments if segment.kind == _PT_INTERP), None)
    return _with_dynamic(content, replace(header.facts, interpreter=interpreter), segments)


def parse_header(start: bytes) -> Elf | None:
    """Return the type and machine in the first :data:`HEADER_SIZE` bytes of a file, None if it is not an ELF file.

    Raises:
        ElfError: the header is damaged.
    """
    return _header(start).facts if start[:4] == _MAGIC else None


def section(data: bytes, name: str) -> bytes:
    """Return the contents of the section ``name`` of the file ``data``, empty if there is none.

    Raises:
        ElfError: it is not an ELF file, or its headers are damaged.
    """
    if data[:4] != _MAGIC:
        raise ElfError("not an ELF file")
    header = _header(data[:HEADER_SIZE])
    content = Inline(data)
    layout = header.facts.order + _SECTION[header.facts.bits]
    table = _table(content, layout, header.sections_at, header.section_size, header.sections)
    if header.names >= len(table):
        raise ElfError("no section names")
    names = _extent(data, table[header.names])
    for row in table:
        if names[row[0] : row[0] + len(name) + 1] == name.encode() + b"\0":
            return _extent(data, row)
    return b""


def _interpreter(content: Content, segment: _Segment) -> str:
    return _text(read_part(content, segment.offset, min(segment.size, _MAX_STRING)))


def _extent(data: bytes, row: tuple[int, ...]) -> bytes:
    """Return the contents of the section that a row of the section header table describes."""
    return data[row[4] : row[4] + row[5]]


def _header(start: bytes) -> _Header:
    if len(start) < 52 or start[4] not in (1, 2) or start[5] not in (1, 2):
        raise ElfError("cut off, or of an unknown class")
    bits, order = start[4] * 32, "<>"[start[5] - 1]
    layout = order + _HEADERS[bits]
    if len(start) < 16 + struct.calcsize(layout):
        raise ElfError("cut off")
    kind, machine, _, _, segments_at, sections_at, _, _, segment_size, segments, section_size, sections, names = (
        struct.unpack_from(layout, start, 16)
    )
    facts = Elf(type=kind, machine=machine, bits=bits, order=order)
    return _Header(facts, segments_at, segment_size, segments, sections_at, section_size, sections, names)


def _table(content: Content, layout: str, offset: int, size: int, count: int) -> list[tuple[int, ...]]:
    """Return the rows of a header table; each has ``size`` bytes, of which ``layout`` describes the first ones."""
    if not count:
        return []
    if size < struct.calcsize(layout) or size * count > _MAX_TABLE:
        raise ElfError(f"a table of {count} headers of {size} bytes")
    data = read_part(content, offset, size * count)
    if len(data) < size * count:
        raise ElfError("its headers are outside the file")
    return [struct.unpack_from(layout, data, index * size) for index in range(count)]


def _segments(content: Content, header: _Header) -> list[_Segment]:
    facts = header.facts
    layout = facts.order + ("IIQQQQQQ" if facts.bits == 64 else "IIIIIIII")
    if header.segment_size * header.segments > _MAX_SEGMENTS:
        raise ElfError(f"a table of {header.segments} segments of {header.segment_size} bytes")
    rows = _table(content, layout, header.segments_at, header.segment_size, header.segments)
    if facts.bits == 64:  # p_flags comes second in 64-bit files
        return [_Segment(kind, offset, address, size) for kind, _, offset, address, _, size, _, _ in rows]
    return [_Segment(kind, offset, address, size) for kind, offset, address, _, size, _, _, _ in rows]


def _with_dynamic(content: Content, facts: Elf, segments: list[_Segment]) -> Elf:
    """Return ``facts`` with the libraries, search paths and soname of the dynamic section."""
    sections = [segment for segment in segments if segment.kind == _PT_DYNAMIC]
    if len(sections) > 1:
        raise ElfError(f"{len(sections)} dynamic sections")
    entries = [entry for segment in sections for entry in _dynamic(content, facts, segment)]
    if sum(tag in _NAMED for tag, _ in entries) > _MAX_NAMES:
        raise ElfError(f"more than {_MAX_NAMES} names of libraries and folders")
    tables = [value for tag, value in entries if tag == _DT_STRTAB]
    if not tables:
        return facts
    strings = _file_offset(tables[0], segments)

    def texts(*tags: int) -> list[str]:
        return [_string(content, strings + value) for tag, value in entries if tag in tags]

    search = [place for paths in texts(_DT_RPATH, _DT_RUNPATH) for place in paths.split(":") if place]
    soname = texts(_DT_SONAME)
    return replace(facts, needed=tuple(texts(_DT_NEEDED)), search=tuple(search), soname=soname[0] if soname else None)


def _dynamic(content: Content, facts: Elf, segment: _Segment) -> Iterator[tuple[int, int]]:
    """Yield (tag, value) of each entry of the dynamic section up to DT_NULL."""
    layout = struct.Struct(facts.order + ("QQ" if facts.bits == 64 else "II"))
    data = read_part(content, segment.offset, min(segment.size, _MAX_TABLE))
    for tag, value in layout.iter_unpack(data[: len(data) // layout.size * layout.size]):
        if tag == _DT_NULL:
            return
        yield tag, value


def _file_offset(address: int, segments: list[_Segment]) -> int:
    """Return where the byte at ``address`` in memory is in the file."""
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ElfError("its string table is in no segment")


def _string(content: Content, offset: int) -> str:
    return _text(read_part(content, offset, _MAX_STRING))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="surrogateescape")
