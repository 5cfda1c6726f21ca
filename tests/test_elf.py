"""ELF facts, library search as musl does it, and the check that everything is for one machine."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.rootfs.binaries import elf, libraries
from imgkit.rootfs.binaries.elf import ET_EXEC, ET_REL, MACHINES, ElfError
from imgkit.rootfs.binaries.libraries import Libraries, check_architecture, system_path, with_targets
from imgkit.tree import Content, HardLink, Inline, Slice, Tree
from tests.elves import make_elf

LOADER = "lib/ld-musl-x86_64.so.1"


def second_opinion(data: bytes) -> tuple[str | None, tuple[str, ...], tuple[str, ...], str | None]:
    """(interpreter, needed, search, soname) as pyelftools reads them."""
    interpreter: str | None = None
    needed: list[str] = []
    search: list[str] = []
    soname: str | None = None
    for segment in ELFFile(io.BytesIO(data)).iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        if isinstance(segment, DynamicSegment):
            tags: Any = segment.iter_tags()
            for tag in tags:
                match tag.entry.d_tag:
                    case "DT_NEEDED":
                        needed.append(tag.needed)
                    case "DT_RPATH":
                        search += tag.rpath.split(":")
                    case "DT_RUNPATH":
                        search += tag.runpath.split(":")
                    case "DT_SONAME":
                        soname = tag.soname
    return interpreter, tuple(needed), tuple(search), soname


def facts_of(data: bytes) -> tuple[str | None, tuple[str, ...], tuple[str, ...], str | None]:
    facts = elf.read(Inline(data))
    assert facts is not None
    return facts.interpreter, facts.needed, facts.search, facts.soname


@pytest.mark.parametrize("architecture", sorted(MACHINES))
def test_every_class_and_byte_order(architecture: str) -> None:
    data = make_elf(
        architecture,
        interpreter="/lib/ld.so",
        needed=["libz.so.1", "libc.so"],
        rpath="/old",
        runpath="$ORIGIN/../lib:/opt",
        soname="libx.so",
    )
    expected = ("/lib/ld.so", ("libz.so.1", "libc.so"), ("/old", "$ORIGIN/../lib", "/opt"), "libx.so")
    assert facts_of(data) == expected == second_opinion(data)
    facts = elf.read(Inline(data))
    assert facts is not None
    assert [name for name in MACHINES if facts.is_for(name)] == [
        name for name in MACHINES if MACHINES[name] == MACHINES[architecture]
    ]


@pytest.mark.parametrize("program", [Path(sys.executable).resolve(), Path("/bin/sh").resolve()], ids=["python", "sh"])
@pytest.mark.skipif(sys.platform != "linux", reason="looks at this host's ELF programs")
def test_programs_of_this_host(program: Path) -> None:
    data = program.read_bytes()
    facts = elf.read(Slice(program, 0, len(data)))
    assert facts is not None
    assert (facts.interpreter, facts.needed, facts.search, facts.soname) == second_opinion(data)
    assert facts.needed


class Stream:
    """Content that is neither inline nor a slice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def open(self) -> io.BytesIO:
        return io.BytesIO(self._data)

    def read(self) -> bytes:
        return self._data


