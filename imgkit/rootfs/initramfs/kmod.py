"""Select kernel modules: their dependencies, depmod's files for a subset, and the binary index that kmod reads.

Formats: modules.dep(5), and for the index ``libkmod/libkmod-index.h`` of kmod: a path-compressed trie in big-endian
order. The file is a header (magic, version, root) and nodes, parents before children, children in ascending order. A
32-bit word refers to a node: its position in the file in the low 28 bits, and flags for the parts that it has:

* :data:`_PREFIX`: the characters that all keys below share, and a NUL;
* :data:`_CHILDREN`: first and last character (a byte each), then one word per character of that range, 0 for none;
* :data:`_VALUES`: a count, then for each value its priority and the text with a NUL.

A child's own character is not part of its prefix.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from os.path import commonprefix
from typing import TypeAlias

from imgkit.errors import InputError
from imgkit.rootfs.binaries import elf

_MAGIC = 0xB007F457
_VERSION = 0x00020001
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000
_POSITION = 0x0FFFFFFF
_MAX_KEY = 600  # characters; the longest are symbols, of which the kernel takes 512 (KSYM_NAME_LEN)
_SUFFIX = re.compile(r"\.ko(\.[a-z0-9]+)?$")

IndexEntry: TypeAlias = tuple[str, str, int]
"""An entry of an index: key, value, priority."""

TEXTS = ("alias", "builtin", "builtin.modinfo", "dep", "devname", "order", "softdep", "symbols", "weakdep")
"""The text files ``modules.<name>`` from which those of a subset are made; all but ``dep`` may be missing."""

_FILTERED: Mapping[str, int] = {"alias": -1, "devname": 0, "softdep": 1, "symbols": -1, "weakdep": 1}
"""Files of which only some lines belong to a subset → index of the word of a line that is the module's name."""


def module_name(path: str) -> str:
    """Return the kernel's name of the module in the file ``path``: no folder, no suffix, ``_`` for ``-``."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def normalize_alias(alias: str) -> str:
    """Replace ``-`` by ``_`` in an alias, except inside brackets, where it means a range."""
    return re.sub(r"\[[^]]*\]|-", lambda match: "_" if match[0] == "-" else match[0], alias)


# ---- modules.dep -----------------------------------------------------------------------------------------------------


def parse_dependencies(text: str, directory: str) -> dict[str, tuple[str, ...]]:
    """Parse ``modules.dep``.

    Returns:
        Module file → files that it needs, in the file's order, relative to ``directory``.

    Raises:
        InputError: a line has no colon; the message names the file and the line.
    """
    dependencies: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        path, colon, needed = line.partition(":")
        if not colon:
            raise InputError(f"/{directory}/modules.dep: line {number} has no colon")
        # Older depmod wrote absolute paths.
        dependencies[_relative(path, directory)] = tuple(_relative(word, directory) for word in needed.split())
    return dependencies


def _relative(path: str, directory: str) -> str:
    return path.removeprefix(f"/{directory}/")


def closure(dependencies: Mapping[str, Sequence[str]], wanted: Iterable[str]) -> set[str]:
    """Return the ``wanted`` modules and all modules that they need.

    Raises:
        InputError: a module is not in ``modules.dep``.
    """
    complete: set[str] = set()
    todo = [(path, "") for path in wanted]
    while todo:
        path, needed_by = todo.pop()
        if path in complete:
            continue
        if path not in dependencies:
            reason = f", which {needed_by} needs" if needed_by else ""
            raise InputError(f"{path}: kernel module is not in modules.dep{reason}", hint="its package needs depmod")
        complete.add(path)
        todo.extend((other, path) for other in dependencies[path])
    return complete


# ---- depmod's files --------------------------------------------------------------------------------------------------


def subset(texts: Mapping[str, str], kept: Collection[str], directory: str) -> dict[str, bytes]:
    """Return depmod's files for some of the modules of a kernel.

    Lines keep the order of the complete files. If depmod itself is run on such a subset, only the order of the
    dependencies within a line of ``modules.dep`` (and so of ``modules.dep.bin``) differs; both orders are valid.

    Args:
        texts: name (see :data:`TEXTS`) → text of the complete file.
        kept: module files that belong to the subset, closed under dependencies.
        directory: the folder of the complete set, for errors.

    Returns:
        File name → contents, ``.bin`` files included.
    """
    dependencies = parse_dependencies(texts["dep"], directory)
    names = {module_name(path) for path in kept}
    small = dict(texts)
    small["dep"] = "".join(
        f"{path}:{''.join(' ' + other for other in needed)}\n" for path, needed in dependencies.items() if path in kept
    )
    for name, word in _FILTERED.items():
        if name in texts:
            small[name] = _filter(texts[name], word, names)
    files = {f"modules.{name}": text.encode(errors="surrogateescape") for name, text in small.items()}
    return files | indexes(small)


def _filter(text: str, word: int, names: Collection[str]) -> str:
    """Return the comments of ``text`` and the lines of which the given word is one of ``names``."""
    lines = [(line, line.split()) for line in text.splitlines(keepends=True)]
    return "".join(line for line, words in lines if line.startswith("#") or (len(words) > 1 and words[word] in names))


def indexes(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the ``.bin`` files that belong to depmod's text files: file name → contents.

    Raises:
        InputError: an alias or another key cannot be in an index.
    """
    priority = {module_name(line.partition(":")[0]): row for row, line in enumerate(texts["dep"].splitlines())}
    makers: dict[str, tuple[str, Callable[[str], Iterable[IndexEntry]]]] = {
        "modules.dep.bin": ("dep", _dep_entries),
        "modules.alias.bin": ("alias", lambda text: _alias_entries(text, priority)),
        "modules.symbols.bin": ("symbols", lambda text: _alias_entries(text, priority)),
        "modules.builtin.bin": ("builtin", lambda text: [(module_name(line), "", 0) for line in text.splitlines()]),
        "modules.builtin.alias.bin": ("builtin.modinfo", _builtin_entries),
    }
    return {file: write_index(make(texts[name])) for file, (name, make) in makers.items() if name in texts}


