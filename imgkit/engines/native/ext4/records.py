"""The structures of ext4 as records: names, types and places of their fields.

The names are those of the kernel's documentation. A record packs the fields that it is given and zeros for the others::

    INODE.pack(i_mode=0o100644, i_links_count=1)     # → 256 bytes
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

from imgkit.disk import size

BLOCK: Final = size.BLOCK
"""Bytes of a block, the only size that is written."""
INODE_SIZE: Final = size.INODE_SIZE
EXTRA_ISIZE: Final = 32
"""Bytes of the fields of an inode beyond the first 128."""
BLOCKS_PER_GROUP: Final = 8 * BLOCK
"""One block bitmap has a bit for each."""
DESCRIPTOR_SIZE: Final = 64
GROUPS_PER_FLEX: Final = 16
MAGIC: Final = 0xEF53

# Inodes that have a purpose of their own ("Special inodes").
ROOT, RESIZE, JOURNAL, LOST_FOUND = 2, 7, 8, 11
FIRST_INODE: Final = 11
"""The first inode that is not reserved; mke2fs gives it to lost+found."""

# Features: those of the guestfs engine (imgkit.engines.guestfs.scripts has the reason for those that are left out).
COMPATIBLE: Final = 0x4 | 0x8 | 0x10 | 0x20
"""has_journal, ext_attr, resize_inode, dir_index."""
INCOMPATIBLE: Final = 0x2 | 0x40 | 0x80 | 0x200
"""filetype, extent, 64bit, flex_bg."""
READ_ONLY_COMPATIBLE: Final = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400
"""sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum."""

EXTENTS_FLAG, INDEX_FLAG = 0x80000, 0x1000
"""Flags of an inode: its blocks are found by extents; its directory has an index of hashes."""
MOST_LINKS: Final = 65000
"""Links that an inode may have (EXT4_LINK_MAX). A directory with more subdirectories counts 1."""


class GroupFlag(IntFlag):
    """Flags of a block group ("Block Group Descriptors")."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2
    INODE_ZEROED = 0x4


class Record:
    """A structure of fixed length whose fields follow each other.

    Args:
        fields: the name and the type of each field, separated by spaces; types as in :mod:`struct`.
        order: the order of the bytes, ``<`` or ``>``.
    """

    def __init__(self, fields: str, order: str = "<") -> None:
        pairs = self._pairs = [line.split() for line in fields.strip().splitlines()]
        self._order = order
        self._struct = struct.Struct(order + "".join(kind for _, kind in pairs))
        self._blank = {name: b"" if kind.endswith("s") else 0 for name, kind in pairs if not kind.endswith("x")}

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._struct.size

    def pack(self, **values: int | bytes) -> bytes:
        """Return the bytes of the record; fields that are not given are zeros.

        Raises:
            KeyError: there is no field of a name.
            struct.error: a value does not fit into its field.
        """
        if unknown := values.keys() - self._blank.keys():
            raise KeyError(*unknown)
        return self._struct.pack(*(self._blank | values).values())

    def fields(self, *names: str) -> struct.Struct:
        """Return what packs these fields, which are in the record's order, and zeros for the others.

        It is several times as quick as :meth:`pack`, for records of which there are many.

        Raises:
            KeyError: there is no field of a name, or the fields are in another order.
        """
        kinds, wanted = [self._order], list(names)
        for name, kind in self._pairs:
            is_wanted = wanted[:1] == [name]
            kinds.append(kind if is_wanted else f"{struct.calcsize(self._order + kind)}x")
            del wanted[:is_wanted]
        if wanted:
            raise KeyError(*wanted)
        return struct.Struct("".join(kinds))

    def unpack(self, data: bytes) -> dict[str, int | bytes]:
        """Return the fields of the record at the start of ``data``."""
        return dict(zip(self._blank, self._struct.unpack_from(data), strict=True))


