"""Inodes: the attributes of a node of the Tree, and where its blocks are ("Index Nodes")."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Times:
    """A time for all four times of an inode: seconds since 1970 and nanoseconds.

    Years that ext4 cannot tell become the first or the last that it can, as in the kernel.
    """

    seconds: int
    nanoseconds: int = 0

    @property
    def low(self) -> int:
        """The lower 32 bits of the seconds."""
        return self._clamped & 0xFFFFFFFF

    @property
    def extra(self) -> int:
        """The two bits that follow, and the nanoseconds ("Inode Timestamps")."""
        signed = self.low - (1 << 32 if self.low >> 31 else 0)
        return (self._clamped - signed) >> 32 & 3 | self.nanoseconds << 2

    @property
    def _clamped(self) -> int:
        return min(max(self.seconds, _EARLIEST), _LATEST)


@dataclass(frozen=True, kw_only=True)
class InodeFacts:
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
    data = bytearray(
        INODE.pack(
            i_mode=facts.mode,
            i_uid=facts.uid & 0xFFFF,
            i_size_lo=facts.size & 0xFFFFFFFF,
            i_atime=low,
            i_ctime=low,
            i_mtime=low,
            i_gid=facts.gid & 0xFFFF,
            i_links_count=facts.links,
            i_blocks_lo=sectors & 0xFFFFFFFF,
            i_flags=facts.flags,
            i_block=facts.block,
            i_file_acl_lo=facts.xattr_block & 0xFFFFFFFF,
            i_size_high=facts.size >> 32,
            i_blocks_high=sectors >> 32,
            i_file_acl_high=facts.xattr_block >> 32,
            i_uid_high=facts.uid >> 16,
            i_gid_high=facts.gid >> 16,
            i_extra_isize=EXTRA_ISIZE,
            i_ctime_extra=extra,
            i_mtime_extra=extra,
            i_atime_extra=extra,
            i_crtime=low,
            i_crtime_extra=extra,
            i_xattrs=facts.xattrs.inode,
        )
    )
    value = checksum(inode_seed(seed, number), bytes(data))
    data[0x7C:0x7E] = (value & 0xFFFF).to_bytes(2, "little")
    data[0x82:0x84] = (value >> 16).to_bytes(2, "little")
    return bytes(data)


def device_block(device: Device) -> bytes:
    """Return ``i_block`` of a device: its number in the older form where that can say it, else in the newer one."""
    if device.kind == "p":
        return b""
    if device.major < 256 and device.minor < 256:
        return (device.major << 8 | device.minor).to_bytes(4, "little")
    number = device.minor & 0xFF | device.major << 8 | (device.minor & ~0xFF) << 12
    return bytes(4) + number.to_bytes(4, "little")
