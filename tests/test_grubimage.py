"""GRUB's core images, byte for byte those of grub-mkimage where that decides them, and unpacked again."""

from __future__ import annotations

import struct
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.disk import grub
from imgkit.disk.grubimage.efiimage import efi_image
from imgkit.disk.grubimage.efikernel import place_kernel
from imgkit.disk.grubimage.grubmodules import GrubImageError, module_area, with_dependencies
from imgkit.disk.grubimage.kernelelf import read_kernel
from imgkit.disk.grubimage.pcimage import pc_image
from imgkit.errors import RecipeError
from imgkit.tree import Tree
from tests.conftest import need_program
from tests.files import noise
from tests.grubfiles import ALLOC, DATA, MACHINES, TEXT, Kernel, Part, grub_tree, small_kernel, unpacked

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

UUID = "e9233e7e-5284-59e5-a669-ca097b623c70"


def by_grub_mkimage(tree: Tree, platform: str, folder: Path) -> bytes:
    """Return what grub-mkimage makes of the same files."""
    where = f"usr/lib/grub/{platform}"
    modules = folder / "modules"
    modules.mkdir()
    for path in tree.children(where):
        (modules / path.rpartition("/")[2]).write_bytes(tree.read(path))
    (folder / "early.cfg").write_text(grub.early_config(UUID))
    argv: list[str | Path] = [need_program("grub-mkimage"), "-O", platform, "-d", modules, "-p", "/boot/grub"]
    argv += ["-c", folder / "early.cfg", "-o", folder / "core", *grub.MODULES[platform]]
    subprocess.run(argv, check=True, capture_output=True)
    return (folder / "core").read_bytes()


def without_sizes(core: bytes, decompressor: int) -> bytes:
    """Return the part of a core image for BIOS that is not compressed, without the sizes of the rest."""
    image = bytearray(core[: 512 + decompressor])
    image[508:510] = bytes(2)
    image[520:524] = bytes(4)
    return bytes(image)


# ---- against grub-mkimage --------------------------------------------------------------------------------------------


def arm_kernel() -> bytes:
    """Return a kernel with every relocation that is known for arm64, each instruction with its opcode."""
    adrp, add, load, branch, call = 0x90000001, 0x91000021, 0xF9400022, 0x14000000, 0x94000000
    text = struct.pack("<8I", adrp, add, load, branch, call, adrp, load, 0xD65F03C0)
    places = [
        (0, 275, "value", 8), (4, 277, "value", 8), (8, 286, "value", 16), (12, 282, "_start", 0),
        (16, 283, "far", 0), (20, 311, "other", 0), (24, 312, "other", 0),
    ]  # fmt: skip
    more = [(0, 257, "value", 3), (8, 261, "_start", 0), (5000, 257, "constant", 1)]
    parts = (
        Part(".text", TEXT, text, relocations=places),
        Part(".text.far", TEXT, bytes(5000)),
        Part(".rodata", ALLOC, b"constants"),
        Part(".data", DATA, bytes(range(250)) * 40, alignment=32, relocations=more),
        Part(".comment", 0, b"not loaded", relocations=[(0, 257, "value", 0)]),
        Part(".bss", DATA, zeros=6000, alignment=64),
    )
    symbols = {
        "_start": (".text", 12), "far": (".text.far", 4096), "value": (".data", 24), "other": (".bss", 4000),
        "constant": ("absolute", 77),
    }  # fmt: skip
    return Kernel(183, parts, symbols).bytes()