@pytest.mark.slow
@given(data=st.binary(max_size=200), offset=st.integers(0, 250), size=st.integers(0, 250))
def test_part_of_any_content(tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(b"before" + data + b"after")
    contents: list[Content] = [Inline(data), Slice(path, 6, len(data)), Stream(data)]
    for content in contents:
        assert elf.read_part(content, offset, size) == data[offset : offset + size]


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fEL", b"MZ" + bytes(200)])
def test_no_elf_at_all(data: bytes) -> None:
    assert elf.read(Inline(data)) is None
    assert elf.parse_header(data) is None


@given(length=st.integers(4, 119))
def test_cut_off(length: int) -> None:
    with pytest.raises(ElfError):
        elf.read(Inline(make_elf()[:length]))


@given(place=st.integers(4, 300), value=st.integers(0, 255))
def test_damage_is_an_elf_error_or_other_facts(place: int, value: int) -> None:
    data = bytearray(make_elf(interpreter="/lib/ld.so", needed=["libz.so.1"], runpath="/opt"))
    data[place % len(data)] = value
    with suppress(ElfError):  # anything else fails the test
        facts = elf.read(Inline(bytes(data)))
        assert facts is None or 0 <= facts.machine < 1 << 16


# Numbers of the gABI's registry of machines, not those of the module under test.
REGISTRY = {
    "x86_64": (62, 2, 1),
    "aarch64": (183, 2, 1),
    "x86": (3, 1, 1),
    "armhf": (40, 1, 1),
    "armv7": (40, 1, 1),
    "ppc64le": (21, 2, 1),
    "s390x": (22, 2, 2),
    "riscv64": (243, 2, 1),
    "loongarch64": (258, 2, 1),
}


def header(machine: int, bits: int = 2, order: int = 1) -> bytes:
    """Return the first 64 bytes of a relocatable file for a machine."""
    start = b"\x7fELF" + bytes((bits, order, 1)) + bytes(9)
    return (start + struct.pack("<HH" if order == 1 else ">HH", ET_REL, machine)).ljust(64, b"\0")


@pytest.mark.parametrize("architecture", sorted(MACHINES))
def test_machines_have_the_numbers_of_the_registry(architecture: str) -> None:
    facts = elf.parse_header(header(*REGISTRY[architecture]))
    assert facts is not None
    assert facts.is_for(architecture)


@pytest.mark.parametrize(
    ("machine", "bits", "name"),
    [
        (2, 1, "sparc"),
        (3, 1, "x86"),
        (8, 1, "mips"),
        (21, 2, "ppc64"),
        (22, 2, "s390x"),
        (40, 1, "arm"),
        (62, 2, "x86_64"),
        (62, 1, "x32"),
        (183, 2, "aarch64"),
        (243, 2, "riscv64"),
        (247, 2, "bpf"),
        (258, 2, "loongarch64"),
        (999, 2, "machine 999"),
    ],
)
def test_names_of_machines(machine: int, bits: int, name: str) -> None:
    facts = elf.parse_header(header(machine, bits))
    assert facts is not None
    assert facts.machine_name == name


def changed(data: bytes, place: int, layout: str, *values: int) -> bytes:
    """``data`` with other numbers at a place."""
    buffer = bytearray(data)
    struct.pack_into(layout, buffer, place, *values)
    return bytes(buffer)


def test_segments_of_a_relocatable_file_are_not_read() -> None:
    data = changed(make_elf(kind=ET_REL), 54, "<HH", 1, 60_000)
    facts = elf.read(Inline(data))
    assert facts is not None
    assert (facts.type, facts.needed) == (ET_REL, ())


def test_a_file_without_segments_needs_nothing() -> None:
    assert facts_of(changed(make_elf(needed=["libz.so.1"]), 54, "<HH", 0, 0)) == (None, (), (), None)


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (55, 1, "a table of 1 headers of 55 bytes"),
        (56, 1170, "its headers are outside the file"),
        (56, 1171, "a table of 1171 segments of 56 bytes"),
        (64, 1024, "its headers are outside the file"),
    ],
)
def test_tables_of_segments_that_are_too_large_or_narrow(size: int, count: int, message: str) -> None:
    with pytest.raises(ElfError, match=f"^{message}$"):
        elf.read(Inline(changed(make_elf(), 54, "<HH", size, count)))


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (63, 3, "a table of 3 headers of 63 bytes"),
        (64, 16384, "its headers are outside the file"),
        (64, 16385, "a table of 16385 headers of 64 bytes"),
    ],
)
def test_tables_of_sections_that_are_too_large_or_narrow(size: int, count: int, message: str) -> None:
    with pytest.raises(ElfError, match=f"^{message}$"):
        elf.section(changed(make_elf(sections={".text": b"x"}), 58, "<HH", size, count), ".text")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_elf("x86")[:51], "cut off, or of an unknown class"),
        (make_elf()[:63], "cut off"),
        (changed(make_elf(), 4, "B", 0), "cut off, or of an unknown class"),
        (changed(make_elf(), 4, "B", 3), "cut off, or of an unknown class"),
        (changed(make_elf(), 5, "B", 0), "cut off, or of an unknown class"),
        (changed(make_elf(), 5, "B", 3), "cut off, or of an unknown class"),
    ],
)
def test_headers_that_cannot_be_read(data: bytes, message: str) -> None:
    with pytest.raises(ElfError, match=f"^{message}$"):
        elf.parse_header(data)


