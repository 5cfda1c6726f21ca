"""Compute how much space a Tree takes on ext4, and check that it fits on a disk."""

from __future__ import annotations

from imgkit.errors import RecipeError
from imgkit.tree import Directory, File, HardLink, Symlink, Tree

BLOCK = 4096
INODE_SIZE = 256
BYTES_PER_INODE = 16384
_GROUP = 32768 * BLOCK  # one block bitmap covers 32,768 blocks
_RESERVED_INODES = 11
_GROWTH_TABLES = 6 << 20  # reserved for the descriptors of a filesystem that is grown to 1 TiB, with their copies


def show_size(size: int) -> str:
    """Return ``size`` bytes in words: whole MiB, rounded up, or bytes below 1 MiB."""
    return f"{-(-size // (1 << 20))} MiB" if size >= 1 << 20 else f"{size} bytes"


def show_file_size(size: int) -> str:
    """Return the size of a file in words: whole MB (of 1,000,000 bytes, as in listings of files), or bytes below 1 MB.

    Disks, filesystems and memory are counted in MiB: see :func:`show_size`.
    """
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size} bytes"


def journal_mib(root_bytes: int) -> int:
    """Return the size of the ext4 journal in MiB for a filesystem of this size."""
    for limit, journal in ((256 << 20, 4), (1 << 30, 16), (2 << 30, 32)):
        if root_bytes < limit:
            return journal
    return 64


def tree_blocks(tree: Tree) -> int:
    """Return the blocks of 4 KiB that a Tree takes on ext4, without the metadata of the filesystem itself."""
    blocks = 16  # for lost+found and the like
    for path, node in tree.items():
        if isinstance(node, File):
            data = -(-node.content.size // BLOCK)
            blocks += data + (data > 4 * 32768)  # an extent leaf where four extents in the inode do not reach
        elif isinstance(node, Directory):
            entries = sum(len(child) - len(path) + 12 for child in tree.children(path))
            blocks += 1 + entries * 3 // 2 // BLOCK  # hashed directories are two thirds full
        elif isinstance(node, Symlink) and len(node.target.encode(errors="surrogateescape")) >= 60:
            blocks += 1
        if node.xattrs and sum(map(len, node.xattrs.values())) > 64:
            blocks += 1
    return blocks


def tree_inodes(tree: Tree) -> int:
    """Return the inodes that a Tree takes."""
    return _RESERVED_INODES + sum(1 for _, node in tree.items() if not isinstance(node, HardLink))


def root_capacity(root_bytes: int) -> tuple[int, int]:
    """Return the blocks and inodes that a new ext4 of this size has for files, slightly underestimated."""
    groups = -(-root_bytes // _GROUP)
    inodes = root_bytes // BYTES_PER_INODE
    overhead = inodes * INODE_SIZE + groups * 4 * BLOCK + (journal_mib(root_bytes) << 20) + _GROWTH_TABLES
    return max(0, (root_bytes - overhead) // BLOCK), inodes


def needed_root_bytes(tree: Tree) -> int:
    """Return the size in bytes of the smallest root partition for a Tree, a multiple of 1 MiB."""
    blocks, inodes = tree_blocks(tree), tree_inodes(tree)
    size = 0
    while True:
        size += 1 << 20
        free, nodes = root_capacity(size)
        if free >= blocks and nodes >= inodes:
            return size
        short = max((blocks - free) * BLOCK, (inodes - nodes) * BYTES_PER_INODE)
        size += short // 2 >> 20 << 20  # never beyond the smallest size: a MiB has room for less than a MiB


def check_fits(tree: Tree, root_bytes: int, disk_bytes: int) -> None:
    """Refuse an image that is too small for its content, before anything is written.

    Args:
        tree: the content.
        root_bytes: size of the root partition.
        disk_bytes: size of the whole disk.

    Raises:
        RecipeError: the image is too small; the message has the size that it needs.
    """
    needed = needed_root_bytes(tree)
    if needed > root_bytes:
        raise too_small(disk_bytes, disk_bytes - root_bytes + needed)


def too_small(disk_bytes: int, needed: int) -> RecipeError:
    """Return the error for an image of ``disk_bytes`` bytes that is too small. ``needed`` bytes would suffice."""
    return RecipeError(
        f"image of {show_size(disk_bytes)} is too small for its content, which needs {show_size(needed)}",
        hint=f"set size to {-(-needed // (1 << 20)) + 64}M or more",
    )
