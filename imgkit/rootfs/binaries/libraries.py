"""Find the libraries that a program needs as musl's dynamic linker does, and check whether the Tree has them.

    Libraries(tree).closure(["bin/busybox"])   # {"bin/busybox", "lib/ld-musl-x86_64.so.1", …}
    check_architecture(tree, "x86_64")         # one line per file that cannot run

Rules: musl's manual and ``ldso/dynlink.c`` (``load_library``). A needed name without a slash is searched for in the run
paths of the object that needs it, then of the object that needed that one and so on, then in the system's path.
DT_RPATH and DT_RUNPATH are handled alike. The system's path is in ``/etc/ld-musl-<arch>.path``; the default is
``/lib:/usr/local/lib:/usr/lib``.
"""

from __future__ import annotations

import json
import lzma
import posixpath
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from imgkit.errors import InputError
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.binaries.elf import Elf, ElfError
from imgkit.rootfs.keptsteps import KeptSteps, described
from imgkit.tree import Content, File, Symlink, Tree, TreeError, parent

_SYSTEM_PATH = ("/lib", "/usr/local/lib", "/usr/lib")
# Libraries that are part of musl's libc: the dynamic linker never opens a file for these (``libc.`` covers
# libc.musl-x86_64.so.1, but also glibc's libc.so.6).
_PART_OF_MUSL = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
_GLIBC = re.compile(r"libc\.so\.6|ld-linux.*")
# Folders in which ELF files are for boot loaders and devices, or (usr/share) must not depend on the machine.
_DATA = ("boot/", "lib/firmware/", "usr/lib/firmware/", "usr/lib/grub/", "usr/share/")
_MODULE = re.compile(r"\.ko(\.gz|\.xz|\.zst)?$")
# npm packages have binaries for several platforms in such folders, and choose one of them when they are loaded.
PREBUILT = re.compile(r"(^|/)(prebuilds|prebuilt|prebuild)/")
_MAX_DICTIONARY = 64 << 20  # bytes of memory that unpacking the head of a module may take
_MAX_LOADS = 20_000  # of files with different run paths; libraries that need each other could make it n!
_COMPRESSED_HEAD = 4096  # more than enough compressed bytes for a file header


def system_path(tree: Tree) -> tuple[str, ...]:
    """Return the directories in which the Tree's dynamic linker looks for libraries, absolute."""
    for path in tree.children("etc"):
        if re.fullmatch(r"etc/ld-musl-[^/]+\.path", path) and tree.stat(path) is not None:
            return tuple(place for place in re.split(r"[:\n]", tree.text(path)) if place)
    return _SYSTEM_PATH


def with_targets(tree: Tree, path: str) -> list[str]:
    """Return ``path`` and, if it is a symbolic link, every path on the way to the file at its end.

    The directories of each path are resolved, so that none of the paths has a link in the middle.

    Raises:
        InputError: a link leads nowhere, or round in a circle.
    """
    paths: list[str] = []
    here = path
    try:
        tree.resolve(path)
        while True:
            here = tree.resolve(here, follow=False)
            paths.append(here)
            node = tree.get(here)
            if not isinstance(node, Symlink):
                break
            here = node.target if node.target.startswith("/") else posixpath.join(parent(here), node.target)
    except TreeError as cause:
        raise InputError(f"/{path}: is a circle of symbolic links") from cause
    if node is None:
        raise InputError(f"/{path}: no such file in the root filesystem" + (f" (/{here})" if here != path else ""))
    return paths