@pytest.mark.parametrize(("architecture", "size"), [("x86", 52), ("x86_64", 64)])
def test_the_shortest_header(architecture: str, size: int) -> None:
    facts = elf.parse_header(make_elf(architecture)[:size])
    assert facts is not None
    assert facts.is_for(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4096, 4097])
def test_the_most_names(count: int) -> None:
    data = make_elf(needed=["a"] * (count - 3), soname="s", rpath="r", runpath="u")
    if count == 4096:
        assert facts_of(data) == (None, ("a",) * 4093, ("r", "u"), "s")
    else:
        with pytest.raises(ElfError, match=r"^more than 4096 names of libraries and folders$"):
            elf.read(Inline(data))


def test_the_longest_name_is_cut() -> None:
    data = make_elf(interpreter="i" * 5000, needed=["n" * 5000, "m"])
    assert facts_of(data) == ("i" * 4096, ("n" * 4096, "m"), (), None)


def test_two_dynamic_sections() -> None:
    data = make_elf(interpreter="/lib/ld.so", needed=["a"])
    with pytest.raises(ElfError, match=r"^2 dynamic sections$"):
        elf.read(Inline(changed(data, 64 + 56, "<I", 2)))


def test_half_an_entry_at_the_end_of_the_dynamic_section_is_none() -> None:
    data = make_elf(needed=["a", "b"])
    assert facts_of(changed(data, 64 + 56 + 32, "<Q", 3 * 16 + 15))[1] == ("a", "b")


def test_sections_are_found_by_their_whole_name() -> None:
    data = make_elf(sections={".modinfo2": b"two", ".modinf": b"short", ".modinfo": b"one"})
    assert elf.section(data, ".modinfo") == b"one"
    with pytest.raises(ElfError, match="no section names"):
        elf.section(changed(data, 62, "<H", 5), ".modinfo")


def test_the_dynamic_section_ends_with_its_null() -> None:
    data = make_elf(needed=["libz.so.1"], soname="x")
    place = data.index(struct.pack("<QQ", 1, 1))
    assert facts_of(data)[1] == ("libz.so.1",)
    assert facts_of(changed(data, place, "<QQ", 0, 0)) == (None, (), (), None)


@pytest.mark.parametrize(("begin", "end", "inside"), [(0, 0, True), (16, 0, True), (-1, 0, True), (-1, 1, False)])
def test_the_string_table_is_found_by_its_address(begin: int, end: int, inside: bool) -> None:
    """The loaded segment begins at ``begin`` (-1: at the table itself), and may end just before the table."""
    data = make_elf(needed=["libz.so.1"])
    table = data.index(b"\0libz.so.1")
    first = table if begin < 0 else begin
    if end:
        first = table - 8
    size = 8 if end else len(data) - first
    data = changed(data, 64 + 8, "<QQ", first, 0x10000 + first)
    data = changed(data, 64 + 32, "<Q", size)
    if inside:
        assert facts_of(data)[1] == ("libz.so.1",)
    else:
        with pytest.raises(ElfError, match="its string table is in no segment"):
            elf.read(Inline(data))


def test_sections() -> None:
    data = make_elf(sections={".text": b"code", ".modinfo": b"license=GPL\0"})
    assert elf.section(data, ".modinfo") == b"license=GPL\0"
    assert elf.section(data, ".nothing") == b""
    with pytest.raises(ElfError, match="no section names"):
        elf.section(make_elf(), ".modinfo")
    with pytest.raises(ElfError, match="not an ELF"):
        elf.section(b"text", ".modinfo")


# ---- libraries -------------------------------------------------------------------------------------------------------


def small_tree() -> Tree:
    tree = Tree()
    tree.write(LOADER, make_elf(soname="ld"), mode=0o755)
    tree.symlink("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1")
    tree.write("usr/lib/libz.so.1.3", make_elf(needed=["libc.musl-x86_64.so.1"]), mode=0o755)
    tree.symlink("usr/lib/libz.so.1", "libz.so.1.3")
    return tree


def program(tree: Tree, path: str = "bin/program", **properties: Any) -> None:
    arguments: dict[str, Any] = {"interpreter": "/" + LOADER, "kind": ET_EXEC} | properties
    tree.write(path, make_elf(**arguments), mode=0o755)


