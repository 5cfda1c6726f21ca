"""Closures of modules, subsets of depmod's files, and kmod's binary index."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.mirror import Mirror
from imgkit.errors import InputError
from imgkit.rootfs.binaries.elf import ET_REL, ElfError
from imgkit.rootfs.initramfs import kmod
from imgkit.rootfs.initramfs.kmod import (
    IndexEntry,
    closure,
    indexes,
    normalize_alias,
    parse_dependencies,
    subset,
    write_index,
)
from imgkit.rootfs.kernel import kernels
from tests.elves import make_elf
from tests.trees import tree_from_tar

DIRECTORY = "lib/modules/6.18.0-virt"


def read_index(data: bytes) -> list[IndexEntry]:
    """Every entry of an index, found by walking it from its root; nodes must lie in pre-order without gaps."""
    assert struct.unpack_from(">II", data) == (0xB007F457, 0x00020001)
    end = 12

    def text(place: int) -> tuple[str, int]:
        stop = data.index(b"\0", place)
        return data[place:stop].decode(), stop + 1

    def node(word: int, key: str) -> Iterator[IndexEntry]:
        nonlocal end
        place = word & 0x0FFFFFFF
        assert place == end, "a gap, or another order"
        children: list[tuple[str, int]] = []
        if word & 0x80000000:
            prefix, place = text(place)
            key += prefix
        if word & 0x20000000:
            first, last = data[place], data[place + 1]
            words = struct.unpack_from(f">{last - first + 1}I", data, place + 2)
            assert words[0]
            assert words[-1]
            children = [(chr(first + row), child) for row, child in enumerate(words) if child]
            place += 2 + 4 * len(words)
        if word & 0x40000000:
            (count,) = struct.unpack_from(">I", data, place)
            place += 4
            for _ in range(count):
                (priority,) = struct.unpack_from(">I", data, place)
                value, place = text(place + 4)
                yield key, value, priority
        end = place
        for character, child in children:
            yield from node(child, key + character)

    entries = list(node(struct.unpack_from(">I", data, 8)[0], ""))
    assert end == len(data)
    return entries


keys = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=12)
few = st.text("ab_", max_size=5)  # keys that share much
entries = st.lists(st.tuples(keys | few, st.text("xyz:-", max_size=6), st.integers(0, 1 << 31)), max_size=30)


@given(entries)
def test_index_round_trip(wanted: list[IndexEntry]) -> None:
    assert read_index(write_index(wanted)) == sorted(wanted, key=lambda entry: (entry[0], entry[2]))


@pytest.mark.slow
@given(entries, st.randoms())
def test_order_of_entries_with_distinct_priorities_does_not_matter(wanted: list[IndexEntry], random: object) -> None:
    numbered = [(key, value, row) for row, (key, value, _) in enumerate(wanted)]
    shuffled = list(numbered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert write_index(shuffled) == write_index(numbered)


def test_index_known_bytes() -> None:
    """The root has no prefix, even where all keys start alike."""
    assert write_index([("ab", "v", 1)]) == (
        bytes.fromhex("b007f457 00020001 2000000c") + b"aa" + bytes.fromhex("c0000012")
        + b"b\0" + bytes.fromhex("00000001 00000001") + b"v\0"
    )  # fmt: skip
    assert write_index([]) == bytes.fromhex("b007f457 00020001 0000000c")


@pytest.mark.parametrize("entry", [("ä", "x", 0), ("a\0b", "x", 0), ("a", "x\0y", 0)])
def test_index_refuses(entry: IndexEntry) -> None:
    with pytest.raises(InputError, match="cannot be a key"):
        write_index([entry])


def test_values_of_one_key_are_sorted_by_priority_and_ties_keep_their_order() -> None:
    data = write_index([("a", "y", 2), ("a", "z", 1), ("a", "x", 1), ("a", "b", 0)])
    assert read_index(data) == [("a", "b", 0), ("a", "z", 1), ("a", "x", 1), ("a", "y", 2)]


def test_the_longest_key_and_one_that_is_too_long() -> None:
    """A message shows the beginning of the key."""
    assert read_index(write_index([("k" * 600, "v", 0)])) == [("k" * 600, "v", 0)]
    with pytest.raises(InputError) as caught:
        write_index([("k" * 601, "v", 0)])
    assert caught.value.message == f"module index: {'k' * 80!r} cannot be a key of it"


@pytest.mark.parametrize(("last", "fits"), [(32, True), (31, False)])
def test_an_index_in_which_a_node_is_too_far_back_to_be_named(
    monkeypatch: pytest.MonkeyPatch, last: int, fits: bool
) -> None:
    """Each of these keys has a node of 10 bytes; the root's begins at 12 and the last one's at 32."""
    monkeypatch.setattr(kmod, "_POSITION", last)
    entries = [("a", "x", 0), ("b", "y", 0)]
    if fits:
        assert len(write_index(entries)) == 32 + 10
    else:
        with pytest.raises(InputError, match=r"^module index: more than 256 MiB$"):
            write_index(entries)


def test_the_reader_of_the_test_notices_damage() -> None:
    data = write_index([("abc", "one", 1), ("abd", "two", 2)])
    with pytest.raises(AssertionError):
        read_index(data + b"x")
    with pytest.raises(AssertionError):
        read_index(b"\0" + data[1:])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kernel/fs/ext4/ext4.ko.gz", "ext4"),
        ("kernel/net/nf-nat.ko", "nf_nat"),
        ("a/b.c.ko.xz", "b.c"),
        ("snd-hda-codec.ko.zst", "snd_hda_codec"),
    ],
)
def test_module_names(path: str, name: str) -> None:
    assert kmod.module_name(path) == name


def test_aliases_are_normalised_outside_brackets() -> None:
    assert normalize_alias("usb:v0-1[0-9]d-*") == "usb:v0_1[0-9]d_*"
    assert normalize_alias("fs-ext4") == "fs_ext4"
    assert normalize_alias("broken[a-b") == "broken[a_b"


DEP = """\
kernel/a.ko.gz:
kernel/b-c.ko.gz: kernel/a.ko.gz
kernel/d.ko.gz: kernel/b-c.ko.gz kernel/a.ko.gz
kernel/e.ko.gz:
"""
TEXTS = {
    "dep": DEP,
    "alias": "# Aliases\nalias pci:v1-2 b_c\nalias both a\nalias both e\n",
    "symbols": "# Symbols\nalias symbol:one a\nalias symbol:two e\n",
    "softdep": "# Soft\nsoftdep e pre: a\nsoftdep a post: e\n",
    "weakdep": "# Weak\nweakdep a e\nweakdep e a\n",
    "devname": "# Nodes\na loop-control c10:237\n",
    "order": "kernel/a.ko\nkernel/e.ko\n",
    "builtin": "kernel/built-in.ko\n",
    "builtin.modinfo": "built_in.alias=fs-built\0built_in.license=GPL\0",
}


def test_closure() -> None:
    dependencies = parse_dependencies(DEP, DIRECTORY)
    assert closure(dependencies, ["kernel/d.ko.gz"]) == {"kernel/a.ko.gz", "kernel/b-c.ko.gz", "kernel/d.ko.gz"}
    assert closure(dependencies, []) == set()


def test_closure_follows_lines_that_are_not_closed_themselves() -> None:
    assert closure({"x": ("y",), "y": ("z",), "z": ("x",)}, ["x"]) == {"x", "y", "z"}


def test_unknown_modules_are_named() -> None:
    with pytest.raises(InputError, match=r"^kernel/new\.ko: .* not in modules\.dep$"):
        closure(parse_dependencies(DEP, DIRECTORY), ["kernel/new.ko"])
    with pytest.raises(InputError, match=r"^gone\.ko: .*which there\.ko needs$"):
        closure({"there.ko": ("gone.ko",)}, ["there.ko"])


def test_absolute_paths_of_old_depmods() -> None:
    text = f"/{DIRECTORY}/kernel/a.ko: /{DIRECTORY}/kernel/b.ko\n"
    assert parse_dependencies(text, DIRECTORY) == {"kernel/a.ko": ("kernel/b.ko",)}


def test_damaged_dependencies() -> None:
    with pytest.raises(InputError, match=rf"^/{DIRECTORY}/modules\.dep: line 2 has no colon"):
        parse_dependencies("a.ko:\nb.ko\n", DIRECTORY)


def test_subset() -> None:
    files = subset(TEXTS, {"kernel/a.ko.gz", "kernel/b-c.ko.gz"}, DIRECTORY)
    texts = {name: data.decode() for name, data in files.items() if not name.endswith(".bin")}
    assert texts == {
        "modules.dep": "kernel/a.ko.gz:\nkernel/b-c.ko.gz: kernel/a.ko.gz\n",
        "modules.alias": "# Aliases\nalias pci:v1-2 b_c\nalias both a\n",
        "modules.symbols": "# Symbols\nalias symbol:one a\n",
        "modules.softdep": "# Soft\nsoftdep a post: e\n",
        "modules.weakdep": "# Weak\nweakdep a e\n",
        "modules.devname": "# Nodes\na loop-control c10:237\n",
        "modules.order": TEXTS["order"],
        "modules.builtin": TEXTS["builtin"],
        "modules.builtin.modinfo": TEXTS["builtin.modinfo"],
    }
    assert read_index(files["modules.dep.bin"]) == [
        ("a", "kernel/a.ko.gz:", 0),
        ("b_c", "kernel/b-c.ko.gz: kernel/a.ko.gz", 1),
    ]
    assert read_index(files["modules.alias.bin"]) == [("both", "a", 0), ("pci:v1_2", "b_c", 1)]
    assert read_index(files["modules.symbols.bin"]) == [("symbol:one", "a", 0)]
    assert read_index(files["modules.builtin.bin"]) == [("built_in", "", 0)]
    assert read_index(files["modules.builtin.alias.bin"]) == [("fs_built", "built_in", 0)]


def test_subset_of_everything_is_everything() -> None:
    files = subset(TEXTS, set(parse_dependencies(DEP, DIRECTORY)), DIRECTORY)
    assert {name.removeprefix("modules."): data.decode() for name, data in files.items() if ".bin" not in name} == TEXTS
    assert read_index(files["modules.alias.bin"])[:2] == [("both", "a", 0), ("both", "e", 3)]


def test_odd_lines_belong_to_no_module() -> None:
    texts = {"dep": DEP, "alias": "\nalias\nalias x\nsomething else a\nalias with blank a\n", "devname": "a\n\n"}
    files = subset(texts, {"kernel/a.ko.gz"}, DIRECTORY)
    assert files["modules.alias"] == b"something else a\nalias with blank a\n"
    assert files["modules.devname"] == b""
    assert read_index(files["modules.alias.bin"]) == [("with blank", "a", 0)]


def test_lines_that_are_no_alias_are_not_in_an_index() -> None:
    """An alias of a module that is not in modules.dep, such as a built-in one, is first in the order."""
    texts = {"dep": DEP, "alias": "alias a\nalias  a\nother x a\nalias x e\nalias x-y built_in\n"}
    assert read_index(indexes(texts)["modules.alias.bin"]) == [("x", "e", 3), ("x_y", "built_in", 0)]


def test_what_of_the_built_in_modules_is_an_alias() -> None:
    modinfo = "a-b.alias=x-[0-9]\0a-b.alias.of=y\0a-b.license=GPL\0alias=z\0a-b.alias=last"
    files = indexes({"dep": "", "builtin.modinfo": modinfo})
    assert read_index(files["modules.builtin.alias.bin"]) == [("last", "a_b", 0), ("x_[0-9]", "a_b", 0)]


def test_missing_texts_make_no_files() -> None:
    assert set(subset({"dep": DEP}, set(), DIRECTORY)) == {"modules.dep", "modules.dep.bin"}


def test_modinfo() -> None:
    module = make_elf(kind=ET_REL, sections={".modinfo": b"license=GPL\0firmware=a.bin\0firmware=b/c.bin\0"})
    assert kmod.modinfo(module, "firmware") == ["a.bin", "b/c.bin"]
    assert kmod.modinfo(module, "alias") == []
    with pytest.raises(ElfError):
        kmod.modinfo(b"text", "firmware")


@pytest.mark.mirror
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_indexes_equal_those_of_the_kernel_package(mirror: Mirror, architecture: str) -> None:
    """Byte for byte what depmod itself made for the complete set of modules."""
    tree = tree_from_tar(mirror.oracle[architecture])
    (kernel,) = kernels(tree)
    texts = {name: tree.text(f"{kernel.directory}/modules.{name}") for name in kmod.TEXTS}
    files = indexes(texts)
    assert sorted(files) == sorted(
        path.rpartition("/")[2] for path in tree.children(kernel.directory) if path.endswith(".bin")
    )
    for name, data in files.items():
        assert data == tree.read(f"{kernel.directory}/{name}"), name
        assert read_index(data), name
    everything = subset(texts, set(parse_dependencies(texts["dep"], kernel.directory)), kernel.directory)
    for name, data in everything.items():
        assert data == tree.read(f"{kernel.directory}/{name}"), name
