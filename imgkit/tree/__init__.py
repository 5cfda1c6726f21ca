"""The whole root filesystem as values: path → node::

    tree = Tree()
    tree.write("etc/hostname", "sandbox\\n")
    tree.symlink("etc/name", "hostname")
    tree.text("etc/name")                               # → "sandbox\\n"

Paths are relative to the root and use ``/`` (``etc/passwd``); the root itself is the empty string. File contents are
references (:class:`Inline` bytes or a :class:`Slice` of a file on the host), so a Tree of hundreds of megabytes takes
a few megabytes of memory. Owners and modes are data: they never depend on what the host allows a process to do.

Links are resolved inside the Tree only, as in a ``chroot``: an absolute target starts at the root of the Tree, and
``..`` cannot lead above it. No path of the image is ever opened on the host.
"""

from imgkit.tree.lazycopy import LazyCopy
from imgkit.tree.nodes import (
    Content,
    Device,
    Directory,
    File,
    HardLink,
    HashedSlice,
    Inline,
    Node,
    Slice,
    Symlink,
    kind,
    sha256_of,
)
from imgkit.tree.paths import MAX_NAME, MAX_PATH, TreeError, by_parts, check_path, leads_out, parent
from imgkit.tree.tar import xattrs_of
from imgkit.tree.tree import MAX_LINKS, MAX_READ, MAX_TEXT, Tree

__all__ = [
    "MAX_LINKS",
    "MAX_NAME",
    "MAX_PATH",
    "MAX_READ",
    "MAX_TEXT",
    "Content",
    "Device",
    "Directory",
    "File",
    "HardLink",
    "HashedSlice",
    "Inline",
    "LazyCopy",
    "Node",
    "Slice",
    "Symlink",
    "Tree",
    "TreeError",
    "by_parts",
    "check_path",
    "kind",
    "leads_out",
    "parent",
    "sha256_of",
    "xattrs_of",
]
