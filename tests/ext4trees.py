"""Trees for tests of filesystems, random ones above all, and the filesystems made of them."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from imgkit.disk.regions import Region
from imgkit.engines.native.diskwriting import write_image
from imgkit.engines.native.ext4.superblock import FilesystemIdentity
from imgkit.engines.native.ext4.writer import Place, Space, write_ext4
from imgkit.engines.native.placement import groups
from imgkit.engines.native.sparsedisk import SparseDisk
from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Symlink, Tree, TreeError

MIB = 1 << 20
SIZE = 48 * MIB
"""Bytes of a filesystem for random Trees."""
IDENTITY = FilesystemIdentity(UUID(int=0x1234), "root", UUID(int=0x5678 << 70 | 99), 1_700_000_000)
JOURNAL = 4 * MIB

_legal_bytes = st.sampled_from([byte for byte in range(0x20, 0x100) if byte not in (0x2F, 0x7F)])


def _name(data: list[int]) -> str:
    name = os.fsdecode(bytes(data))
    return "x" + name if name in (".", "..") else name


names = (
    st.lists(_legal_bytes, min_size=1, max_size=12).map(_name)
    | st.sampled_from(["a", "b", "lost+found", "é", "n" * 255])
    | st.lists(_legal_bytes, min_size=250, max_size=255).map(_name)
)
_sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 65535, 65536, 65537, MIB, MIB + 1]) | st.integers(0, 3 * MIB)
_contents = st.builds(lambda size, seed: Inline(pattern(size, seed)), _sizes, st.integers(0, 5))
_targets = st.sampled_from(["a", "t" * 59, "t" * 60, "t" * 61, "t" * 4095, "../x", "é" * 30]) | st.text(
    st.characters(min_codepoint=0x21, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80
)
_xattrs = st.dictionaries(
    st.sampled_from(["user.", "trusted.", "security."]).flatmap(
        lambda prefix: st.text("abcxyz_é.", min_size=1, max_size=20).map(lambda rest: prefix + rest)
    ),
    st.binary(max_size=40) | st.sampled_from([b"v" * 60, b"v" * 500, b"v" * 900]),
    max_size=4,
)
_owners: st.SearchStrategy[int] = st.sampled_from([0, 1000, 65535, 65536, (1 << 32) - 2])
_attributes: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": _owners,
        "gid": _owners,
        "mtime": st.sampled_from(
            [0, 1, 1_700_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, (1 << 34) - (1 << 31) - 1]
        ),
        "xattrs": st.just({}) | _xattrs,
    }
)
_devices = st.builds(
    Device,
    kind=st.sampled_from("cb"),
    major=st.sampled_from([1, 8, 255, 256, 4095]),
    minor=st.sampled_from([0, 1, 255, 256, (1 << 20) - 1]),
)


@st.composite
def _node(draw: st.DrawFn, kind: str, files: list[str]) -> Node:
    """Return a node that can be put into a Tree with these files; a device where nothing else is possible."""
    attributes = draw(_attributes)
    if kind == "folder":
        return Directory(**attributes)
    if kind == "file":
        return File(content=draw(_contents), **attributes)
    if kind == "symlink":
        return Symlink(target=draw(_targets), **{**attributes, "xattrs": {}})
    if kind == "link" and files:
        return HardLink(target=draw(st.sampled_from(files)))
    if kind == "fifo":
        return Device(kind="p", **attributes)
    return replace(draw(_devices), **attributes)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Return a Tree of up to forty nodes, up to twelve levels deep."""
    tree = Tree()
    tree.add("", Directory(**draw(_attributes)))
    folders: list[str] = [""]
    files: list[str] = []
    for _ in range(draw(st.integers(0, 40))):
        above = draw(st.sampled_from(folders))
        path = f"{above}/{draw(names)}".lstrip("/")
        kind = draw(st.sampled_from(["folder", "folder", "file", "file", "file", "symlink", "link", "device", "fifo"]))
        if path in tree or (path == "lost+found" and kind != "folder"):
            continue
        node = draw(_node(kind, files))
        try:
            tree.add(path, node)
        except TreeError:
            continue
        if kind == "folder" and path.count("/") < 11:
            folders.append(path)
        elif isinstance(node, File):
            files.append(path)
    return tree


def pattern(size: int, seed: int) -> bytes:
    """Return content: zeros, bytes that compress, or with holes of zeros in it."""
    if not seed:
        return bytes(size)
    piece = random.Random(seed).randbytes(7000)
    piece += bytes(9000 if seed % 2 else 0)
    return (piece * (size // len(piece) + 1))[:size]


def write_filesystem(
    tree: Tree, path: Path, size: int = SIZE, *, identity: FilesystemIdentity = IDENTITY, journal: int = JOURNAL
) -> Space:
    """Write a filesystem to the new file ``path``, which is a raw disk with nothing else on it."""
    hashes = {
        name: hashlib.sha256(node.content.read()).digest() for name, node in tree.items() if isinstance(node, File)
    }
    spool = path.with_name(path.name + ".spool")
    try:
        with SparseDisk(size, spool) as disk:
            space = write_ext4(disk, Place(0, size), tree, groups(tree, hashes, {}), identity, journal=journal)
            write_image(disk, path, [Region("root filesystem", 0, size)], format="raw", threads=1)
    finally:
        spool.unlink(missing_ok=True)
    return space


def complaints(path: Path) -> str:
    """Return what e2fsck has to say against a filesystem; empty if there is nothing."""
    ran = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, errors="replace")
    return ran.stdout + ran.stderr if ran.returncode else ""


def described(tree: Tree) -> dict[str, object]:
    """Return everything about a Tree that a filesystem keeps, by path, for comparisons.

    Names of one file are alike: which of them is called the file, and which are links to it, is not kept. What is in
    lost+found is left out, as the reader does.
    """
    facts: dict[str, object] = {}
    names: dict[str, list[str]] = {}
    compared = [(path, node) for path, node in tree.items() if path.partition("/")[0] != "lost+found"]
    for path, node in compared:
        names.setdefault(node.target if isinstance(node, HardLink) else path, []).append(path)
    for path, node in compared:
        file = node.target if isinstance(node, HardLink) else path
        original = tree[file]
        extra: object = None
        if isinstance(original, File):
            extra = (original.content.size, hashlib.sha256(original.content.read()).hexdigest())
        elif isinstance(original, Symlink):
            extra = original.target
        elif isinstance(original, Device):
            extra = (original.kind, original.major, original.minor)
        facts[path] = (
            type(original).__name__,
            original.mode,
            original.uid,
            original.gid,
            original.mtime,
            dict(original.xattrs),
            extra,
            sorted(names[file]),
        )
    return facts
