"""Input that is huge, deep, slow, endless or repeated: each parser of the files of packages has its limits."""

from __future__ import annotations

import itertools
import lzma
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.apk.index import Repository, parse_index, parse_record
from imgkit.errors import InputError
from imgkit.rootfs import accounts, cacerts
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.binaries.libraries import Libraries
from imgkit.rootfs.initramfs import kmod
from imgkit.rootfs.initramfs.mkinitfs import expand_glob, feature_files
from imgkit.rootfs.kernel import unpack_zboot
from imgkit.tree import MAX_READ, MAX_TEXT, Directory, File, HardLink, Inline, Slice, Symlink, Tree, TreeError
from tests.elves import make_elf


@contextmanager
def quick(seconds: float = 20.0) -> Iterator[None]:
    """What is in the block takes little processor time; with the fault that the test is about it takes minutes."""
    started = time.process_time()
    yield
    slower = 1 if sys.gettrace() is None else 3  # while coverage is measured
    assert time.process_time() - started < seconds * slower


# ---- ELF files -------------------------------------------------------------------------------------------------------


def with_segments(segments: list[tuple[int, int, int]], rest: bytes = b"") -> bytes:
    """Return a 64-bit program with segments of (type, offset, size), and ``rest`` behind the table."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 0, at, at, at, size, size, 1) for kind, at, size in segments)
    return head + table + rest


def test_a_program_has_one_dynamic_section() -> None:
    entries = struct.pack("<QQ", 1, 0) * 10_000
    data = with_segments([(2, 64 + 56 * 1000, len(entries))] * 1000, entries)
    with quick(), pytest.raises(elf.ElfError, match="1000 dynamic sections"):
        elf.read(Inline(data))


def test_the_table_of_segments_is_as_large_as_linux_takes_it() -> None:
    with pytest.raises(elf.ElfError, match="a table of 2000 segments"):
        elf.read(Inline(with_segments([(3, 0, 4096)] * 2000)))
    assert elf.read(Inline(with_segments([(4, 0, 1)] * 1000))) is not None


def test_a_program_needs_so_many_libraries_and_no_more() -> None:
    with pytest.raises(elf.ElfError, match="more than 4096 names"):
        elf.read(Inline(make_elf(needed=[f"l{number}" for number in range(4097)])))
    assert elf.read(Inline(make_elf(needed=["a"] * 1000))) is not None


def test_sections_are_found_without_copying_all_their_names() -> None:
    data = bytearray(make_elf(sections={**{f".s{number}": b"" for number in range(5000)}, ".modinfo": b"a=b\0"}))
    table, names = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 62)[0]
    struct.pack_into("<Q", data, table + 64 * names + 32, 1 << 40)  # the table of names reaches to the end of the file
    with quick():
        assert elf.section(bytes(data) + bytes(50 << 20), ".modinfo") == b"a=b\0"


@pytest.mark.slow
def test_libraries_that_need_each_other_do_not_take_for_ever() -> None:
    tree = Tree()
    names = [f"l{number}.so" for number in range(9)]
    for name in names:
        tree.write(f"{name}.d/{name}", make_elf(needed=names, runpath=":".join(f"/{other}.d" for other in names[::-1])))
        tree.write(f"lib/{name}", make_elf(needed=names, runpath=f"/x{name}:/lib"))
    with quick(60), pytest.raises(InputError, match="loads of libraries"):
        Libraries(tree).closure([f"lib/{names[0]}"])


# ---- kernels and their modules ---------------------------------------------------------------------------------------


def test_keys_of_the_module_index_do_not_nest_without_end() -> None:
    assert kmod.write_index([("a" * size, "", 0) for size in range(600)])
    with pytest.raises(InputError, match="cannot be a key"):
        kmod.write_index([("a" * size, "", 0) for size in range(700)])


def test_a_kernel_whose_dictionary_is_larger_than_a_kernel() -> None:
    packed = bytearray(lzma.compress(b"x" * 100, lzma.FORMAT_ALONE))
    packed[1:5] = struct.pack("<I", 3 << 30)
    head = b"MZ\0\0zimg" + struct.pack("<II", 64, len(packed)) + bytes(8)
    with pytest.raises(InputError, match="boot/vmlinuz: kernel image is damaged"):
        unpack_zboot((head + b"lzma".ljust(32, b"\0")).ljust(64, b"\0") + bytes(packed), "boot/vmlinuz")


@pytest.mark.slow
def test_globs_that_go_up_and_down() -> None:
    tree = Tree()
    for number in range(30):
        tree.mkdir(f"usr/{number}")
    with quick(), pytest.raises(InputError, match=r"^/usr/\*/\.\./.*: (takes|needs) more than"):
        expand_glob(tree, "", "usr/" + "*/../" * 40 + "*")
    tree.write("etc/mkinitfs/features.d/base.files", "usr/*\n" * 100_000)
    with pytest.raises(InputError, match="where at most 262144 are read"):
        list(feature_files(tree, ["base"], "files", ""))


# ---- certificates and accounts ---------------------------------------------------------------------------------------


def test_certificates_that_never_end() -> None:
    tree = Tree()
    tree.write("etc/ca-certificates.conf", "a.crt\n")
    tree.write("usr/share/ca-certificates/a.crt", "-----BEGIN CERTIFICATE-----\n" * 100_000)
    with quick():
        cacerts.update(tree)
        assert cacerts.rehash(tree)
    tree.add("usr/share/ca-certificates/a.crt", File(content=Slice(Path("/nowhere"), 0, 5 << 20)))
    with pytest.raises(InputError, match="where at most 4194304 are read"):
        cacerts.update(tree)
    with pytest.raises(InputError, match="more than 4 MiB of certificates"):
        cacerts.rehash(tree)


@pytest.mark.parametrize("number", ["9" * 5000, "4294967295", "١", "-1", ""])
def test_numbers_that_no_account_has(number: str) -> None:
    tree = Tree()
    tree.write("etc/passwd", f"a:x:{number}:1::/:/bin/sh\nb:x:1:{number}::/:/bin/sh\nc:x:4294967294:1::/:/bin/sh\n")
    tree.write("etc/group", f"a:x:{number}:\nc:x:1:\n")
    assert [user.name for user in accounts.read_users(tree)] == ["c"]
    assert [group.name for group in accounts.read_groups(tree)] == ["c"]


def test_only_newlines_end_a_line_of_accounts() -> None:
    """As in the guest: else a name that Python takes for two lines would be a user here and none there."""
    tree = Tree()
    tree.write("etc/passwd", "a:x:1:1:x\x85root2:x:0:0:\x0b:/:/bin/sh\n")
    assert [user.name for user in accounts.read_users(tree)] == ["a"]


# ---- package indexes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lists_that_come_in_many_lines() -> None:
    with quick():
        package = parse_record(["P:a", "V:1", *itertools.repeat("D:b", 2_000_000)])
    assert package.depends == ("b",) * 2_000_000


def test_an_index_has_so_many_packages_and_no_more() -> None:
    with quick(), pytest.raises(InputError, match="example: has more than 200000 packages"):
        parse_index("P:a\nV:1\n\n" * 200_002, Repository(url="https://mirror.example"))


# ---- trees -----------------------------------------------------------------------------------------------------------


def test_files_that_are_read_as_a_whole_are_not_larger_than_memory() -> None:
    tree = Tree()
    tree.add("a", File(content=Slice(Path("/nowhere"), 0, MAX_READ + 1)))
    tree.add("b", File(content=Slice(Path("/nowhere"), 0, MAX_TEXT + 1)))
    with pytest.raises(InputError, match="/a: a file of 536870913 bytes"):
        tree.read("a")
    with pytest.raises(InputError, match="/b: a file of 67108865 bytes"):
        tree.text("b")


def test_paths_and_links_are_as_long_as_linux_takes_them() -> None:
    tree = Tree()
    tree.mkdir("a" * 255)
    with pytest.raises(TreeError, match="longer than a path may be"):
        tree.mkdir("ü" * 128)
    with pytest.raises(TreeError, match="longer than a path may be"):
        tree.add("a/" * 2048 + "a", Directory())
    tree.add("l", Symlink(target="t" * 4095))
    with pytest.raises(TreeError, match="improper link target"):
        tree.add("m", Symlink(target="t" * 4096))


@pytest.mark.slow
def test_files_are_removed_in_linear_time() -> None:
    tree = Tree()
    for number in range(20_000):
        tree.write(f"f{number}", b"")
    tree.add("h", HardLink(target="f7"))
    with quick():
        for number in range(20_000):
            tree.remove(f"f{number}")
    assert isinstance(tree["h"], File)