class Libraries:
    """Finds libraries in one Tree. The facts of each file are read once."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._system = system_path(tree)
        self._facts: dict[str, Elf | None] = {}

    def facts(self, path: str) -> Elf | None:
        """Return the ELF facts of the regular file at ``path`` (links are followed), None for anything else.

        Raises:
            InputError: it is a damaged ELF file.
        """
        place = self._tree.resolve(path)
        if place not in self._facts:
            node = self._tree.stat(place)
            try:
                self._facts[place] = elf.read(node.content) if isinstance(node, File) else None
            except ElfError as cause:
                raise InputError(f"/{path}: damaged ELF file: {cause}") from cause
        return self._facts[place]

    def closure(self, paths: Iterable[str]) -> set[str]:
        """Return ``paths``, the interpreters and libraries that they need, and all targets of symbolic links.

        Raises:
            InputError: a file is missing or damaged; the message names it and the file that needs it.
        """
        complete: set[str] = set()
        todo: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in paths]
        seen: set[tuple[str, tuple[str, ...]]] = set()
        while todo:
            path, inherited = todo.pop()
            complete.update(with_targets(self._tree, path))
            facts = self.facts(path)
            if facts is None or (path, inherited) in seen:
                continue
            seen.add((path, inherited))
            if len(seen) > _MAX_LOADS:
                raise InputError(f"/{path}: it and what else is needed take more than {_MAX_LOADS} loads of libraries")
            # Each place counts once, because libraries that need each other would make the list grow without end.
            search = tuple(dict.fromkeys(self._run_path(path, facts) + inherited))
            if facts.interpreter:
                todo.append((self._existing(facts.interpreter, path), ()))
            todo.extend((self._library(name, path, search), search) for name in self._wanted(facts, search))
        return complete

    def missing(self, path: str) -> list[str]:
        """Return the libraries that the file at ``path`` itself needs and the Tree lacks."""
        facts = self.facts(path)
        if facts is None:
            return []
        search = self._run_path(path, facts)
        return [name for name in facts.needed if not _PART_OF_MUSL.match(name) and self._find(name, search) is None]

    def missing_recursively(self, path: str) -> list[str]:
        """Return the libraries that the Tree lacks for the file at ``path`` and the libraries it needs, each once.

        Raises:
            InputError: one of those files is a damaged ELF file.
        """
        missing: dict[str, None] = {}
        todo: list[tuple[str, tuple[str, ...]]] = [(path, ())]
        seen: set[str] = set()
        while todo:
            here, inherited = todo.pop()
            facts = None if here in seen else self.facts(here)
            seen.add(here)
            if facts is None:
                continue
            search = tuple(dict.fromkeys(self._run_path(here, facts) + inherited))
            for name in facts.needed:
                place = self._find(name, search)
                if place is not None:
                    todo.append((place, search))
                elif not _PART_OF_MUSL.match(name):
                    missing[name] = None
        return list(missing)

    def _run_path(self, path: str, facts: Elf) -> tuple[str, ...]:
        """Return a file's own search path with ``$ORIGIN`` expanded."""
        origin = "/" + parent(self._tree.resolve(path))
        return tuple(place.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for place in facts.search)

    def _wanted(self, facts: Elf, search: Sequence[str]) -> Iterator[str]:
        """Yield the needed libraries that must exist as files, or that do."""
        for name in facts.needed:
            # A library that is part of musl need not be a file. One that is a file is copied, because packages link it.
            if not _PART_OF_MUSL.match(name) or self._find(name, search) is not None:
                yield name

    def _find(self, name: str, search: Sequence[str]) -> str | None:
        """Return the path of a library, None if the Tree lacks it."""
        places = [""] if "/" in name else [*search, *self._system]
        for place in places:
            path = f"{place}/{name}".strip("/")
            if isinstance(self._tree.stat(path), File):
                return path
        return None

    def _library(self, name: str, needed_by: str, search: Sequence[str]) -> str:
        path = self._find(name, search)
        if path is None:
            raise InputError(
                f"/{needed_by} needs the library {name}, which the root filesystem lacks",
                hint="add the package that provides " + ("so:" + name if "/" not in name else name),
            )
        return path

    def _existing(self, interpreter: str, needed_by: str) -> str:
        if not isinstance(self._tree.stat(interpreter), File):
            raise InputError(f"/{needed_by} needs the interpreter {interpreter}, which the root filesystem lacks")
        return interpreter.strip("/")


def check_architecture(
    tree: Tree, machine: str, *, without: Collection[str] = (), kept: KeptSteps | None = None
) -> list[str]:
    """Find the files of the Tree that cannot run on ``machine``.

    ELF executables and shared objects, kernel modules (compressed ones too) and Node's native modules (``.node``) are
    checked. Files that are data for something else are not: other relocatable objects, BPF programs, firmware, boot
    loaders, files in ``usr/share``, and the binaries for several platforms that npm packages have in ``prebuilds``.

    Args:
        machine: Alpine's name of an architecture: "x86_64", "aarch64", …
        without: paths of files that are not checked here, but by :mod:`imgkit.rootfs.binaries.examine`.
        kept: the results of earlier builds, which had the same kernel modules; None opens every module.

    Returns:
        One line for each problem, which begins with the file's path.

    Raises:
        KeyError: the architecture is unknown.
    """
    files = [
        (path, node)
        for path, node in tree.walk("")
        if isinstance(node, File) and node.content.size and path not in without and not _is_data(path)
    ]
    modules = {path: node for path, node in files if _MODULE.search(path)}
    of_modules = _modules_with_problems(modules, machine, kept or KeptSteps())
    libraries = Libraries(tree)
    problems: list[str] = []
    for path, node in files:
        try:
            found = of_modules.get(path, ()) if path in modules else _problems(tree, libraries, path, node, machine)
            problems.extend(f"/{path}: {problem}" for problem in found)
        except (ElfError, InputError) as cause:
            problems.append(str(cause) if isinstance(cause, InputError) else f"/{path}: {cause}")
    return problems


