"""The layout of the disk and the arithmetic of sizes."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.disk.layout import ALIGNMENT, SECTOR, SizedPartition, make_layout
from imgkit.disk.size import check_fits, needed_root_bytes, root_capacity, show_size, tree_blocks
from imgkit.errors import RecipeError
from imgkit.recipe import parse_size
from imgkit.tree import File, Inline, Slice, Tree
from tests.layouts import SPECS

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