def test_closure_has_interpreter_libraries_and_link_targets() -> None:
    tree = small_tree()
    program(tree, needed=["libz.so.1", "libc.musl-x86_64.so.1"])
    tree.symlink("bin/alias", "/bin/program")
    assert Libraries(tree).closure(["bin/alias"]) == {
        *("bin/alias", "bin/program", LOADER, "lib/libc.musl-x86_64.so.1"),
        *("usr/lib/libz.so.1", "usr/lib/libz.so.1.3"),
    }


def test_a_file_that_is_no_program_needs_nothing() -> None:
    tree = small_tree()
    tree.write("etc/motd", "hello")
    assert Libraries(tree).closure(["etc/motd"]) == {"etc/motd"}


def test_libc_is_not_missed_where_it_is_no_file() -> None:
    tree = small_tree()
    tree.remove("lib/libc.musl-x86_64.so.1")
    program(tree, needed=["libc.musl-x86_64.so.1", "libpthread.so.0"])
    assert Libraries(tree).closure(["bin/program"]) == {"bin/program", LOADER}


def test_missing_library_names_both() -> None:
    tree = small_tree()
    program(tree, needed=["libssl.so.3"])
    with pytest.raises(InputError, match=r"/bin/program needs the library libssl\.so\.3") as caught:
        Libraries(tree).closure(["bin/program"])
    assert "so:libssl.so.3" in str(caught.value.hint)