def x86_kernel() -> bytes:
    """Return a kernel with every relocation that is known for x86-64, and places in several pages."""
    text = [
        (8 * number, kind, name, number) for number, (kind, name) in enumerate([(2, "value"), (4, "far"), (24, "far")])
    ]
    many = [(8 * number, 1, "value", number) for number in range(0, 2000, 3)]
    parts = (
        Part(".text", TEXT, bytes(64), alignment=1, relocations=[*text, (40, 0, "far", 0), (48, 1, "far", -3)]),
        Part(".rodata", ALLOC, b"constants", alignment=32),
        Part(".data", DATA, b"\1" * 16000, relocations=many),
        Part(".bss", DATA, zeros=10000),
    )
    symbols = {"value": (".data", 24), "far": (".bss", 9000), "start": (".text", 5)}
    return Kernel(62, parts, symbols).bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "kernel"),
    [("x86_64-efi", x86_kernel()), ("arm64-efi", arm_kernel()), *((name, small_kernel(name)) for name in MACHINES)],
    ids=["x86_64", "arm64", *(f"small {name}" for name in MACHINES)],
)
def test_kernels_made_by_hand(platform: str, kernel: bytes, tmp_path: Path) -> None:
    tree = grub_tree(platform)
    tree.write(f"usr/lib/grub/{platform}/kernel.img", kernel)
    ours, theirs = grub.make_image(tree, platform, UUID), by_grub_mkimage(tree, platform, tmp_path)
    if platform == "i386-pc":
        assert unpacked(ours) == unpacked(theirs)
        assert without_sizes(ours, 2001) == without_sizes(theirs, 2001)
    else:
        assert ours == theirs


@pytest.mark.mirror
@pytest.mark.parametrize("platform", MACHINES)
def test_real_modules(mirror: Mirror, platform: str, tmp_path: Path) -> None:
    tree = grub_of(mirror, platform)
    ours, theirs = grub.make_image(tree, platform, UUID), by_grub_mkimage(tree, platform, tmp_path)
    if platform == "i386-pc":
        size = len(tree.read("usr/lib/grub/i386-pc/lzma_decompress.img"))
        assert unpacked(ours, size) == unpacked(theirs, size)
        assert without_sizes(ours, size) == without_sizes(theirs, size)
        assert len(grub.embed_core(ours, 2048, 1 << 20)) < 300 * 512
    else:
        assert ours == theirs
        assert UUID.encode() in ours
    assert grub.make_image(tree, platform, UUID) == ours
    assert grub.make_image(tree, platform, UUID.replace("e", "d")) != ours


def grub_of(mirror: Mirror, platform: str) -> Tree:
    """Return a Tree with the package of a platform."""
    arch = "aarch64" if platform == "arm64-efi" else "x86_64"
    (path,) = mirror.root.rglob(f"{arch}/{grub.PACKAGES[platform]}-[0-9]*.apk")
    tree, where = Tree(), f"usr/lib/grub/{platform}/"
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            source = archive.extractfile(member)
            if source is not None and member.name.startswith(where):
                tree.write(member.name, source.read())
    return tree


# ---- dependencies and the area of modules ----------------------------------------------------------------------------

MODDEP = "normal: terminal boot\nterminal:\nlinux: relocator normal boot\nboot:\nrelocator: mmap\n"


def test_modules_come_after_what_they_need() -> None:
    assert with_dependencies(["linux", "normal", "test"], MODDEP) == (
        *("boot", "terminal", "normal", "mmap", "relocator", "linux", "test"),
    )
    assert with_dependencies([], MODDEP) == ()


def test_modules_that_need_each_other_do_not_hang() -> None:
    assert with_dependencies(["a"], "a: b\nb: a\n") == ("b", "a")


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=4)))
def test_every_module_comes_once(needed: dict[str, list[str]]) -> None:
    text = "".join(f"{name}: {' '.join(names)}\n" for name, names in needed.items())
    order = with_dependencies("abc", text)
    assert len(set(order)) == len(order)
    assert set(order) >= set("abc")
    assert all(set(needed.get(name, ())) <= set(order) for name in order)


def test_the_area_of_modules() -> None:
    area = module_area({"a": b"12345", "b": b""}, "cfg", "/p", 32)
    assert area == (
        struct.pack("<III", 0x676D696D, 12, len(area))
        + struct.pack("<II", 0, 16) + b"12345\0\0\0"
        + struct.pack("<II", 0, 8)
        + struct.pack("<II", 2, 12) + b"cfg\0"
        + struct.pack("<II", 3, 12) + b"/p\0\0"
    )  # fmt: skip
    wide = module_area({"a": b"12345"}, "cfg", "/p", 64)
    assert struct.unpack_from("<I4xQQII8s", wide) == (0x676D696D, 24, len(wide), 0, 16, b"12345\0\0\0")


