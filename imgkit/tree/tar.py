"""Nodes as entries of a POSIX pax archive; extended attributes are ``SCHILY.xattr.*`` records (GNU tar)."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from types import MappingProxyType

from imgkit.tree.nodes import NO_XATTRS, Directory, File, HardLink, Node, Symlink

_XATTR = "SCHILY.xattr."
_DEVICE_TYPES = {"c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "p": tarfile.FIFOTYPE}


def xattrs_of(pax: Mapping[str, str]) -> Mapping[str, bytes]:
    """Return the extended attributes of an entry, from its pax records."""
    xattrs = {
        key[len(_XATTR) :]: value.encode(errors="surrogateescape")
        for key, value in pax.items()
        if key.startswith(_XATTR)
    }
    return MappingProxyType(xattrs) if xattrs else NO_XATTRS


def member(path: str, node: Node) -> tarfile.TarInfo:
    """Return the header of the entry for ``node``, with numeric owners only."""
    info = tarfile.TarInfo("./" + path)
    info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime
    info.pax_headers = {
        f"{_XATTR}{name}": value.decode(errors="surrogateescape") for name, value in sorted(node.xattrs.items())
    }
    if isinstance(node, Directory):
        info.type = tarfile.DIRTYPE
    elif isinstance(node, File):
        info.size = node.content.size
    elif isinstance(node, Symlink):
        info.type, info.linkname = tarfile.SYMTYPE, node.target
    elif isinstance(node, HardLink):
        info.type, info.linkname = tarfile.LNKTYPE, "./" + node.target
    else:
        info.type, info.devmajor, info.devminor = _DEVICE_TYPES[node.kind], node.major, node.minor
    return info
