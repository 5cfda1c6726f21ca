"""The layout of the disk and the arithmetic of sizes."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.disk.layout import ALIGNMENT, SECTOR, SizedPartition, make_layout, sized_partitions
from imgkit.disk.size import (
    check_fits,
    journal_mib,
    needed_root_bytes,
    root_capacity,
    show_file_size,
    show_size,
    too_small,
    tree_blocks,
    tree_inodes,
)
from imgkit.errors import RecipeError
from imgkit.recipe import PartitionSpec, parse_size
from imgkit.tree import Directory, File, HardLink, Inline, Node, Slice, Symlink, Tree
from tests.layouts import ARCHITECTURES, SPECS

GIB = 1 << 30
NOWHERE = Path("/nonexistent")
SEED = uuid.UUID(int=7)


def test_amd64_has_all_three_partitions_in_their_places() -> None:
    layout = make_layout(SPECS["amd64"], 4 * GIB, SEED)
    assert [(part.kind, part.number, part.start_lba) for part in layout.partitions] == [
        ("bios-boot", 14, 2048),
        ("esp", 1, 4096),
        ("root", 2, 36864),
    ]
    assert layout.root.filesystem == "ext4"
    esp = layout.get("esp")
    assert esp is not None
    assert len(esp.fs_uuid) == 9
    assert esp.fs_uuid[4] == "-"


def test_arm64_has_no_bios_boot_partition() -> None:
    layout = make_layout(SPECS["arm64"], GIB, SEED)
    assert [part.number for part in layout.partitions] == [1, 2]
    assert layout.get("bios-boot") is None


@given(st.integers(40 << 11, 128 << 21), st.sampled_from(["amd64", "arm64"]), st.uuids())
def test_partitions_are_aligned_apart_and_leave_room_for_both_tables(sectors: int, arch: str, seed: uuid.UUID) -> None:
    layout = make_layout(SPECS[arch], sectors * SECTOR, seed)
    end = ALIGNMENT
    for part in layout.partitions:
        assert part.start == end
        assert part.start % ALIGNMENT == 0
        assert part.size % ALIGNMENT == 0
        assert part.size > 0
        end = part.start + part.size
    assert layout.partitions[-1].kind == "root"
    assert layout.size_bytes - 33 * SECTOR - ALIGNMENT < end <= layout.size_bytes - 33 * SECTOR


def test_identifiers_come_from_the_seed_and_differ() -> None:
    one, same = (make_layout(SPECS["amd64"], GIB, SEED) for _ in range(2))
    other = make_layout(SPECS["amd64"], GIB, uuid.UUID(int=8))
    assert one == same
    identifiers = [one.disk_guid, *(part.uuid for part in one.partitions), one.root.fs_uuid]
    assert len(set(identifiers)) == 5
    assert not set(identifiers) & {other.disk_guid, *(part.uuid for part in other.partitions), other.root.fs_uuid}


@pytest.mark.parametrize(
    ("spec", "size", "words"),
    [
        (SPECS["amd64"], 16 << 20, "no room for root"),
        (SPECS["amd64"], GIB + 1, "not a multiple"),
        ((SizedPartition("esp", 1 << 20),), GIB, "root exactly once"),
        ((SizedPartition("root"), SizedPartition("root")), GIB, "root exactly once"),
        ((SizedPartition("esp", 0), SizedPartition("root")), GIB, "esp: size of 0"),
    ],
)
def test_impossible_layouts_are_refused(spec: tuple[SizedPartition, ...], size: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_layout(spec, size, SEED)


def _tree_of(size: int, count: int = 1) -> Tree:
    tree = Tree()
    for number in range(count):
        # Nothing reads it: only its size counts.
        tree.add(f"file{number}", File(content=Slice(NOWHERE, 0, size)))
    return tree


@settings(deadline=None)
@given(st.integers(0, 1 << 36), st.integers(1, 5))
def test_the_needed_size_is_enough_and_nearly_the_smallest(size: int, count: int) -> None:
    tree = _tree_of(size, count)
    needed = needed_root_bytes(tree)
    assert root_capacity(needed)[0] >= tree_blocks(tree)
    assert root_capacity(needed * 9 // 10 - (64 << 20))[0] < tree_blocks(tree)
    check_fits(tree, needed, needed + (35 << 20))


def test_many_small_files_need_inodes() -> None:
    tree = Tree()
    for number in range(5000):
        tree.add(f"f{number}", File(content=Inline(b"")))
    assert needed_root_bytes(tree) >= 5000 * 16384


def test_an_image_that_is_too_small_says_what_it_needs() -> None:
    with pytest.raises(
        RecipeError, match=r"image of 1024 MiB is too small for its content, which needs 2\d\d\d MiB"
    ) as e:
        check_fits(_tree_of(2 * GIB), 989 << 20, GIB)
    assert e.value.hint is not None
    assert parse_size(e.value.hint.split()[3]) > 2 * GIB


def test_sizes_are_shown_rounded_up() -> None:
    assert show_size((1 << 20) + 1) == "2 MiB"
    assert show_size(5) == "5 bytes"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999_999, "999999 bytes"), (1_000_000, "1 MB"), (110_600_000, "111 MB")]
)
def test_the_size_of_a_file_in_words(size: int, text: str) -> None:
    assert show_file_size(size) == text


# ---- boundaries ------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def test_sizes_are_rounded_up_to_the_alignment() -> None:
    esp = make_layout((SizedPartition("root"), SizedPartition("esp", MIB + 1)), GIB, SEED).get("esp")
    assert esp is not None
    assert (esp.start, esp.size) == (MIB, 2 * MIB)
    assert (esp.start_lba, esp.sectors) == (2048, 4096)


def test_the_smallest_disk_has_a_root_of_one_mib() -> None:
    spec = (SizedPartition("esp", 2 * MIB), SizedPartition("root"))
    smallest = 4 * MIB + 33 * SECTOR
    layout = make_layout(spec, smallest, SEED)
    assert (layout.root.start, layout.root.size) == (3 * MIB, MIB)
    with pytest.raises(RecipeError) as refusal:
        make_layout(spec, smallest - SECTOR, SEED)
    assert refusal.value.message == f"image size of {smallest - SECTOR} bytes leaves no room for root"
    assert refusal.value.hint == "at least 5 MiB"
    assert make_layout(spec, 5 * MIB, SEED).root.size == MIB


def test_everything_that_a_partition_states() -> None:
    layout = make_layout(SPECS["amd64"], GIB, SEED)
    stated = [(part.name, part.type_guid, part.filesystem, part.label) for part in layout.partitions]
    assert stated == [
        ("bios-boot", "21686148-6449-6E6F-744E-656564454649", "", ""),
        ("esp", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "vfat", "ESP"),
        ("root", "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "ext4", "root"),
    ]
    bios, esp, root = layout.partitions
    assert bios.fs_uuid == ""
    assert esp.fs_uuid == esp.fs_uuid.upper() != ""
    assert root.fs_uuid == str(uuid.UUID(root.fs_uuid))
    assert layout.size_bytes == GIB
    for identifier in (layout.disk_guid, *(part.uuid for part in layout.partitions)):
        assert identifier == str(uuid.UUID(identifier)).upper()


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ((), GIB, "partitions (none): root exactly once and no kind twice"),
        ((SizedPartition("esp", 1), SizedPartition("esp", 1), SizedPartition("root")), GIB,
         "partitions esp, esp, root: root exactly once and no kind twice"),
        ((SizedPartition("esp"), SizedPartition("root")), GIB, "partition esp: size of 0 bytes"),
        ((SizedPartition("root", -1),), GIB, "partition root: size of -1 bytes"),
        ((SizedPartition("esp", -1), SizedPartition("root")), GIB, "partition esp: size of -1 bytes"),
        ((SizedPartition("root"),), GIB + 511, f"image size of {GIB + 511} bytes is not a multiple of 512"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_layout_is_said(spec: tuple[SizedPartition, ...], size: int, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_layout(spec, size, SEED)
    assert refusal.value.message == message


@pytest.mark.parametrize(
    ("size", "journal"),
    [
        ((256 << 20) - 1, 4), (256 << 20, 16), (GIB - 1, 16), (GIB, 32), (2 * GIB - 1, 32), (2 * GIB, 64),
    ],
)  # fmt: skip
def test_journals(size: int, journal: int) -> None:
    assert journal_mib(size) == journal


@pytest.mark.parametrize(
    ("size", "text"), [(MIB - 1, "1048575 bytes"), (MIB, "1 MiB"), (MIB + 1, "2 MiB"), (2 * MIB, "2 MiB")]
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert show_size(size) == text


def test_blocks_of_every_kind_of_node() -> None:
    def blocks(*nodes: tuple[str, Node]) -> int:
        tree = Tree()
        for path, node in nodes:
            tree.add(path, node)
        return tree_blocks(tree) - tree_blocks(Tree())

    def sized(size: int) -> File:
        return File(content=Slice(NOWHERE, 0, size))

    assert tree_blocks(Tree()) == 17
    assert [blocks(("f", sized(size))) for size in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert blocks(("f", sized(4 * 32768 * 4096))) == 4 * 32768
    assert blocks(("f", sized(4 * 32768 * 4096 + 1))) == 4 * 32768 + 2
    assert blocks(("d", Directory())) == 1
    assert [blocks(("l", Symlink(target="x" * length))) for length in (59, 60)] == [0, 1]
    assert blocks(("l", Symlink(target="ü" * 30))) == 1
    assert blocks(("f", File(content=Inline(b""), xattrs={"user.a": bytes(64)}))) == 0
    assert blocks(("f", File(content=Inline(b""), xattrs={"user.a": bytes(40), "user.b": bytes(25)}))) == 1
    names = [(f"d/{number:03}", Symlink(target="x")) for number in range(171)]
    assert blocks(("d", Directory()), *names[:170]) == 1
    assert blocks(("d", Directory()), *names) == 2
    names = [(f"d/{'x' * 240}{number:03}", Symlink(target="x")) for number in range(11)]
    assert blocks(("d", Directory()), *names[:10]) == 1
    assert blocks(("d", Directory()), *names) == 2


def test_inodes() -> None:
    tree = _tree_of(1, 3)
    tree.add("hard", HardLink(target="file0"))
    assert tree_inodes(tree) == 11 + 4


def test_capacities() -> None:
    blocks, inodes = root_capacity(GIB)
    assert inodes == GIB // 16384
    assert blocks == (GIB - inodes * 256 - 8 * 4 * 4096 - (32 << 20) - (6 << 20)) // 4096
    assert root_capacity(128 << 20)[0] == ((128 << 20) - 8192 * 256 - 4 * 4096 - (4 << 20) - (6 << 20)) // 4096
    assert root_capacity(GIB + 4096)[0] == (GIB + 4096 - inodes * 256 - 9 * 4 * 4096 - (32 << 20) - (6 << 20)) // 4096
    assert root_capacity(MIB)[0] == 0


def test_an_image_that_just_fits_is_accepted() -> None:
    tree = _tree_of(100 * MIB)
    needed = needed_root_bytes(tree)
    check_fits(tree, needed, GIB)
    with pytest.raises(RecipeError) as refusal:
        check_fits(tree, needed - 1, GIB)
    least = GIB + 1
    assert refusal.value.message == f"image of 1024 MiB is too small for its content, which needs {show_size(least)}"
    assert refusal.value.hint == f"set size to {1025 + 64}M or more"


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 100 * MIB, 245 * MIB, 900 * MIB, 1900 * MIB, 70 * GIB])
def test_one_mib_less_is_not_enough(size: int) -> None:
    tree = _tree_of(size)
    needed = needed_root_bytes(tree)
    assert needed % MIB == 0
    assert root_capacity(needed)[0] >= tree_blocks(tree)
    assert root_capacity(needed - MIB)[0] < tree_blocks(tree)


def test_identifiers_stay_what_they_are() -> None:
    """The same recipe has the same identifiers in every version of imgkit."""
    layout = make_layout(SPECS["amd64"], GIB, SEED)
    assert layout.disk_guid == str(uuid.uuid5(SEED, "disk")).upper()
    assert [part.uuid for part in layout.partitions] == [
        str(uuid.uuid5(SEED, f"partition {kind}")).upper() for kind in ("bios-boot", "esp", "root")
    ]
    assert layout.root.fs_uuid == str(uuid.uuid5(SEED, "filesystem root"))
    volume = uuid.uuid5(SEED, "filesystem esp").hex.upper()
    assert [part.fs_uuid for part in layout.partitions[:2]] == ["", f"{volume[:4]}-{volume[4:8]}"]


def test_a_recipe_states_sizes_as_text() -> None:
    parts = (PartitionSpec(kind="root"), PartitionSpec(kind="esp", size="16M"))
    architecture = ARCHITECTURES["amd64"].model_copy(update={"partitions": parts})
    assert sized_partitions(architecture) == (SizedPartition("root", 0), SizedPartition("esp", 16 * MIB))


def test_the_size_that_is_proposed_has_room_to_spare() -> None:
    """64 MiB more than needed, rounded up to whole MiB."""
    for needed, hint in ((100 * MIB, "164M"), (100 * MIB + 1, "165M")):
        error = too_small(50 * MIB, needed)
        assert error.message == (f"image of 50 MiB is too small for its content, which needs {show_size(needed)}")
        assert error.hint == f"set size to {hint} or more"


def test_a_tree_without_files_needs_little() -> None:
    """The journal, the tables that are reserved for growth, and what else there is in every filesystem."""
    assert needed_root_bytes(Tree()) == 11 * MIB


@pytest.mark.slow
def test_inodes_decide_the_size_of_many_small_files() -> None:
    tree = Tree()
    for number in range(20000):
        tree.add(f"f{number}", File(content=Inline(b"")))
    needed = needed_root_bytes(tree)
    assert root_capacity(needed)[1] >= tree_inodes(tree) > root_capacity(needed - MIB)[1]


def test_a_tree_that_takes_every_block_or_every_inode_fits() -> None:
    blocks, _ = root_capacity(100 * MIB)
    tree = _tree_of((blocks - tree_blocks(Tree())) * 4096)
    assert (tree_blocks(tree), needed_root_bytes(tree)) == (blocks, 100 * MIB)
    _, inodes = root_capacity(16 * MIB)
    tree = Tree()
    for number in range(inodes - tree_inodes(Tree())):
        tree.add(f"f{number}", File(content=Inline(b"")))
    assert (tree_inodes(tree), needed_root_bytes(tree)) == (inodes, 16 * MIB)