# ---- what is not a kernel --------------------------------------------------------------------------------------------


def changed(kernel: bytes, offset: int, data: bytes) -> bytes:
    return kernel[:offset] + data + kernel[offset + len(data) :]


def with_field(kernel: bytes, section: int, place: int, value: int) -> bytes:
    """Return a file in whose table of sections one number is another one: of that section, at that place."""
    (table,) = struct.unpack_from("<Q", kernel, 40)
    return changed(kernel, table + 64 * section + place, struct.pack("<I", value))


def kernel_with(machine: int = 62, symbols: dict[str, tuple[str, int]] | None = None, **part: object) -> bytes:
    """Return a small kernel whose code differs from that of others in ``part``."""
    text = Part(".text", TEXT, bytes(32), **part)  # type: ignore[arg-type]
    known = {"_start": (".text", 0)} if symbols is None else symbols
    return Kernel(machine, (text, Part(".data", DATA, bytes(8))), known).bytes()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (b"", "kernel.img is not an ELF file of 64 bits"),
        (small_kernel("i386-pc"), "kernel.img is not an ELF file of 64 bits"),
        (small_kernel("x86_64-efi")[:40], "kernel.img is cut off"),
        (small_kernel("x86_64-efi")[:-1], "kernel.img is cut off"),
        (with_field(small_kernel("x86_64-efi"), 2, 32, 100_000), "kernel.img is cut off"),
        (with_field(small_kernel("x86_64-efi"), 6, 4, 9), "kernel.img has relocations without addends"),
        (with_field(small_kernel("x86_64-efi"), 6, 44, 99), "kernel.img has no section 99"),
        (with_field(small_kernel("x86_64-efi"), 6, 32, 23), "kernel.img has a damaged table of relocations"),
        (with_field(small_kernel("x86_64-efi"), 4, 32, 47), "kernel.img has a damaged table of symbols"),
        (with_field(small_kernel("x86_64-efi"), 4, 4, 1), "kernel.img has no symbols"),
        (
            kernel_with(183, relocations=[(0, 275, "_start", 1 << 32)]),
            "kernel.img refers to a page that is out of reach",
        ),
        (kernel_with(183, relocations=[(0, 275, "_start", -(1 << 32) - 4096)]), "kernel.img refers to a page"),
        (kernel_with(machine=243), "kernel.img is for a machine that is not known, 243"),
        (kernel_with(symbols={}), "kernel.img does not define _start"),
        (kernel_with(symbols={"_start": (".text", 0), "other": ("", 0)}), "kernel.img does not define other"),
        (kernel_with(symbols={"_start": (".text", 1 << 40)}), "kernel.img begins outside of its code"),
        (kernel_with(symbols={"_start": ("common", 0)}), "kernel.img has no section 65522"),
        (kernel_with(zeros=1 << 40), "kernel.img is larger than 16 MiB"),
        (kernel_with(alignment=8192), "kernel.img has a section that is aligned to 8192 bytes"),
        (kernel_with(relocations=[(0, 10, "_start", 0)]), "kernel.img has a relocation of type 10, which is not known"),
        (kernel_with(relocations=[(32, 1, "_start", 0)]), "kernel.img has a relocation outside of its section"),
        (kernel_with(183, relocations=[(0, 283, "_start", 1)]), "kernel.img has a branch to an address that is out of"),
        (kernel_with(183, relocations=[(0, 283, "_start", 1 << 27)]), "kernel.img has a branch to an address"),
        (
            kernel_with(183, relocations=[(0, 275, "_start", 1 << 33)]),
            "kernel.img refers to a page that is out of reach",
        ),
    ],
)
def test_what_is_no_kernel_for_efi(kernel: bytes, message: str) -> None:
    with pytest.raises(GrubImageError) as refusal:
        efi_image(read_kernel(kernel, 64), b"")
    assert str(refusal.value).startswith(message)


