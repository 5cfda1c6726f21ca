"""The native engine's ext4: its structures against e2fsprogs, its limits, and its errors."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.ext4 import read_tree
from imgkit.disk.size import journal_mib
from imgkit.engines.guestfs.scripts import EXT4_FEATURES
from imgkit.engines.native.ext4 import directories, dirhash, records, xattrs
from imgkit.engines.native.ext4.allocation import FreeBlocks, FullError, Run, bitmaps, gaps_between, joined
from imgkit.engines.native.ext4.assignment import TooFewBlocksError
from imgkit.engines.native.ext4.checksum import checksum
from imgkit.engines.native.ext4.extents import extent_tree
from imgkit.engines.native.ext4.geometry import geometry_of, has_copy
from imgkit.engines.native.ext4.inodes import Times, device_block
from imgkit.engines.native.ext4.writer import TooFewInodesError
from imgkit.errors import RecipeError
from imgkit.tree import Device, Directory, File, HardLink, Inline, Symlink, Tree
from tests.conftest import need_program
from tests.ext4trees import IDENTITY, JOURNAL, MIB, SIZE, complaints, described, pattern, write_filesystem


def run(*argv: str | Path) -> str:
    """Run a program of e2fsprogs and return what it prints."""
    need_program(str(argv[0]))
    return subprocess.run(argv, capture_output=True, text=True, errors="replace").stdout


def small_tree() -> Tree:
    tree = Tree()
    tree.write("etc/passwd", b"root:x:0:0\n", mtime=5)
    tree.write("bin/tool", pattern(100_000, 1), mode=0o4755)
    tree.add("bin/link", HardLink(target="bin/tool"))
    tree.symlink("bin/sh", "tool")
    tree.add("dev", Directory())
    tree.add("dev/null", Device(kind="c", major=1, minor=3, mode=0o666))
    return tree


# ---- the filesystem as a whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [7, 8, 16, 48, 128, 129, 136, 137, 138, 256, 257, 266, 400, 1100])
def test_filesystems_of_many_sizes_are_clean(mib: int, tmp_path: Path) -> None:
    need_program("e2fsck")
    image = tmp_path / "root.raw"
    write_filesystem(small_tree(), image, mib * MIB)
    assert complaints(image) == ""
    assert described(read_tree(image)) == described(small_tree())


def test_e2fsck_sees_a_byte_that_is_wrong(tmp_path: Path) -> None:
    need_program("e2fsck")
    image = tmp_path / "root.raw"
    write_filesystem(small_tree(), image)
    geometry = geometry_of(SIZE)
    assert geometry is not None
    table = geometry.group(0).inode_table * records.BLOCK
    with image.open("r+b") as file:
        file.seek(table + 11 * records.INODE_SIZE)
        file.write(b"\xff")
    assert "inode 12" in complaints(image).lower()


def test_features_and_identity_are_those_that_were_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "root.raw"
    write_filesystem(small_tree(), image)
    facts = dict(re.findall(r"^([A-Z][^:]+):\s+(.*)$", run("dumpe2fs", "-h", image), re.MULTILINE))
    assert set(facts["Filesystem features"].split()) == set(EXT4_FEATURES.split(","))
    assert facts["Filesystem UUID"] == str(IDENTITY.uuid)
    assert facts["Directory Hash Seed"] == str(IDENTITY.hash_seed)
    assert facts["Filesystem volume name"] == "root"
    assert facts["Filesystem state"] == "clean"
    assert (facts["Inode size"], facts["Reserved block count"], facts["Checksum type"]) == ("256", "0", "crc32c")
    assert facts["Default directory hash"] == "half_md4"
    assert facts["Flex block group size"] == "16"


@pytest.mark.parametrize("size", [4 << 30, 3 << 30, 40 << 30])
def test_the_shape_is_that_of_mke2fs(size: int, tmp_path: Path) -> None:
    image = tmp_path / "theirs.raw"
    with image.open("wb") as file:
        file.truncate(size)
    options = f"nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1,resize={(1 << 40) // 4096}"
    run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
        "-J", f"size={journal_mib(size)}", "-O", f"none,{EXT4_FEATURES}", "-E", options, image,
    )  # fmt: skip
    said = run("dumpe2fs", image)
    geometry = geometry_of(size)
    assert geometry is not None
    assert f"Block count:              {geometry.blocks}\n" in said
    assert f"Inodes per group:         {geometry.inodes_per_group}\n" in said
    assert f"Reserved GDT blocks:      {geometry.reserved}\n" in said
    places = re.findall(
        r"^Group (\d+):.*?Block bitmap at (\d+).*?Inode bitmap at (\d+).*?table at (\d+)", said, re.M | re.S
    )
    groups = [geometry.group(number) for number in range(geometry.group_count)]
    assert [tuple(map(int, place)) for place in places] == [
        (group.number, group.block_bitmap, group.inode_bitmap, group.inode_table) for group in groups
    ]
    backups = re.findall(r"^  Backup superblock at (\d+)", said, re.M)
    assert [int(block) // records.BLOCKS_PER_GROUP for block in backups] == list(geometry.backups)


def test_copies_of_the_superblock_say_the_same(tmp_path: Path) -> None:
    image = tmp_path / "root.raw"
    write_filesystem(small_tree(), image, 300 * MIB)
    first = run("dumpe2fs", "-h", image)
    copy = run("dumpe2fs", "-h", "-o", "superblock=32768", "-o", "blocksize=4096", image)
    for text in (first, copy):
        assert "Filesystem UUID" in text
    checksums = re.compile(r"^Checksum: .*\n", re.MULTILINE)  # of the superblock, which has its own number in it
    assert checksums.sub("", first) == checksums.sub("", copy)


def test_the_same_tree_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_filesystem(small_tree(), first)
    backwards = Tree()
    nodes = list(small_tree().items())
    for path, node in [pair for pair in nodes if isinstance(pair[1], Directory)]:
        backwards.add(path, node)
    for path, node in reversed([pair for pair in nodes if not isinstance(pair[1], Directory | HardLink)]):
        backwards.add(path, node)
    backwards.add("bin/link", HardLink(target="bin/tool"))
    write_filesystem(backwards, second)
    assert first.read_bytes() == second.read_bytes()
    write_filesystem(small_tree(), tmp_path / "third", identity=replace(IDENTITY, uuid=UUID(int=7)))
    assert (tmp_path / "third").read_bytes() != first.read_bytes()


def test_a_full_filesystem_is_laid_out_densely(tmp_path: Path) -> None:
    need_program("e2fsck")
    tree = Tree()
    for number in range(200):  # at borders of chunks and clusters, these take twice the room
        tree.write(f"f{number}", pattern(68_000, 1))
    image = tmp_path / "root.raw"
    write_filesystem(tree, image, 24 * MIB)
    assert complaints(image) == ""
    assert described(read_tree(image)) == described(tree)


def test_a_filesystem_that_is_too_small_says_by_how_much(tmp_path: Path) -> None:
    tree = Tree()
    tree.add("large", File(content=Inline(bytes(40 * MIB))))
    with pytest.raises(TooFewBlocksError) as failure:
        write_filesystem(tree, tmp_path / "root.raw", 40 * MIB)
    missing = failure.value.missing
    assert JOURNAL // records.BLOCK < missing < 2000
    write_filesystem(tree, tmp_path / "root.raw", 40 * MIB + (missing + 100) * records.BLOCK)
    tree = Tree()
    for number in range(600):
        tree.add(f"d{number}", Directory())
    with pytest.raises(TooFewInodesError) as inodes:
        write_filesystem(tree, tmp_path / "few.raw", 8 * MIB)
    assert inodes.value.missing == 600 + 11 - geometry_of(8 * MIB).inodes  # type: ignore[union-attr]
    with pytest.raises(TooFewBlocksError):
        write_filesystem(tree, tmp_path / "none.raw", records.BLOCK)
    assert {path.name for path in tmp_path.iterdir()} == {"root.raw"}


def test_lost_and_found_may_be_in_the_tree(tmp_path: Path) -> None:
    need_program("e2fsck")
    tree = Tree()
    tree.add("lost+found", Directory(mode=0o750, uid=7))
    for number in range(300):
        tree.write(f"lost+found/{number:040}", b"x")
    image = tmp_path / "root.raw"
    write_filesystem(tree, image)
    assert complaints(image) == ""
    assert "Inode: 11 " in run("debugfs", "-R", "stat lost+found", image)
    file = Tree()
    file.write("lost+found", b"")
    with pytest.raises(RecipeError, match=r"^/lost\+found: must be a directory"):
        write_filesystem(file, tmp_path / "other.raw")


# ---- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "length"),
    [(169, 8), (170, 8), (400, 200), (20, 255), pytest.param(9000, 240, marks=pytest.mark.slow)],
)
def test_large_directories(count: int, length: int, tmp_path: Path) -> None:
    need_program("e2fsck")
    tree = Tree()
    tree.add("d", Directory())
    for number in range(count):
        tree.add(f"d/{number:0{length}}", File(content=Inline(b"")))
    image = tmp_path / "root.raw"
    write_filesystem(tree, image, 200 * MIB)
    assert complaints(image) == ""
    last = f"d/{count - 1:0{length}}"
    assert "Type: regular" in run("debugfs", "-R", f"stat {last}", image), "found by its hash"


@given(st.binary(min_size=1, max_size=255), st.binary(min_size=16, max_size=16))
def test_hashes_are_even_words(name: bytes, seed: bytes) -> None:
    value = dirhash.name_hash(name, dirhash.seed_words(seed))
    assert 0 <= value < 0xFFFFFFFE
    assert value % 2 == 0


@pytest.mark.parametrize("name", ["a", "abc", "abcd", "abcde", "n" * 31, "n" * 32, "n" * 33, "node_modules", "x" * 200])
def test_hashes_are_those_of_debugfs(name: str) -> None:
    seed = "01234567-89ab-cdef-0123-456789abcdef"
    said = run("debugfs", "-R", f"dx_hash -h half_md4 -s {seed} {name}")
    expected = int(re.findall(r"is 0x([0-9a-f]+)", said)[0], 16)
    assert dirhash.name_hash(name.encode(), dirhash.seed_words(UUID(seed).bytes)) == expected


def test_a_seed_of_zeros_stands_for_the_usual_start() -> None:
    assert dirhash.seed_words(bytes(16))[0] == 0x67452301


def test_a_hash_that_goes_on_in_the_next_list_is_marked() -> None:
    entries = [directories.Entry(f"{number:0200}".encode(), 12, 1) for number in range(60)]
    leaves = list(directories._leaves((4, entry) for entry in entries))
    assert [leaf.first for leaf in leaves] == [0, *[5] * (len(leaves) - 1)]
    assert [entry for leaf in leaves for entry in leaf.entries] == entries


def test_a_directory_can_have_too_many_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(directories, "MOST_LEAVES", 3)
    tree = Tree()
    for number in range(100):
        tree.write(f"opt/{number:0250}", b"")
    with pytest.raises(RecipeError, match=r"^/opt: more than 3 blocks of names"):
        write_filesystem(tree, tmp_path / "root.raw")


# ---- inodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 59, 60, 61, 4095])
def test_symbolic_links(length: int, tmp_path: Path) -> None:
    tree = Tree()
    tree.symlink("link", "t" * length)
    image = tmp_path / "root.raw"
    write_filesystem(tree, image)
    said = run("debugfs", "-R", "stat link", image)
    assert ("Fast link dest" in said) == (length < 60)
    assert f"Size: {length}\n" in said
    assert described(read_tree(image)) == described(tree)


@pytest.mark.parametrize(
    ("seconds", "low", "extra"),
    [
        (0, 0, 0),
        (-1, 0xFFFFFFFF, 0),
        (-(1 << 31), 1 << 31, 0),
        ((1 << 31) - 1, (1 << 31) - 1, 0),
        (1 << 31, 1 << 31, 1),
        ((1 << 32) + 5, 5, 1),
        ((1 << 34) - (1 << 31) - 1, (1 << 31) - 1, 3),
        (1 << 40, (1 << 31) - 1, 3),
        (-(1 << 40), 1 << 31, 0),
    ],
)
def test_times(seconds: int, low: int, extra: int) -> None:
    # The kernel's documentation, "Inode Timestamps", has a table of these.
    assert (Times(seconds).low, Times(seconds).extra) == (low, extra)
    assert Times(seconds, 999_999_999).extra == extra | 999_999_999 << 2


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device(kind="c", major=1, minor=3), struct.pack("<I", 0x103)),
        (Device(kind="b", major=255, minor=255), struct.pack("<I", 0xFFFF)),
        (Device(kind="b", major=259, minor=0), struct.pack("<II", 0, 0x10300)),
        (Device(kind="c", major=8, minor=0x12345), struct.pack("<II", 0, 0x12300845)),
        (Device(kind="p"), b""),
    ],
)
def test_numbers_of_devices(device: Device, expected: bytes) -> None:
    assert device_block(device) == expected  # new_encode_dev() and old_encode_dev() of the kernel


def test_a_file_can_have_too_many_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "MOST_LINKS", 3)
    tree = Tree()
    tree.write("file", b"x")
    for number in range(2):
        tree.add(f"link{number}", HardLink(target="file"))
    write_filesystem(tree, tmp_path / "root.raw")
    tree.add("link2", HardLink(target="file"))
    with pytest.raises(RecipeError, match=r"^/file: has 4 names; ext4 allows 3"):
        write_filesystem(tree, tmp_path / "other.raw")


# ---- extended attributes ---------------------------------------------------------------------------------------------


def with_xattrs(attributes: dict[str, bytes]) -> Tree:
    tree = Tree()
    tree.add("file", File(content=Inline(b"x"), xattrs=attributes))
    return tree


@pytest.mark.parametrize(
    ("attributes", "inside", "outside"),
    [
        ({"user.a": b"v" * 68}, True, False),  # 4 + 20 + 68 + 4 bytes: all that an inode has room for
        ({"user.a": b"v" * 69}, False, True),
        ({"user.a": b"v" * 10, "user.b": b"v" * 100}, True, True),
        ({"user.a": b"v" * 4040}, False, True),  # 32 + 20 + 4040 + 4 bytes: all that a block has room for
        ({"user.empty": b""}, True, False),
        ({"security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}, True, False),
    ],
)
def test_attributes_fill_the_inode_and_spill_over(
    attributes: dict[str, bytes], inside: bool, outside: bool, tmp_path: Path
) -> None:
    need_program("e2fsck")
    stored = xattrs.store(attributes)
    assert (bool(stored.inode), bool(stored.block)) == (inside, outside)
    image = tmp_path / "root.raw"
    write_filesystem(with_xattrs(attributes), image)
    assert complaints(image) == ""
    assert dict(read_tree(image)["file"].xattrs) == attributes
    said = run("debugfs", "-R", "ea_list file", image)
    assert all(name in said for name in attributes)


def test_access_control_lists_are_stored_as_the_kernel_does(tmp_path: Path) -> None:
    need_program("e2fsck")
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (8, 5, 70000), (0x10, 7, -1), (0x20, 0, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    stored = struct.pack("<I", 1) + b"".join(
        struct.pack("<HH", tag, bits) + (struct.pack("<I", owner) if owner >= 0 else b"")
        for tag, bits, owner in entries
    )
    image = tmp_path / "root.raw"
    tree = with_xattrs({"system.posix_acl_access": value})
    write_filesystem(tree, image)
    assert complaints(image) == ""
    assert read_tree(image)["file"].xattrs["system.posix_acl_access"] == stored


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"user.a": b"v" * 4041}, r"/file: its extended attributes of 4047 bytes do not fit into one block"),
        ({"user." + "n" * 256: b""}, r"/file: the name of its extended attribute user\.nnn.*… is too long"),
        ({"other.name": b""}, r"/file: its extended attribute 'other\.name' is of no kind that ext4 has"),
        ({"user.": b""}, r"/file: its extended attribute 'user\.' is of no kind"),
        ({"system.posix_acl_access": b"x"}, r"/file: its extended attribute system\.posix_acl_access is not an access"),
    ],
)
def test_attributes_that_cannot_be_stored(attributes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        write_filesystem(with_xattrs(attributes), tmp_path / "root.raw")
    assert not list(tmp_path.iterdir())


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_free_blocks_are_given_out_in_order() -> None:
    free = FreeBlocks([Run(0, 10), Run(20, 5)], 100)
    assert free.take(3) == [Run(10, 3)]
    assert free.take(10) == [Run(13, 7), Run(25, 3)]
    free.align(16)
    assert free.take(1) == [Run(32, 1)]
    assert free.take(40, 16) == [Run(33, 40)]
    assert free.taken == [Run(10, 10), Run(25, 3), Run(32, 41)]
    with pytest.raises(FullError):
        free.take(24, 16)
    assert FreeBlocks([Run(0, 100)], 100).taken == []


def test_blocks_outside_of_whole_multiples_stay_free() -> None:
    free = FreeBlocks([Run(0, 3), Run(40, 2)], 70)
    free.align(16)
    assert free.take(30, 16) == [Run(16, 16), Run(48, 14)]


@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(1, 9000)), max_size=8), st.integers(70_000, 90_000))
@settings(max_examples=20)
def test_bitmaps_have_the_bits_of_the_blocks_in_use(pairs: list[tuple[int, int]], blocks: int) -> None:
    numbers = {number for start, length in pairs for number in range(start, min(start + length, blocks))}
    runs = joined(Run(number, 1) for number in numbers)
    assert {number for gap in gaps_between(runs, blocks) for number in range(*gap)} == set(range(blocks)) - numbers
    bits, free = 0, 0
    for group, data, unused in bitmaps(runs, blocks):
        bits |= int.from_bytes(data, "little") << group * records.BLOCKS_PER_GROUP
        free += unused
    behind = range(blocks, -(-blocks // records.BLOCKS_PER_GROUP) * records.BLOCKS_PER_GROUP)
    assert {number for number, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"} == numbers | set(behind)
    assert free == blocks - len(numbers)


@given(st.lists(st.integers(1, 70_000), min_size=0, max_size=1500))
def test_trees_of_extents_find_every_block(lengths: list[int]) -> None:
    runs, at = [], 5
    for length in lengths:
        runs.append(Run(at, length))
        at += length + 3
    given_out: list[int] = []

    def take(count: int) -> list[Run]:
        given_out.extend(range(1 << 40, (1 << 40) + count) if not given_out else [])
        start = (1 << 40) + take.__dict__.setdefault("used", 0)
        take.__dict__["used"] += count
        return [Run(start, count)]

    tree = extent_tree(runs, take)
    nodes = dict(tree.sealed(77))
    assert len(nodes) == len(tree.nodes)

    def leaves(node: bytes) -> list[tuple[int, int, int]]:
        magic, entries, most, depth, _ = records.EXTENT_HEADER.unpack_from(node)
        assert magic == 0xF30A
        assert entries <= most
        if len(node) == records.BLOCK:
            assert checksum(77, node[:-4]) == int.from_bytes(node[-4:], "little")
        found = []
        for number in range(entries):
            place = 12 + 12 * number
            if depth:
                _, low, high, _ = records.EXTENT_INDEX.unpack_from(node, place)
                found += leaves(nodes[low | high << 32])
            else:
                logical, length, high, low = records.EXTENT.unpack_from(node, place)
                found.append((logical, length, low | high << 32))
        return found

    logical = 0
    joined_runs: list[Run] = []
    for start, length, physical in leaves(tree.root):
        assert start == logical
        assert 0 < length <= 32768
        logical += length
        joined_runs.append(Run(physical, length))
    assert joined(joined_runs) == runs
    assert logical == sum(lengths)


def test_groups_with_a_copy_of_the_superblock() -> None:
    assert [number for number in range(130) if has_copy(number)] == [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]


# ---- records ---------------------------------------------------------------------------------------------------------


def test_records_have_the_lengths_of_the_format() -> None:
    sizes = {record.size for record in (records.SUPERBLOCK, records.JOURNAL_SUPERBLOCK)}
    assert sizes == {1024}
    assert (records.GROUP_DESCRIPTOR.size, records.INODE.size) == (64, 256)
    with pytest.raises(KeyError, match="i_mod"):
        records.INODE.pack(i_mod=1)
    with pytest.raises(struct.error):
        records.INODE.pack(i_mode=1 << 16)
    assert records.INODE.unpack(records.INODE.pack(i_uid=7))["i_uid"] == 7


def test_checksums_are_those_of_the_kernel() -> None:
    # crc32c of "123456789" is 0xe3069283 (RFC 3720, B.4 has others); the kernel neither inverts the start nor the end
    assert checksum(0xFFFFFFFF, b"123456789") == 0xE3069283 ^ 0xFFFFFFFF


def test_links_need_no_inode_of_their_own(tmp_path: Path) -> None:
    tree = small_tree()
    image = tmp_path / "root.raw"
    write_filesystem(tree, image)
    found = {
        path: re.findall(r"Inode: (\d+) ", run("debugfs", "-R", f"stat {path}", image))
        for path in ("bin/tool", "bin/link")
    }
    assert found["bin/tool"] == found["bin/link"]
    assert "Links: 2 " in run("debugfs", "-R", "stat bin/tool", image)
    assert isinstance(tree["bin/sh"], Symlink)


def test_some_fields_of_a_record() -> None:
    record = records.Record("a H\nb I\nc 4s\nd B")
    assert record.fields("a", "c").pack(1, b"x") == record.pack(a=1, c=b"x")
    assert record.fields("d").pack(7) == record.pack(d=7)


@pytest.mark.parametrize("names", [("e",), ("b", "a"), ("a", "a")])
def test_fields_that_a_record_does_not_have_in_this_order(names: tuple[str, ...]) -> None:
    with pytest.raises(KeyError):
        records.Record("a H\nb I").fields(*names)
