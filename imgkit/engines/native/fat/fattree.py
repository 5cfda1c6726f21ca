"""The files of a FAT filesystem as values: directories with their long and short names, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from imgkit.engines.native.fat.fatnames import fault_of, folded, is_short, short_names
from imgkit.engines.native.fat.fatrecords import ENTRY_SIZE, long_entries
from imgkit.errors import RecipeError

_MAX_FILE = (1 << 32) - 1
_MAX_ENTRIES = 1 << 16  # of a directory: fatgen103, "FAT Directory Structure"
_WHERE = "on the EFI system partition"


@dataclass
class FatFile:
    """A file and the cluster that it begins at; 0 if it is empty."""

    path: str
    data: bytes
    cluster: int = 0


@dataclass
class FatFolder:
    """A directory. ``cluster`` is 0 for the root directory of a FAT16, which has a place of its own."""

    path: str
    children: dict[str, FatFile | FatFolder] = field(default_factory=dict)
    shorts: Mapping[str, bytes] = field(default_factory=dict)
    cluster: int = 0

    @property
    def size(self) -> int:
        """Bytes of its entries, without a volume label and without ``.`` and ``..``."""
        return sum(ENTRY_SIZE + len(self.long_name(name)) for name in self.children)

    def long_name(self, name: str) -> bytes:
        """Return the long entries of a child; empty if it needs none."""
        short = self.shorts[name]
        return b"" if is_short(name, short) else long_entries(name, short)


def fat_tree(files: Mapping[str, bytes]) -> FatFolder:
    """Return the root directory with everything in it.

    Raises:
        RecipeError: a path is not legal.
    """
    root = FatFolder("")
    for path, data in sorted(files.items()):  # a file comes before what would be below it
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            child = folder.children.get(parent)
            if child is None:
                child = folder.children[parent] = FatFolder(f"{folder.path}{parent}/")
            if isinstance(child, FatFile):
                raise RecipeError(f"{child.path} {_WHERE} is both a file and a directory")
            folder = child
        if len(data) > _MAX_FILE:
            raise RecipeError(f"{path} {_WHERE} has {len(data)} bytes, and FAT's limit is {_MAX_FILE}")
        folder.children[name] = FatFile(path, data)
    for folder in folders_of(root):
        _choose_names(folder)
    return root


def folders_of(folder: FatFolder) -> Iterator[FatFolder]:
    """Yield a directory and all below it, each before what it contains."""
    pending = [folder]
    while pending:
        current = pending.pop()
        yield current
        pending += [child for child in reversed(current.children.values()) if isinstance(child, FatFolder)]


def _choose_names(folder: FatFolder) -> None:
    """Check the names of a directory, and choose the short ones.

    Raises:
        RecipeError: a name is not legal, two differ in case only, or there are too many.
    """
    seen: dict[str, str] = {}
    for name in folder.children:
        fault = fault_of(name)
        if fault:
            raise RecipeError(f"{folder.path}{name} {_WHERE}: the name {fault}")
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise RecipeError(f"{folder.path}{name} {_WHERE} differs from {folder.path}{other} in case only")
    folder.shorts = short_names(folder.children)
    if folder.size // ENTRY_SIZE + 2 > _MAX_ENTRIES:
        raise RecipeError(f"/{folder.path} {_WHERE} has too many files for a directory of FAT")