def test_the_bounds_of_what_begins_as_zeros() -> None:
    """They are addresses like all others; grub-mkimage leaves out the headers' size, and no kernel for EFI asks."""
    symbols = {"_start": (".text", 0), "__bss_start": ("", 0), "_end": ("", 0)}
    text = Part(".text", TEXT, bytes(16), relocations=[(0, 1, "__bss_start", 0), (8, 1, "_end", 0)])
    kernel = Kernel(62, (text, Part(".data", DATA, bytes(8)), Part(".bss", DATA, zeros=5000)), symbols).bytes()
    assert struct.unpack_from("<QQ", place_kernel(read_kernel(kernel, 64)).image) == (0x2008, 0x4000)


def test_addresses_through_a_table() -> None:
    """Each address is in the table once; ADRP has its page, LDR the offset in it, and the firmware relocates it."""
    places = [(0, 311, "one", 0), (4, 312, "one", 0), (8, 311, "two", 8), (12, 312, "two", 8), (16, 312, "one", 0)]
    text = Part(".text", TEXT, struct.pack("<5I", *(0x90000000, 0xF9400000) * 2, 0xF9400000), relocations=places)
    symbols = {"_start": (".text", 0), "one": (".data", 16), "two": (".data", 24)}
    placed = place_kernel(read_kernel(Kernel(183, (text, Part(".data", DATA, bytes(64))), symbols).bytes(), 64))
    table = placed.fixups[0]
    assert placed.fixups == (table, table + 8)
    assert struct.unpack_from("<QQ", placed.image, table - 0x1000) == (0x2010, 0x2020)
    page, one, other_page, two, again = struct.unpack_from("<5I", placed.image)
    for instruction, loading, entry in ((page, one, table), (other_page, two, table + 8)):
        pages = instruction >> 29 & 3 | (instruction >> 5 & 0x7FFFF) << 2
        assert 0x1000 + pages * 0x1000 + (loading >> 10 & 0xFFF) * 8 == entry
    assert again == one


def test_pages_reach_four_gib() -> None:
    for distance in (-(1 << 32), (1 << 32) - 4096):
        kernel = kernel_with(183, relocations=[(0, 275, "_start", distance)])
        (instruction,) = struct.unpack_from("<I", place_kernel(read_kernel(kernel, 64)).image)
        assert instruction >> 29 & 3 | (instruction >> 5 & 0x7FFFF) << 2 == distance >> 12 & 0x1FFFFF


def test_branches_reach_128_mib() -> None:
    """The last instruction that can be reached, backwards and forwards."""
    for distance in (-(1 << 27), (1 << 27) - 4):
        kernel = kernel_with(183, relocations=[(0, 283, "_start", distance)])
        (instruction,) = struct.unpack_from("<I", place_kernel(read_kernel(kernel, 64)).image)
        assert instruction == distance >> 2 & 0x03FFFFFF


@pytest.mark.slow
@given(st.integers(0, 1500), st.binary(min_size=1, max_size=8))
def test_a_damaged_kernel_is_refused_or_made_into_an_image(offset: int, data: bytes) -> None:
    """Nothing else is raised, whatever the bytes."""
    kernel = arm_kernel() if offset % 2 else small_kernel("x86_64-efi")
    with suppress(GrubImageError):
        assert efi_image(read_kernel(changed(kernel, len(kernel) - 1 - offset, data), 64), b"")[:2] == b"MZ"


@pytest.mark.parametrize(
    ("decompressor", "diskboot", "message"),
    [
        (bytes(2000), bytes(511), "diskboot.img has 511 bytes instead of 512"),
        (bytes(15), bytes(512), "lzma_decompress.img has 15 bytes"),
        (bytes(0xE01), bytes(512), "lzma_decompress.img has 3585 bytes"),
    ],
)
def test_files_for_bios_that_are_of_another_size(decompressor: bytes, diskboot: bytes, message: str) -> None:
    with pytest.raises(GrubImageError, match=f"^{message}$"):
        pc_image(read_kernel(small_kernel("i386-pc"), 32), b"", decompressor, diskboot)
    assert len(pc_image(read_kernel(small_kernel("i386-pc"), 32), b"", bytes(0xE00), bytes(512))) > 4096
    assert len(pc_image(read_kernel(small_kernel("i386-pc"), 32), b"", bytes(16), bytes(512))) > 512


