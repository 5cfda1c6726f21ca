"""Where the contents of files lie on a native disk, and that a change of one file moves few of the others' chunks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imgkit.disk.regions import CHUNK
from imgkit.engines.native import placement
from imgkit.engines.native.clustercompression import ClusterCompression
from imgkit.engines.native.ext4.writer import Place, write_ext4
from imgkit.engines.native.packedclusters import chunk_key
from imgkit.engines.native.placement import groups
from imgkit.engines.native.sparsedisk import FileData, SparseDisk
from imgkit.tree import File, Inline, Tree
from tests.ext4trees import IDENTITY, JOURNAL, MIB


def hashes_of(tree: Tree) -> dict[str, bytes]:
    return {path: hashlib.sha256(node.content.read()).digest() for path, node in tree.items() if isinstance(node, File)}


def tree_of(sizes: dict[str, int]) -> Tree:
    tree = Tree()
    for path, size in sizes.items():
        tree.write(path, (path.encode() * (size // len(path) + 1))[:size])
    return tree


def test_files_of_a_package_are_together_and_before_those_of_none() -> None:
    tree = tree_of({"a": 1, "b": 2, "c": 3, "d": 4, "empty": 0})
    placed = groups(tree, hashes_of(tree), {"a": "zlib", "c": "apk", "d": "zlib", "empty": "zlib"})
    assert [[file.path for file in group] for group in placed] == [["c"], ["a", "d"], ["b"]]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300))
def test_files_without_a_package_are_divided_by_their_hashes(firsts: list[int]) -> None:
    """A group ends where a hash says so, and not before it has 1 MiB. What was divided is still everything."""
    files = [
        placement.PlacedFile(str(number), FileData(Inline(bytes(300 << 10)), bytes([first]) + bytes(31)))
        for number, first in enumerate(firsts)
    ]
    divided = list(placement._divided(files))
    assert [file for group in divided for file in group] == files
    for group in divided[:-1]:
        assert len(group) >= 4
        assert group[-1].data.sha256[0] % 64 == 0 or len(group) * 300 >= 64 << 10
    assert all(file.data.sha256[0] % 64 for group in divided for file in group[3:-1])


def keys(tree: Tree, owners: dict[str, str], folder: Path) -> list[str]:
    """Return the keys of all chunks that have nothing but files."""
    compression = ClusterCompression("zstd")
    folder.mkdir()
    with SparseDisk(256 * MIB, folder / "spool") as disk:
        placed = groups(tree, hashes_of(tree), owners)
        write_ext4(disk, Place(0, 256 * MIB), tree, placed, IDENTITY, journal=JOURNAL)
        return [chunk_key(chunk, compression) for chunk in disk.chunks() if not chunk.is_generated]


def test_chunks_of_packages_are_the_same_in_another_image(tmp_path: Path) -> None:
    """More packages, files and directories move everything, and change no chunk of what was there."""
    sizes = {f"usr/lib/{name}{number}": 150_000 for name in "nz" for number in range(30)}
    owners = {path: "node" if "/n" in path else "zlib" for path in sizes}
    first = keys(tree_of(sizes), owners, tmp_path / "first")
    more = sizes | {f"opt/{number}": 70_000 for number in range(300)}
    second = keys(
        tree_of(more), owners | {path: "app" for path in more if path.startswith("opt/")}, tmp_path / "second"
    )
    assert len(first) > 8
    assert set(first) < set(second)


def test_a_changed_file_changes_the_chunks_of_its_package_only(tmp_path: Path) -> None:
    sizes = {f"usr/lib/{name}{number}": 150_000 for name in "nz" for number in range(30)}
    owners = {path: "node" if "/n" in path else "zlib" for path in sizes}
    first = keys(tree_of(sizes), owners, tmp_path / "first")
    second = keys(tree_of(sizes | {"usr/lib/z0": 150_001}), owners, tmp_path / "second")
    assert len(set(first) & set(second)) >= len(first) // 2


def test_large_files_begin_at_borders_of_clusters(tmp_path: Path) -> None:
    tree = tree_of({f"f{number}": 70_000 for number in range(5)} | {"small": 10, "tiny": 10})
    with SparseDisk(64 * MIB, tmp_path / "spool") as disk:
        placed = groups(tree, hashes_of(tree), dict.fromkeys(tree, "package"))
        write_ext4(disk, Place(0, 64 * MIB), tree, placed, IDENTITY, journal=JOURNAL)
        pieces = [(chunk.offset + piece.at, piece.length) for chunk in disk.chunks() for piece in chunk.pieces]
    assert all(at % (64 << 10) == 0 for at, length in pieces if length > 64 << 10)
    assert pieces[0][0] % CHUNK == 0
    assert [at % 4096 for at, _ in pieces] == [0] * 7
