"""The order in which the contents of files lie on the disk, so that the same files make the same chunks in each image.

Files are divided into groups, each of which begins at the border of a chunk: the files of a package are one, and what
belongs to no package is divided where the hash of a file says so. A chunk then depends on the files of its group and on
nothing else in the image, and a file that is changed or added changes the chunks of its own group only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from imgkit.engines.native.sparsedisk import FileData
from imgkit.tree import File, Tree

_LEAST, _MOST = 1 << 20, 64 << 20  # bytes of a group of files without a package
_BORDER = 64  # one of so many files ends a group, by its hash


class PlacedFile(NamedTuple):
    """A file that has content: its path, and the content."""

    path: str
    data: FileData


def groups(tree: Tree, hashes: Mapping[str, bytes], owners: Mapping[str, str]) -> list[Sequence[PlacedFile]]:
    """Return the files of a Tree that are not empty, in the order in which they lie on the disk.

    Args:
        hashes: path of a file → SHA-256 of its content.
        owners: path of a file → name of its package, for those that belong to one.
    """
    owned: dict[str, list[PlacedFile]] = {}
    others: list[PlacedFile] = []
    for path, node in tree.items():
        if isinstance(node, File) and node.content.size:
            file = PlacedFile(path, FileData(node.content, hashes[path]))
            owner = owners.get(path)
            (others if owner is None else owned.setdefault(owner, [])).append(file)
    return [*(files for _, files in sorted(owned.items())), *_divided(others)]


def _divided(files: Iterable[PlacedFile]) -> Iterator[Sequence[PlacedFile]]:
    """Yield the files in groups whose borders depend on the files next to them only."""
    group: list[PlacedFile] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.data.content.size
        if size >= _MOST or (size >= _LEAST and file.data.sha256[0] % _BORDER == 0):
            yield group
            group, size = [], 0
    if group:
        yield group
