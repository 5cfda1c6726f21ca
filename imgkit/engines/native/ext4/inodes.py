"""Inodes: the attributes of a node of the Tree, and where its blocks are ("Index Nodes")."""

from __future__ import annotations

from typing import NamedTuple

from imgkit.engines.native.ext4.checksum import checksum, inode_seed
from imgkit.engines.native.ext4.records import BLOCK, EXTRA_ISIZE, INODE
from imgkit.engines.native.ext4.xattrs import NONE, StoredXattrs
from imgkit.tree import Device, Directory, File, HardLink, Node, Symlink

FAST_SYMLINK = 60
"""A target of fewer bytes is kept in the inode."""
DIRECTORY, REGULAR = 0o040000, 0o100000
_TYPES = {Directory: DIRECTORY, File: REGULAR, Symlink: 0o120000}
_DEVICES = {"c": 0o020000, "b": 0o060000, "p": 0o010000}
_ENTRY_KINDS = {REGULAR: 1, DIRECTORY: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o120000: 7}
_INODE = INODE.fields(
    *("i_mode", "i_uid", "i_size_lo", "i_atime", "i_ctime", "i_mtime", "i_gid", "i_links_count", "i_blocks_lo"),
    *("i_flags", "i_block", "i_file_acl_lo", "i_size_high", "i_blocks_high", "i_file_acl_high", "i_uid_high"),
    *("i_gid_high", "i_checksum_lo", "i_extra_isize", "i_checksum_hi"),
    *("i_ctime_extra", "i_mtime_extra", "i_atime_extra", "i_crtime", "i_crtime_extra", "i_xattrs"),
)
_EARLIEST, _LATEST = -(1 << 31), (1 << 34) - (1 << 31) - 1  # seconds since 1970: 1901 to 2446


def file_type(node: Node) -> int:
    """Return the type of a node, as in the upper bits of ``i_mode``.

    Raises:
        TypeError: it is a hard link, which has no inode of its own.
    """
    if isinstance(node, HardLink):
        raise TypeError("a hard link")
    return _DEVICES[node.kind] if isinstance(node, Device) else _TYPES[type(node)]


def entry_kind(node: Node) -> int:
    """Return the type of a node, as in entries of directories."""
    return _ENTRY_KINDS[file_type(node)]


class Times(NamedTuple):
    """A time for all four times of an inode: seconds since 1970 and nanoseconds.

    Years that ext4 cannot tell become the first or the last that it can, as in the kernel.
    """

    seconds: int
    nanoseconds: int = 0

    @property
    def low(self) -> int:
        """The lower 32 bits of the seconds."""
        return _clamped(self.seconds) & 0xFFFFFFFF

    @property
    def extra(self) -> int:
        """The two bits that follow, and the nanoseconds ("Inode Timestamps")."""
        return (_clamped(self.seconds) + (1 << 31)) >> 32 & 3 | self.nanoseconds << 2


def _clamped(seconds: int) -> int:
    return min(max(seconds, _EARLIEST), _LATEST)


class InodeFacts(NamedTuple):
    """What an inode says.

    Attributes:
        mode: type and permissions.
        size: in bytes.
        blocks: of 4 KiB, those of extents and attributes included.
        flags: EXTENTS_FLAG and others.
        block: the 60 bytes of ``i_block``.
        xattrs: attributes; ``xattr_block`` is the number of the block that has the part for it.
    """

    mode: int
    times: Times
    uid: int = 0
    gid: int = 0
    links: int = 1
    size: int = 0
    blocks: int = 0
    flags: int = 0
    block: bytes = b""
    xattrs: StoredXattrs = NONE
    xattr_block: int = 0


def pack_inode(number: int, facts: InodeFacts, seed: int) -> bytes:
    """Return the 256 bytes of an inode, with its checksum.

    Args:
        seed: of the filesystem's checksums.
    """
    low, extra = facts.times.low, facts.times.extra
    sectors = facts.blocks * (BLOCK // 512)
    fields = (
        *(facts.mode, facts.uid & 0xFFFF, facts.size & 0xFFFFFFFF, low, low, low, facts.gid & 0xFFFF, facts.links),
        *(sectors & 0xFFFFFFFF, facts.flags, facts.block, facts.xattr_block & 0xFFFFFFFF, facts.size >> 32),
        *(sectors >> 32, facts.xattr_block >> 32, facts.uid >> 16, facts.gid >> 16),
    )
    last = (extra, extra, extra, low, extra, facts.xattrs.inode)
    value = checksum(inode_seed(seed, number), _INODE.pack(*fields, 0, EXTRA_ISIZE, 0, *last))
    return _INODE.pack(*fields, value & 0xFFFF, EXTRA_ISIZE, value >> 16, *last)


def device_block(device: Device) -> bytes:
    """Return ``i_block`` of a device: its number in the older form where that can say it, else in the newer one."""
    if device.kind == "p":
        return b""
    if device.major < 256 and device.minor < 256:
        return (device.major << 8 | device.minor).to_bytes(4, "little")
    number = device.minor & 0xFF | device.major << 8 | (device.minor & ~0xFF) << 12
    return bytes(4) + number.to_bytes(4, "little")
