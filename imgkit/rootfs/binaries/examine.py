"""Find the binaries of a payload that are for another platform, or that need a library that the image lacks.

npm packages are made for many systems at once: a package with a program often contains it for six platforms and chooses
one of them at run time. Binaries for other platforms are therefore normal in a payload, where they only take space. In
the rest of the image they are an error (:func:`imgkit.rootfs.binaries.libraries.check_architecture`).
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

# e_ident[EI_OSABI] of files that are certainly not for Linux (gABI, chapter 4). Most files have 0 there for any system.
_OS_ABIS = {2: "NetBSD", 6: "Solaris", 7: "AIX", 9: "FreeBSD", 12: "OpenBSD"}
_OS_ABI_AT = 7
_INTERPRETERS = {"/system/bin/linker": "Android", "/libexec/ld-elf": "FreeBSD", "/usr/libexec/ld.so": "OpenBSD"}


@dataclass(frozen=True, order=True)
class ForeignBinary:
    """A file that is for another platform. ``platform`` names the difference: a system, a machine, or ``glibc``."""

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
    """A file that cannot be understood or started. ``problem`` completes a sentence that begins with the path."""

    path: str
    problem: str


@dataclass(frozen=True)
class BinaryFindings:
    """The problems of the binaries of a payload, each kind sorted by path."""

    foreign: tuple[ForeignBinary, ...] = ()
    missing_libraries: tuple[MissingLibrary, ...] = ()
    doubtful: tuple[DoubtfulBinary, ...] = ()


def examine(tree: Tree, machine: str, paths: Iterable[str]) -> BinaryFindings:
    """Examine those of ``paths`` that are programs, libraries or Node's native modules.

    Kernel modules, other relocatable objects and BPF programs are ignored: they are data for something else.

    Args:
        machine: Alpine's name of the image's architecture.

    Raises:
        KeyError: the architecture is unknown.
    """
    examiner = _Examiner(tree, machine)
    findings = [finding for path in sorted(set(paths)) for finding in examiner.examine(path)]
    return BinaryFindings(
        tuple(finding for finding in findings if isinstance(finding, ForeignBinary)),
        tuple(finding for finding in findings if isinstance(finding, MissingLibrary)),
        tuple(finding for finding in findings if isinstance(finding, DoubtfulBinary)),
    )


class _Examiner:
    """Examines one file at a time."""

    def __init__(self, tree: Tree, machine: str) -> None:
        self._tree = tree
        self._machine = machine
        self._libraries = Libraries(tree)
        self._has_glibc = has_glibc(tree)

    def examine(self, path: str) -> Iterator[ForeignBinary | MissingLibrary | DoubtfulBinary]:
        """Yield the problems of the file at ``path``."""
        node = self._tree.get(path)
        if not isinstance(node, File) or not node.content.size:
            return
        start = elf.read_part(node.content, 0, elf.HEADER_SIZE)
        if system := foreign_system(node.content, start):
            yield ForeignBinary(path, node.content.size, system)
            return
        try:
            yield from self._examine_elf(path, node, start)
        except ElfError as cause:
            yield DoubtfulBinary(path, f"is a damaged ELF file: {cause}")
        except InputError as cause:
            yield DoubtfulBinary(path, f"cannot be checked: {cause.message}")

    def _examine_elf(
        self, path: str, node: File, start: bytes
    ) -> Iterator[ForeignBinary | MissingLibrary | DoubtfulBinary]:
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
        """Return the difference between the file's platform and the image's, None if there is none."""
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
        """Yield the reasons why a program or module cannot be started. Libraries are examined with their users."""
        facts = self._libraries.facts(path)
        if facts is None or not (facts.interpreter or path.endswith(".node")):
            return
        if facts.interpreter and not isinstance(self._tree.stat(facts.interpreter), File):
            yield DoubtfulBinary(path, f"needs the interpreter {facts.interpreter}, which the image lacks")
            return
        for library in self._libraries.missing_recursively(path):
            yield MissingLibrary(path, library)


def prune(tree: Tree, foreign: Iterable[ForeignBinary], paths: Iterable[str]) -> None:
    """Remove files from the Tree, and from ``paths`` the links to them and the folders that become empty."""
    kept = set(paths)
    links = [path for path in kept if isinstance(tree.get(path), Symlink) and _leads_somewhere(tree, path)]
    _remove(tree, [binary.path for binary in foreign], kept)
    _remove(tree, [path for path in links if not _leads_somewhere(tree, path)], kept)


def _remove(tree: Tree, paths: Iterable[str], folders: Collection[str]) -> None:
    """Remove the files at ``paths``, then those of ``folders`` above them that become empty."""
    for path in paths:
        tree.remove(path)
        above = parent(path)
        while above in folders and isinstance(tree.get(above), Directory) and not tree.children(above):
            tree.remove(above)
            above = parent(above)


def _leads_somewhere(tree: Tree, link: str) -> bool:
    try:
        return tree.stat(link) is not None
    except TreeError:  # a circle of links
        return False


def platforms(foreign: Iterable[ForeignBinary]) -> str:
    """Return the number of files for each platform, the most frequent first: ``4 for macOS, 2 for aarch64``."""
    counts = Counter(binary.platform for binary in foreign)
    return ", ".join(
        f"{count} for {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
