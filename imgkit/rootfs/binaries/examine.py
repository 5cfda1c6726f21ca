"""What the programs and native modules of a payload are for, and what of them the image lacks.

npm packages are made for many systems at once: one that brings a program often brings it for six platforms and picks
the right one when it runs. Binaries for other platforms are therefore normal in a payload, and nothing else than dead
weight. In the rest of the image they are a fault (:func:`imgkit.rootfs.binaries.libraries.check_architecture`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from imgkit.errors import InputError
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.binaries.elf import Elf, ElfError
from imgkit.rootfs.binaries.formats import foreign_system
from imgkit.rootfs.binaries.libraries import Libraries, has_glibc, is_glibc_library
from imgkit.tree import Directory, File, Symlink, Tree, TreeError, parent

# e_ident[EI_OSABI] of files that are certainly not for Linux (gABI, chapter 4); most say 0 there, which says nothing.
_OS_ABIS = {2: "NetBSD", 6: "Solaris", 7: "AIX", 9: "FreeBSD", 12: "OpenBSD"}
_OS_ABI_AT = 7
_INTERPRETERS = {"/system/bin/linker": "Android", "/libexec/ld-elf": "FreeBSD", "/usr/libexec/ld.so": "OpenBSD"}


@dataclass(frozen=True, order=True)
class ForeignBinary:
    """A file that is for another platform. ``platform`` is what sets it apart: a system, a machine, or ``glibc``."""

    path: str
    size: int
    platform: str


@dataclass(frozen=True, order=True)
class MissingLibrary:
    """A program or module of the image's platform that needs a library which the image does not have."""

    path: str
    library: str


@dataclass(frozen=True, order=True)
class DoubtfulBinary:
    """A file that cannot be understood, or not be started. ``problem`` completes a sentence that begins with it."""

    path: str
    problem: str


@dataclass(frozen=True)
class BinaryFindings:
    """Everything about the binaries of a payload that is worth a word, sorted by path."""

    foreign: tuple[ForeignBinary, ...] = ()
    missing_libraries: tuple[MissingLibrary, ...] = ()
    doubtful: tuple[DoubtfulBinary, ...] = ()


def examine(tree: Tree, machine: str, paths: Iterable[str]) -> BinaryFindings:
    """Look at those of ``paths`` that are programs, libraries or Node's native modules.

    Kernel modules, other relocatable objects and BPF programs are data here.

    Args:
        machine: Alpine's name of the image's architecture (KeyError for an unknown one).
    """
    look = _Look(tree, machine)
    found = sorted(set(paths))
    seen = [each for path in found for each in look.at(path)]
    return BinaryFindings(
        tuple(each for each in seen if isinstance(each, ForeignBinary)),
        tuple(each for each in seen if isinstance(each, MissingLibrary)),
        tuple(each for each in seen if isinstance(each, DoubtfulBinary)),
    )


class _Look:
    """Looks at one file after the other."""

    def __init__(self, tree: Tree, machine: str) -> None:
        self._tree = tree
        self._machine = machine
        self._libraries = Libraries(tree)
        self._has_glibc = has_glibc(tree)

    def at(self, path: str) -> Iterator[ForeignBinary | MissingLibrary | DoubtfulBinary]:
        node = self._tree.get(path)
        if not isinstance(node, File) or not node.content.size:
            return
        start = elf.read_part(node.content, 0, elf.HEADER_SIZE)
        if system := foreign_system(node.content, start):
            yield ForeignBinary(path, node.content.size, system)
            return
        try:
            yield from self._at(path, node, start)
        except ElfError as cause:
            yield DoubtfulBinary(path, f"is a damaged ELF file: {cause}")
        except InputError as cause:
            yield DoubtfulBinary(path, f"cannot be checked: {cause.message}")

    def _at(self, path: str, node: File, start: bytes) -> Iterator[ForeignBinary | MissingLibrary | DoubtfulBinary]:
        head = elf.parse_header(start)
        if head is None:
            if path.endswith(".node"):
                yield DoubtfulBinary(path, "is a native module of an unknown format")
        elif head.type in (elf.ET_EXEC, elf.ET_DYN) and head.machine != elf.EM_BPF:
            platform = self._platform(path, head, start)
            if platform is not None:
                yield ForeignBinary(path, node.content.size, platform)
            else:
                yield from self._needs(path)

    def _platform(self, path: str, head: Elf, start: bytes) -> str | None:
        """What sets the file's platform apart from the image's, None if nothing does."""
        if not head.is_for(self._machine):
            return head.machine_name
        if start[_OS_ABI_AT] in _OS_ABIS:
            return _OS_ABIS[start[_OS_ABI_AT]]
        facts = self._libraries.facts(path) or head
        named = [facts.interpreter.rpartition("/")[2]] if facts.interpreter else []
        if not self._has_glibc and any(is_glibc_library(name) for name in (*named, *facts.needed)):
            return "glibc"
        known = (name for start, name in _INTERPRETERS.items() if (facts.interpreter or "").startswith(start))
        return next(known, None)

    def _needs(self, path: str) -> Iterator[MissingLibrary | DoubtfulBinary]:
        """What keeps a program or module from being started. Libraries count where something needs them."""
        facts = self._libraries.facts(path)
        if facts is None or not (facts.interpreter or path.endswith(".node")):
            return
        if facts.interpreter and not isinstance(self._tree.stat(facts.interpreter), File):
            yield DoubtfulBinary(path, f"needs the interpreter {facts.interpreter}, which the image lacks")
            return
        for library in self._libraries.missing_recursively(path):
            yield MissingLibrary(path, library)


def prune(tree: Tree, foreign: Iterable[ForeignBinary], paths: Iterable[str]) -> None:
    """Take files out of the Tree, and of ``paths`` the links that led to them and the folders that they leave empty."""
    kept = set(paths)
    links = [path for path in kept if isinstance(tree.get(path), Symlink) and _leads_somewhere(tree, path)]
    _remove(tree, [each.path for each in foreign], kept)
    _remove(tree, [path for path in links if not _leads_somewhere(tree, path)], kept)


def _remove(tree: Tree, paths: Iterable[str], folders: Collection[str]) -> None:
    """Remove the files at ``paths``, then those of ``folders`` above them that have nothing else in them."""
    for path in paths:
        tree.remove(path)
        above = parent(path)
        while above in folders and isinstance(tree.get(above), Directory) and not tree.children(above):
            tree.remove(above)
            above = parent(above)


def _leads_somewhere(tree: Tree, link: str) -> bool:
    try:
        return tree.stat(link) is not None
    except TreeError:  # round in a circle
        return False


def platforms(foreign: Iterable[ForeignBinary]) -> str:
    """How many files there are for which platform, the most frequent first: ``4 for macOS, 2 for aarch64``."""
    counts = Counter(each.platform for each in foreign)
    return ", ".join(
        f"{count} for {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
