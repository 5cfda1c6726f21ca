"""Independent readers of archives, for comparison with imgkit's own."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from imgkit.tree import Content, Device, Directory, File, HardLink, Inline, Node, Slice, Symlink, Tree, xattrs_of

_KINDS = {tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b", tarfile.FIFOTYPE: "p"}


@dataclass(frozen=True)
class CpioMember:
    """One member of an archive as :func:`read_newc` finds it; ``numbers`` are the header's thirteen fields."""

    name: str
    numbers: tuple[int, ...]
    data: bytes

    @property
    def mode(self) -> int:
        return self.numbers[1]


def read_newc(data: bytes) -> list[CpioMember]:
    """Read every member of a newc archive up to the trailer. This reader was written from cpio(5)."""
    members: list[CpioMember] = []
    place = 0
    while True:
        assert data[place : place + 6] == b"070701", f"no header at {place}"
        numbers = tuple(int(data[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13))
        name_at, name_size, size = place + 110, numbers[11], numbers[6]
        assert data[name_at + name_size - 1] == 0
        name = data[name_at : name_at + name_size - 1].decode(errors="surrogateescape")
        start = (name_at + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not data[start:].strip(b"\0"), "something follows the trailer"
            return members
        assert len(data) >= start + size, f"{name} is cut off"
        members.append(CpioMember(name, numbers, data[start : start + size]))
        place = (start + size + 3) // 4 * 4


def tree_from_tar(path: Path) -> Tree:
    """Return the Tree in an uncompressed tar archive. Contents are slices of the archive, which must not be removed."""
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
    mtime, nanoseconds = divmod(int(Decimal(info.pax_headers.get("mtime", info.mtime)).scaleb(9)), 10**9)
    return replace(
        node, mode=info.mode, uid=info.uid, gid=info.gid, mtime=mtime, nanoseconds=nanoseconds, xattrs=xattrs
    )
