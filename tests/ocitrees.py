"""Trees for the tests of container images: generated ones, one with everything in it, and readers of layers."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard
from hypothesis import strategies as st

from imgkit.oci import mediatypes
from imgkit.oci.compression import Compression
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.layerchanges import LayerChanges, changes
from imgkit.oci.layerwriter import ImageLayer, LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image
from imgkit.tree import (
    Device,
    Directory,
    File,
    HardLink,
    Inline,
    Node,
    Symlink,
    Tree,
    TreeError,
    tarstream,
    xattrs_of,
)
from imgkit.tree.tarstream import Header, TarStream

EPOCH = 1_700_000_000
AMD64 = Platform("linux", "amd64")
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep (capabilities(7))
PASSWD = "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n"


def lower_tree() -> Tree:
    """Return a Tree that has something of every kind."""
    tree = Tree()
    tree.write("etc/passwd", PASSWD, mtime=EPOCH)
    tree.mkdir("tmp", mode=0o1777)
    tree.mkdir("home/agent", mode=0o750, uid=1000, gid=1000, mtime=EPOCH)
    tree.write("bin/su", "su", mode=0o4755)
    xattrs = {"security.capability": CAPABILITY, "user.odd": b"\0\xff=\n"}
    tree.add("bin/ping", File(content=Inline(b"ping"), mode=0o755, uid=3, mtime=7, xattrs=xattrs))
    tree.add("bin/aping", HardLink(target="bin/ping"))
    tree.add("bin/zping", HardLink(target="bin/ping"))
    tree.symlink("lib", "usr/lib")
    tree.write("usr/lib/ü", "not ASCII")
    tree.symlink("usr/lib/" + "l" * 120, "/" + "t" * 180)
    tree.write("long/" + "/".join(["d" * 50] * 5) + "/f", "far down")
    tree.write("long/" + "n" * 200, "a long name")
    tree.add("dev", Directory())
    tree.add("dev/fifo", Device(kind="p"))
    tree.add("big", File(content=Inline(b"b"), uid=3_000_000, gid=3_000_001, mtime=EPOCH))
    tree.write("gone/a", "a")
    tree.write("gone/b/c", "c")
    tree.write("becomes-file/x", "x")
    tree.write("becomes-folder", "f")
    return tree


def upper_tree() -> Tree:
    """Return :func:`lower_tree` after changes of every kind."""
    tree = lower_tree()
    remove(tree, "gone")
    tree.remove("bin/su")
    remove(tree, "becomes-file")
    tree.write("becomes-file", "now a file")
    tree.remove("becomes-folder")
    tree.write("becomes-folder/y", "y")
    tree.remove("lib")
    tree.write("lib/z", "z")
    tree.write("tmp/new", "new")
    tree.add("bin/another", HardLink(target="bin/ping"))
    tree.change("home/agent", mode=0o700)
    return tree


def remove(tree: Tree, top: str) -> None:
    """Remove a path with everything below it."""
    for path in reversed([path for path, _ in tree.walk(top)]):
        tree.remove(path)


# ---- generated -------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["a", "b", "c", "ä", "n" * 101, "\udcff", "p" * 160])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_NUMBERS = st.sampled_from([0, 1, 1000, 0o7777777, 0o7777777 + 1, (1 << 32) - 1])
_TIMES = st.sampled_from([0, 1, EPOCH, 0o77777777777, 0o77777777777 + 1])
_XATTRS = st.dictionaries(st.sampled_from(["user.a", "user.ü", "security.x"]), st.binary(max_size=12), max_size=2)
_ATTRIBUTES = st.fixed_dictionaries(
    {"mode": st.integers(0, 0o7777), "uid": _NUMBERS, "gid": _NUMBERS, "mtime": _TIMES, "xattrs": _XATTRS}
)
_CONTENTS = st.one_of(st.binary(max_size=3), st.sampled_from([bytes(512), b"x" * 513])).map(Inline)
_NODES: st.SearchStrategy[Node] = st.one_of(
    st.builds(lambda facts: Directory(**facts), _ATTRIBUTES),
    st.builds(lambda facts, content: File(content=content, **facts), _ATTRIBUTES, _CONTENTS),
    st.builds(lambda facts, to: Symlink(target=to, **{**facts, "mode": 0o777}), _ATTRIBUTES, _PATHS),
    st.builds(lambda to: HardLink(target=to), _PATHS),
    st.builds(lambda facts, kind: Device(kind=kind, major=8, minor=3, **facts), _ATTRIBUTES, st.sampled_from("bc")),
)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "remove"]), _PATHS, _NODES), max_size=20)


def play(tree: Tree, steps: Iterable[tuple[str, str, Node]]) -> Tree:
    """Return ``tree`` after steps; those that are not possible are left out."""
    for verb, path, node in steps:
        try:
            if verb == "remove":
                remove(tree, path)
            else:
                above = path.rpartition("/")[0]
                tree.mkdir(above)
                tree.add(path, node)
        except (TreeError, KeyError):
            pass
    return tree


# ---- what a Tree looks like from outside -----------------------------------------------------------------------------


@dataclass
class Inode:
    """A node of a file system, which may have several names."""

    node: Node


def facts(node: Node) -> Node:
    """Return a node without the place of its content."""
    return replace(node, content=Inline(node.content.read())) if isinstance(node, File) else node


def looks(inodes: dict[str, Inode]) -> dict[str, tuple[Node, frozenset[str]]]:
    """Return what can be seen of a file system: each path with its node and the other names of the same file."""
    names: dict[int, set[str]] = {}
    for path, inode in inodes.items():
        names.setdefault(id(inode), set()).add(path)
    return {path: (facts(inode.node), frozenset(names[id(inode)] - {path})) for path, inode in inodes.items()}


def view(tree: Tree) -> dict[str, tuple[Node, frozenset[str]]]:
    """Return what can be seen of a Tree. The time of the root does not count."""
    inodes = {path: Inode(node) for path, node in tree.items() if not isinstance(node, HardLink)}
    inodes |= {path: inodes[node.target] for path, node in tree.items() if isinstance(node, HardLink)}
    inodes[""] = Inode(replace(tree[""], mtime=0))
    return looks(inodes)


# ---- archives and images ---------------------------------------------------------------------------------------------


def read_archive(data: bytes) -> list[tuple[str, Node]]:
    """Return the entries of a tar archive as imgkit's own reader finds them."""
    stream = TarStream(iter([data]))
    return [(_path(header.name), _node(header, stream)) for header in stream]


