"""Tar archives that imgkit or its appliance wrote, as Trees."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

from imgkit.errors import InputError
from imgkit.tree import (
    Content,
    Device,
    Directory,
    File,
    HardLink,
    Inline,
    Node,
    Slice,
    Symlink,
    Tree,
    TreeError,
    xattrs_of,
)

_KINDS = {tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b", tarfile.FIFOTYPE: "p"}


def tree_from_tar(path: Path) -> Tree:
    """The Tree that an uncompressed tar archive holds; contents are slices of the archive, which must stay.

    Raises:
        InputError: it names a path that no root filesystem of imgkit's has, with a control character for instance.
    """
    try:
        return _tree(path)
    except TreeError as cause:
        raise InputError(f"not a root filesystem that imgkit made: {cause}") from cause


def _tree(path: Path) -> Tree:
    tree = Tree()
    links: list[tuple[str, tarfile.TarInfo]] = []
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = info.name.removeprefix("./").strip("/")
            name = "" if name == "." else name
            if info.islnk():
                links.append((name, info))
            else:
                _add(tree, name, _node(info, path))
    for name, info in links:
        target = info.linkname.removeprefix("./").strip("/")
        _add(tree, name, HardLink(target=target, mode=info.mode, uid=info.uid, gid=info.gid, mtime=int(info.mtime)))
    return tree


def _add(tree: Tree, name: str, node: Node) -> None:
    above = name.rpartition("/")[0]
    if above:
        tree.mkdir(above)
    tree.add(name, node)


def _node(info: tarfile.TarInfo, path: Path) -> Node:
    if info.isdir():
        node: Node = Directory()
    elif info.issym():
        node = Symlink(target=info.linkname)
    elif info.type in _KINDS:
        node = Device(kind=_KINDS[info.type], major=info.devmajor, minor=info.devminor)
    else:
        content: Content = Slice(path, info.offset_data, info.size) if info.size else Inline(b"")
        node = File(content=content)
    xattrs = xattrs_of(info.pax_headers)
    return replace(node, mode=info.mode, uid=info.uid, gid=info.gid, mtime=int(info.mtime), xattrs=xattrs)