def _dep_entries(text: str) -> Iterable[IndexEntry]:
    return [(module_name(line.partition(":")[0]), line, row) for row, line in enumerate(text.splitlines())]


def _alias_entries(text: str, priority: Mapping[str, int]) -> Iterable[IndexEntry]:
    for line in text.splitlines():
        alias, _, module = line.removeprefix("alias ").rpartition(" ")
        if alias and line.startswith("alias "):
            yield normalize_alias(alias), module, priority.get(module, 0)


def _builtin_entries(text: str) -> Iterable[IndexEntry]:
    """Yield the aliases in ``modules.builtin.modinfo``: records ``module.key=value``, each ended by a NUL."""
    for record in text.split("\0"):
        module, _, rest = record.partition(".")
        if rest.startswith("alias="):
            yield normalize_alias(rest.removeprefix("alias=")), module.replace("-", "_"), 0


def modinfo(module: bytes, key: str) -> list[str]:
    """Return the values of ``key`` in the ``.modinfo`` section of a module, in the section's order.

    Args:
        module: the file, decompressed.

    Raises:
        ElfError: it is no ELF file, or a damaged one.
    """
    records = elf.section(module, ".modinfo").decode(errors="surrogateescape").split("\0")
    return [record.removeprefix(key + "=") for record in records if record.startswith(key + "=")]


# ---- the index -------------------------------------------------------------------------------------------------------


@dataclass
class _Node:
    """A node of the trie. ``values`` are (priority, text) pairs, ``children`` are named by one character each."""

    prefix: str
    values: list[tuple[int, str]]
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def flags(self) -> int:
        """The bits that say which parts the node has."""
        return (_PREFIX if self.prefix else 0) | (_VALUES if self.values else 0) | (_CHILDREN if self.children else 0)


def write_index(entries: Iterable[IndexEntry]) -> bytes:
    """Return the index of ``entries``. Values of one key are sorted by priority; ties keep their order.

    Raises:
        InputError: a key is not plain ASCII or is too long, there is a NUL in a key or value, or the index would be too
            large.
    """
    ordered = sorted(entries, key=itemgetter(0))
    for key, value, _ in ordered:
        if not key.isascii() or "\0" in key + value or len(key) > _MAX_KEY:
            raise InputError(f"module index: {key[:80]!r} cannot be a key of it")
    out = bytearray(12)
    root = _write(out, _trie(ordered, 0))
    struct.pack_into(">III", out, 0, _MAGIC, _VERSION, root)
    return bytes(out)


def _trie(entries: Sequence[IndexEntry], depth: int) -> _Node:
    """Return the node for sorted ``entries`` whose keys agree in their first ``depth`` characters."""
    # What the first and the last of sorted keys share, all keys share. depmod never gives the root a prefix.
    shared = commonprefix((entries[0][0], entries[-1][0])) if depth else ""  # noqa: RUF071 - of texts
    end = len(shared)
    here = [(priority, value) for key, value, priority in entries if len(key) == end]
    node = _Node(shared[depth:end], sorted(here, key=itemgetter(0)))
    below = [entry for entry in entries if len(entry[0]) > end]
    for character, group in groupby(below, key=lambda entry: entry[0][end]):
        node.children[character] = _trie(list(group), end + 1)
    return node


def _write(out: bytearray, node: _Node) -> int:
    """Append ``node`` and all nodes below it; return the word that refers to it."""
    position = len(out)
    if node.prefix:
        out += node.prefix.encode() + b"\0"
    words: dict[str, int] = {}  # where the words are that refer to the children
    if node.children:
        first, last = ord(min(node.children)), ord(max(node.children))
        out += bytes((first, last))
        words = {character: len(out) + 4 * (ord(character) - first) for character in sorted(node.children)}
        out += bytes(4 * (last - first + 1))
    if node.values:
        out += struct.pack(">I", len(node.values))
        for priority, value in node.values:
            out += struct.pack(">I", priority) + value.encode(errors="surrogateescape") + b"\0"
    for character, place in words.items():
        struct.pack_into(">I", out, place, _write(out, node.children[character]))
    if position > _POSITION:
        raise InputError("module index: more than 256 MiB")
    return position | node.flags