def _path(name: str) -> str:
    return name.removeprefix("./").removesuffix("/")


def _node(header: Header, stream: TarStream) -> Node:
    attributes = {"mode": header.mode, "uid": header.uid, "gid": header.gid, "mtime": header.mtime}
    given = {**attributes, "xattrs": dict(xattrs_of(header.pax))}
    if header.kind == tarstream.DIRECTORY:
        return Directory(**given)  # type: ignore[arg-type]
    if header.kind == tarstream.SYMLINK:
        return Symlink(target=header.link, **given)  # type: ignore[arg-type]
    if header.kind == tarstream.HARD_LINK:
        return HardLink(target=_path(header.link), **given)  # type: ignore[arg-type]
    if header.kind == tarstream.REGULAR:
        return File(content=Inline(stream.read(1 << 30)), **given)  # type: ignore[arg-type]
    kind = {tarstream.CHARACTER: "c", tarstream.BLOCK_DEVICE: "b", tarstream.FIFO: "p"}[header.kind]
    return Device(kind=kind, major=header.major, minor=header.minor, **given)  # type: ignore[arg-type]


def inflate(path: Path, media_type: str) -> bytes:
    """Return the archive in the blob of a layer."""
    data = path.read_bytes()
    if media_type == mediatypes.LAYER_GZIP:
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def write_layers(writer: LayerWriter, *trees: Tree) -> list[ImageLayer]:
    """Write a layer for each Tree, with what has changed since the one before it."""
    befores = (None, *trees[:-1])
    steps: list[LayerChanges] = [changes(before, after) for before, after in zip(befores, trees, strict=True)]
    return [writer.write(step, reason=f"layer {number}", created=EPOCH) for number, step in enumerate(steps, 1)]


def small_image(layout: OciLayout, platform: Platform = AMD64, compression: Compression | None = None) -> Descriptor:
    """Write an image of two layers into a layout, without an index."""
    layers = write_layers(LayerWriter(layout, compression), lower_tree(), upper_tree())
    return write_image(layout, layers, ImageFacts(platform=platform, created=EPOCH, command=("/bin/sh",)))