def _modules_with_problems(modules: Mapping[str, File], machine: str, kept: KeptSteps) -> dict[str, list[str]]:
    """Return path → reasons, for the kernel modules that cannot be loaded on ``machine``. There are thousands."""

    def compute() -> bytes:
        found = {path: _module_problems(path, node, machine) for path, node in modules.items()}
        return json.dumps({path: problems for path, problems in found.items() if problems}).encode()

    inputs = (described(path, node) for path, node in modules.items())
    problems: dict[str, list[str]] = json.loads(kept.get("modules", [machine, *inputs], compute))
    return problems


def _module_problems(path: str, node: File, machine: str) -> list[str]:
    try:
        facts = elf.parse_header(_module_head(path, node.content))
    except ElfError as cause:
        return [str(cause)]
    return ["not an ELF kernel module"] if facts is None else _wrong_machine(facts, machine)


def _is_data(path: str) -> bool:
    return path.startswith(_DATA) or bool(PREBUILT.search(path))


def _problems(tree: Tree, libraries: Libraries, path: str, node: File, machine: str) -> list[str]:
    """Return the reasons for which one file, which is no kernel module, cannot run."""
    native = path.endswith(".node")
    may_be = elf.may_be_elf(node.content)  # that of most files is known, and opening all of them takes long
    facts = elf.parse_header(elf.read_part(node.content, 0, elf.HEADER_SIZE)) if may_be else None
    if facts is None:
        return ["native module, but no ELF file: it was compiled for another system"] if native else []
    if facts.type not in (elf.ET_EXEC, elf.ET_DYN) or facts.machine == elf.EM_BPF:
        return []
    wrong = _wrong_machine(facts, machine)
    return wrong or _unmet_needs(tree, libraries, path, native=native)


def _wrong_machine(facts: Elf, machine: str) -> list[str]:
    return [] if facts.is_for(machine) else [f"is for {facts.machine_name}, the image for {machine}"]


def _unmet_needs(tree: Tree, libraries: Libraries, path: str, *, native: bool) -> list[str]:
    """Return what a file for the right machine needs and the Tree lacks."""
    facts = libraries.facts(path)
    if facts is None:
        return []
    if facts.interpreter and not isinstance(tree.stat(facts.interpreter), File):
        return [f"needs the interpreter {facts.interpreter}, which the image lacks"]
    if not native:
        return []
    missing = libraries.missing(path)
    glibc = [name for name in facts.needed if is_glibc_library(name) and not has_glibc(tree)]
    if glibc:
        return [f"native module compiled for glibc ({glibc[0]}), the image has musl"]
    return [f"needs the library {name}, which the image lacks" for name in missing]


def is_glibc_library(library: str) -> bool:
    """Return whether only programs for glibc need a library of this name: it is glibc's libc or dynamic linker."""
    return _GLIBC.fullmatch(library) is not None


def has_glibc(tree: Tree) -> bool:
    """Return whether the Tree has a substitute for glibc's dynamic linker, such as gcompat."""
    return any(re.fullmatch(r"lib(64)?/ld-linux.*", path) for top in ("lib", "lib64") for path in tree.children(top))


def _module_head(path: str, content: Content) -> bytes:
    """Return the first bytes of a kernel module, decompressed.

    Raises:
        ElfError: it cannot be decompressed.
    """
    start = elf.read_part(content, 0, _COMPRESSED_HEAD)
    try:
        if path.endswith(".gz"):
            return zlib.decompressobj(wbits=31).decompress(start, elf.HEADER_SIZE)
        if path.endswith(".xz"):
            return lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY).decompress(start, elf.HEADER_SIZE)
    except (zlib.error, lzma.LZMAError) as cause:
        raise ElfError(f"cannot be decompressed: {cause}") from cause
    if path.endswith(".zst"):
        raise ElfError("zstd-compressed kernel modules cannot be checked")
    return start