SUPERBLOCK = Record("""
    s_inodes_count I
    s_blocks_count_lo I
    s_r_blocks_count_lo I
    s_free_blocks_count_lo I
    s_free_inodes_count I
    s_first_data_block I
    s_log_block_size I
    s_log_cluster_size I
    s_blocks_per_group I
    s_clusters_per_group I
    s_inodes_per_group I
    s_mtime I
    s_wtime I
    s_mnt_count H
    s_max_mnt_count H
    s_magic H
    s_state H
    s_errors H
    s_minor_rev_level H
    s_lastcheck I
    s_checkinterval I
    s_creator_os I
    s_rev_level I
    s_def_resuid H
    s_def_resgid H
    s_first_ino I
    s_inode_size H
    s_block_group_nr H
    s_feature_compat I
    s_feature_incompat I
    s_feature_ro_compat I
    s_uuid 16s
    s_volume_name 16s
    s_last_mounted 64s
    s_algorithm_usage_bitmap I
    s_prealloc_blocks B
    s_prealloc_dir_blocks B
    s_reserved_gdt_blocks H
    s_journal_uuid 16s
    s_journal_inum I
    s_journal_dev I
    s_last_orphan I
    s_hash_seed 16s
    s_def_hash_version B
    s_jnl_backup_type B
    s_desc_size H
    s_default_mount_opts I
    s_first_meta_bg I
    s_mkfs_time I
    s_jnl_blocks 68s
    s_blocks_count_hi I
    s_r_blocks_count_hi I
    s_free_blocks_count_hi I
    s_min_extra_isize H
    s_want_extra_isize H
    s_flags I
    s_raid_stride H
    s_mmp_interval H
    s_mmp_block Q
    s_raid_stripe_width I
    s_log_groups_per_flex B
    s_checksum_type B
    s_encryption_level B
    s_reserved_pad B
    s_kbytes_written Q
    _snapshots_errors_options 200x
    s_overhead_blocks I
    _rest 432x
    s_checksum I
""")
"""The superblock, 1024 bytes ("Super Block")."""

GROUP_DESCRIPTOR = Record("""
    bg_block_bitmap_lo I
    bg_inode_bitmap_lo I
    bg_inode_table_lo I
    bg_free_blocks_count_lo H
    bg_free_inodes_count_lo H
    bg_used_dirs_count_lo H
    bg_flags H
    bg_exclude_bitmap_lo I
    bg_block_bitmap_csum_lo H
    bg_inode_bitmap_csum_lo H
    bg_itable_unused_lo H
    bg_checksum H
    bg_block_bitmap_hi I
    bg_inode_bitmap_hi I
    bg_inode_table_hi I
    bg_free_blocks_count_hi H
    bg_free_inodes_count_hi H
    bg_used_dirs_count_hi H
    bg_itable_unused_hi H
    bg_exclude_bitmap_hi I
    bg_block_bitmap_csum_hi H
    bg_inode_bitmap_csum_hi H
    bg_reserved I
""")
"""The descriptor of a block group with the feature 64bit ("Block Group Descriptors")."""

INODE = Record("""
    i_mode H
    i_uid H
    i_size_lo I
    i_atime I
    i_ctime I
    i_mtime I
    i_dtime I
    i_gid H
    i_links_count H
    i_blocks_lo I
    i_flags I
    i_version I
    i_block 60s
    i_generation I
    i_file_acl_lo I
    i_size_high I
    i_obso_faddr I
    i_blocks_high H
    i_file_acl_high H
    i_uid_high H
    i_gid_high H
    i_checksum_lo H
    i_reserved H
    i_extra_isize H
    i_checksum_hi H
    i_ctime_extra I
    i_mtime_extra I
    i_atime_extra I
    i_crtime I
    i_crtime_extra I
    i_version_hi I
    i_projid I
    i_xattrs 96s
""")
"""An inode of 256 bytes; ``i_xattrs`` is the room for extended attributes ("Index Nodes")."""

EXTENT_HEADER = struct.Struct("<HHHHI")
"""Magic number, entries, most entries, depth, generation ("Extent Tree")."""
EXTENT = struct.Struct("<IHHI")
"""First logical block, blocks, start (high 16 bits, low 32 bits)."""
EXTENT_INDEX = struct.Struct("<IIHH")
"""First logical block, block of the node below (low 32 bits, high 16 bits), unused."""

DIRECTORY_ENTRY = struct.Struct("<IHBB")
"""Inode, length of the entry, length of the name, type of the file; the name follows ("Directory Entries")."""
INDEX_ENTRY = struct.Struct("<II")
"""Hash, block ("Hash Tree Directories"). The first of a block has its limit and count instead of the hash."""

XATTR_HEADER = struct.Struct("<IIIII12x")
"""Magic number, references, blocks, hash, checksum of an attribute block ("Extended Attributes")."""
XATTR_ENTRY = struct.Struct("<BBHIII")
"""Length of the name, prefix, place of the value, inode of the value, length of the value, hash; the name follows."""

JOURNAL_SUPERBLOCK = Record(
    """
    h_magic I
    h_blocktype I
    h_sequence I
    s_blocksize I
    s_maxlen I
    s_first I
    s_sequence I
    s_start I
    s_errno I
    s_feature_compat I
    s_feature_incompat I
    s_feature_ro_compat I
    s_uuid 16s
    s_nr_users I
    _rest 956x
""",
    order=">",
)
"""The superblock of the journal, 1024 bytes, big-endian ("Journal (jbd2)")."""