def test_missing_interpreter_and_missing_program() -> None:
    tree = small_tree()
    program(tree, interpreter="/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(InputError, match=r"interpreter /lib64/ld-linux-x86-64\.so\.2"):
        Libraries(tree).closure(["bin/program"])
    with pytest.raises(InputError, match="/bin/nothing: no such file"):
        Libraries(tree).closure(["bin/nothing"])


def test_links_that_lead_nowhere_or_round() -> None:
    tree = small_tree()
    tree.symlink("bin/dangling", "nothing")
    tree.symlink("bin/one", "two")
    tree.symlink("bin/two", "one")
    for name in ("dangling", "one"):
        with pytest.raises(InputError, match=f"/bin/{name}"):
            with_targets(tree, f"bin/{name}")


def test_directories_that_are_links_are_resolved() -> None:
    tree = Tree()
    tree.write("usr/bin/tool", "x")
    tree.symlink("bin", "usr/bin")
    tree.symlink("usr/bin/other", "../../bin/tool")
    assert with_targets(tree, "bin/other") == ["usr/bin/other", "usr/bin/tool"]


def test_run_paths_with_origin_come_before_the_system() -> None:
    tree = small_tree()
    tree.write("opt/lib/libz.so.1", make_elf(), mode=0o755)
    program(tree, "opt/bin/tool", needed=["libz.so.1"], runpath="${ORIGIN}/../lib")
    closure = Libraries(tree).closure(["opt/bin/tool"])
    assert "opt/lib/libz.so.1" in closure
    assert "usr/lib/libz.so.1" not in closure


def test_run_paths_are_inherited_by_what_a_program_needs() -> None:
    tree = small_tree()
    tree.write("opt/liba.so", make_elf(needed=["libb.so"]), mode=0o755)
    tree.write("opt/libb.so", make_elf(), mode=0o755)
    program(tree, needed=["liba.so"], rpath="/opt")
    assert {"opt/liba.so", "opt/libb.so"} <= Libraries(tree).closure(["bin/program"])
    with pytest.raises(InputError, match=r"libb\.so"):
        Libraries(tree).closure(["opt/liba.so"])


def test_libraries_that_need_each_other() -> None:
    tree = small_tree()
    tree.write("lib/liba.so", make_elf(needed=["libb.so"], runpath="$ORIGIN"))
    tree.write("lib/libb.so", make_elf(needed=["liba.so"], runpath="$ORIGIN"))
    assert Libraries(tree).closure(["lib/liba.so"]) == {"lib/liba.so", "lib/libb.so"}


def test_as_many_loads_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = small_tree()
    program(tree, needed=["libz.so.1"])
    monkeypatch.setattr(libraries, "_MAX_LOADS", 4)
    assert len(Libraries(tree).closure(["bin/program"])) == 5
    monkeypatch.setattr(libraries, "_MAX_LOADS", 3)
    with pytest.raises(InputError, match=r": it and what else is needed take more than 3 loads of libraries$"):
        Libraries(tree).closure(["bin/program"])


def test_what_a_file_itself_misses() -> None:
    tree = small_tree()
    tree.write("opt/libown.so", make_elf(needed=["libdeep.so"]))
    tree.write("opt/a.so", make_elf(needed=["libown.so", "libno.so", "libm.so.6", "libz.so.1"], runpath="$ORIGIN"))
    tree.write("opt/text", "text")
    assert Libraries(tree).missing("opt/a.so") == ["libno.so"]
    assert Libraries(tree).missing("opt/text") == []
    assert Libraries(tree).missing_recursively("opt/a.so") == ["libno.so", "libdeep.so"]


@pytest.mark.parametrize(("dictionary", "fits"), [(0x18, True), (0x1E, False)])
def test_modules_whose_head_takes_much_memory_to_unpack(dictionary: int, fits: bool) -> None:
    """The header of an xz block has the dictionary's size at 4 (16 or 128 MiB), and its CRC32 at 8 (xz-file-format)."""
    packed = bytearray(lzma.compress(make_elf(kind=ET_REL)))
    packed[16] = dictionary
    struct.pack_into("<I", packed, 20, zlib.crc32(packed[12:20]))
    tree = complete_tree()
    tree.write("lib/modules/6/x.ko.xz", bytes(packed))
    problem = "/lib/modules/6/x.ko.xz: cannot be decompressed: Memory usage limit exceeded"
    assert check_architecture(tree, "x86_64") == ([] if fits else [problem])


@pytest.mark.parametrize("name", ["etc/ld-musl-.path", "etc/ld-musl-x86_64.path.old", "etc/x-ld-musl-x86_64.path"])
def test_names_that_only_resemble_the_path_file(name: str) -> None:
    tree = small_tree()
    tree.write(name, "/srv")
    tree.symlink("etc/ld-musl-x86_64.path", "nowhere")
    assert system_path(tree) == ("/lib", "/usr/local/lib", "/usr/lib")


def test_path_file_of_musl() -> None:
    tree = small_tree()
    assert system_path(tree) == ("/lib", "/usr/local/lib", "/usr/lib")
    tree.write("etc/ld-musl-x86_64.path", "/lib:/srv/lib\n/usr/lib\n")
    assert system_path(tree) == ("/lib", "/srv/lib", "/usr/lib")
    tree.write("srv/lib/libs.so", make_elf())
    program(tree, needed=["libs.so"])
    assert "srv/lib/libs.so" in Libraries(tree).closure(["bin/program"])


def test_damaged_library_is_named() -> None:
    tree = small_tree()
    tree.write("lib/libbad.so", make_elf()[:60])
    program(tree, needed=["libbad.so"])
    with pytest.raises(InputError, match=r"/lib/libbad\.so: damaged"):
        Libraries(tree).closure(["bin/program"])


# ---- the whole Tree --------------------------------------------------------------------------------------------------


def complete_tree() -> Tree:
    tree = small_tree()
    program(tree, needed=["libz.so.1"])
    tree.write("bin/script", "#!/bin/sh\n", mode=0o755)
    module = make_elf(kind=ET_REL)
    tree.write("lib/modules/6/a.ko", module)
    tree.write("lib/modules/6/b.ko.gz", gzip.compress(module))
    tree.write("lib/modules/6/c.ko.xz", lzma.compress(module))
    tree.write("usr/lib/grub/i386-pc/ext2.mod", make_elf("x86", kind=ET_REL))
    tree.write("usr/lib/grub/i386-pc/kernel.exec", make_elf("x86", kind=ET_EXEC))
    tree.write("usr/share/syslinux/menu.c32", make_elf("x86"))
    tree.write("lib/firmware/dsp.elf", make_elf("armv7"))
    tree.write("usr/lib/reader.o", make_elf("s390x", kind=ET_REL))
    tree.write("opt/m/prebuilds/linux-arm64/m.node", make_elf("aarch64"))
    tree.write("opt/m/build/m.node", make_elf(needed=["libc.musl-x86_64.so.1"]))
    return tree


def test_a_proper_tree_has_no_problems() -> None:
    assert check_architecture(complete_tree(), "x86_64") == []


def test_everything_is_foreign_elsewhere() -> None:
    problems = check_architecture(complete_tree(), "riscv64")
    assert sorted(problem.partition(":")[0] for problem in problems) == [
        *("/bin/program", "/" + LOADER, "/lib/modules/6/a.ko", "/lib/modules/6/b.ko.gz", "/lib/modules/6/c.ko.xz"),
        *("/opt/m/build/m.node", "/usr/lib/libz.so.1.3"),
    ]
    assert "/bin/program: is for x86_64, the image for riscv64" in problems


def test_a_hard_link_is_reported_once() -> None:
    tree = small_tree()
    program(tree, architecture="aarch64")
    tree.add("bin/same", HardLink(target="bin/program"))
    assert check_architecture(tree, "x86_64") == ["/bin/program: is for aarch64, the image for x86_64"]


@pytest.mark.parametrize(
    ("path", "data", "problem"),
    [
        ("bin/glibc", make_elf(interpreter="/lib64/ld-linux-x86-64.so.2"), "needs the interpreter /lib64/ld-linux"),
        ("opt/a.node", make_elf("aarch64"), "is for aarch64"),
        ("opt/a.node", b"\xcf\xfa\xed\xfe" + bytes(60), "compiled for another system"),
        ("opt/a.node", make_elf(needed=["libc.so.6"]), "compiled for glibc"),
        ("opt/a.node", make_elf(needed=["libvips.so.42"]), "needs the library libvips.so.42"),
        ("lib/modules/6/x.ko", b"text", "not an ELF kernel module"),
        ("lib/modules/6/x.ko.gz", b"text", "cannot be decompressed"),
        ("lib/modules/6/x.ko.xz", b"text", "cannot be decompressed"),
        ("lib/modules/6/x.ko.zst", b"text", "cannot be checked"),
        ("lib/libcut.so", make_elf()[:30], "cut off"),
        ("lib/libcut.so", make_elf(interpreter="/lib/ld")[:70], "outside the file"),
    ],
)
def test_problems(path: str, data: bytes, problem: str) -> None:
    tree = complete_tree()
    tree.write(path, data)
    (line,) = check_architecture(tree, "x86_64")
    assert line.startswith(f"/{path}: ")
    assert problem in line


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("opt/m/prebuilt/m.node", make_elf("aarch64")),
        ("opt/m/prebuild/m.node", make_elf("aarch64")),
        ("prebuilds/m.node", make_elf("aarch64")),
        ("opt/empty.node", b""),
        ("opt/filter", changed(make_elf(kind=ET_EXEC), 18, "<H", 247)),  # a BPF program
        ("opt/tool", make_elf(needed=["libnothing.so"])),  # a library counts when something needs it
        ("boot/vmlinuz", make_elf("aarch64")),
        ("usr/lib/firmware/x", make_elf("aarch64")),
    ],
)
def test_what_is_data_or_not_needed_is_no_problem(path: str, data: bytes) -> None:
    tree = complete_tree()
    tree.write(path, data)
    assert check_architecture(tree, "x86_64") == []


@pytest.mark.parametrize("path", ["opt/myprebuilds/m.node", "boots/x", "usr/shared/x"])
def test_names_that_only_resemble_folders_of_data(path: str) -> None:
    tree = complete_tree()
    tree.write(path, make_elf("aarch64"))
    assert check_architecture(tree, "x86_64") == [f"/{path}: is for aarch64, the image for x86_64"]


def test_a_library_that_is_needed_by_its_path() -> None:
    tree = small_tree()
    tree.write("opt/own.so", make_elf())
    program(tree, needed=["/opt/own.so"])
    assert "opt/own.so" in Libraries(tree).closure(["bin/program"])
    tree.remove("opt/own.so")
    with pytest.raises(InputError, match=r"/bin/program needs the library /opt/own\.so, which") as caught:
        Libraries(tree).closure(["bin/program"])
    assert caught.value.hint == "add the package that provides /opt/own.so"


def test_glibc_modules_are_fine_where_something_stands_in_for_it() -> None:
    tree = complete_tree()
    tree.write("opt/a.node", make_elf(needed=["libc.so.6"]))
    tree.symlink("lib/ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1")
    assert check_architecture(tree, "x86_64") == []