def test_the_decompressor_looks_back_64_kib() -> None:
    """What is repeated farther away must not be referred to."""
    area = 2 * noise((1 << 16) + 4000)
    core = pc_image(read_kernel(small_kernel("i386-pc"), 32), area, bytes(2001), bytes(512))
    assert unpacked(core)[-len(area) :] == area


@pytest.mark.parametrize(("address", "size"), [(0x8FFF, 16), (0x67FF1, 16), (0x9000, 0x5F001)])
def test_a_kernel_for_bios_has_its_place(address: int, size: int) -> None:
    part = Part(".text", TEXT, bytes(size), address=address)
    with pytest.raises(GrubImageError, match="is not linked for addresses from 0x9000 to 0x68000"):
        pc_image(read_kernel(Kernel(3, (part,)).bytes(), 32), b"", bytes(100), bytes(512))
    whole = Part(".text", TEXT, bytes(0x5F000), address=0x9000)
    assert pc_image(read_kernel(Kernel(3, (whole,)).bytes(), 32), b"", bytes(100), bytes(512))
    with pytest.raises(GrubImageError, match=r"kernel\.img is for another machine than i386"):
        pc_image(read_kernel(small_kernel("x86_64-efi"), 64), b"", bytes(100), bytes(512))


def test_a_package_that_is_damaged_is_named() -> None:
    tree = grub_tree("arm64-efi")
    tree.write("usr/lib/grub/arm64-efi/kernel.img", b"x")
    with pytest.raises(RecipeError) as refusal:
        grub.make_image(tree, "arm64-efi", UUID)
    assert refusal.value.message == "GRUB for arm64-efi: kernel.img is not an ELF file of 64 bits"
    assert refusal.value.hint == "check the package grub-efi"


# ---- the parts of an image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["x86_64-efi", "arm64-efi"])
def test_the_headers_of_an_efi_application(platform: str) -> None:
    image = grub.make_image(grub_tree(platform), platform, UUID)
    assert image[:2] == b"MZ"
    (start,) = struct.unpack_from("<I", image, 60)
    machine, count = struct.unpack_from("<4xHH", image, start)
    assert (machine, count) == ({"x86_64-efi": 0x8664, "arm64-efi": 0xAA64}[platform], 4)
    (entry,) = struct.unpack_from("<I", image, start + 24 + 16)
    assert entry == 0x1000 + 16
    sections = [struct.unpack_from("<8sIIII", image, start + 24 + 240 + 40 * number) for number in range(4)]
    assert [name.rstrip(b"\0") for name, *_ in sections] == [b".text", b".data", b"mods", b".reloc"]
    end = 0x1000
    for _, size, address, length, offset in sections:
        assert (address, offset, length) == (end, end, size)
        end += size
    assert end == len(image)
    assert image[sections[2][4] :].startswith(b"mimg")
    page, length, fixup = struct.unpack_from("<IIH", image, sections[3][4])
    assert (page, length, fixup) == (0x2000, 0x1000, 0xA008)
    assert struct.unpack_from("<Q", image, 0x2008) == (0x1000 + 16 + 4,)


def test_a_core_image_for_bios_is_unpacked_again() -> None:
    core = grub.make_image(grub_tree("i386-pc"), "i386-pc", UUID)
    content = unpacked(core)
    assert content[:100] == b"\x90" * 100
    assert content[0x80 : 0x80 + 40] == b"data" * 10
    assert content[0x80 + 40 :].startswith(b"mimg")
    assert UUID.encode() in content
    assert struct.unpack_from("<H", core, 508) == (-(-(len(core) - 512) // 512),)
