"""The superblock, its copies, and the descriptors of the groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from imgkit.engines.native.ext4 import dirhash, records
from imgkit.engines.native.ext4.allocation import Run, bitmaps
from imgkit.engines.native.ext4.checksum import checksum, superblock_checksum
from imgkit.engines.native.ext4.geometry import Geometry
from imgkit.engines.native.ext4.records import BLOCK, GROUP_DESCRIPTOR, SUPERBLOCK, GroupFlag

_CLEAN, _CONTINUE = 1, 1  # the state; what the kernel does about errors
_NEVER = 0xFFFF  # mounts after which the filesystem is to be checked
_XATTRS_AND_ACLS = 0x4 | 0x8  # default options of mounting
_CRC32C = 1
_JOURNAL_BLOCKS = 1  # s_jnl_blocks has the blocks of the journal's inode


@dataclass(frozen=True)
class FilesystemIdentity:
    """What tells a filesystem from others.

    Attributes:
        hash_seed: decides where names are in directories with an index.
        time: when it was made, in seconds since 1970.
    """

    uuid: UUID
    label: str
    hash_seed: UUID
    time: int


@dataclass(frozen=True)
class Usage:
    """What is in use.

    Attributes:
        runs: all blocks in use, as :func:`~imgkit.engines.native.ext4.allocation.joined` returns them.
        overhead: blocks in use for the filesystem itself, the journal included.
        inodes: the highest inode in use; those below it are in use or reserved.
        directories: how many inodes of each group are directories.
        journal: ``i_block`` of the journal's inode, and the journal's size in bytes.
    """

    runs: Sequence[Run]
    overhead: int
    inodes: int
    directories: Sequence[int]
    journal: tuple[bytes, int]


def group_metadata(
    geometry: Geometry, usage: Usage, identity: FilesystemIdentity, seed: int
) -> Iterator[tuple[int, bytes]]:
    """Yield the superblock, the descriptors, their copies and the bitmaps: number of the block and bytes."""
    descriptors, free = [], 0
    for number, bitmap, unused in bitmaps(usage.runs, geometry.blocks):
        descriptor, blocks = _group(geometry, usage, number, bitmap, unused, seed)
        yield from blocks
        descriptors.append(descriptor)
        free += unused
    table = b"".join(descriptors)
    fields = _fields(geometry, usage, identity, free)
    for number in (0, *geometry.backups):
        packed = SUPERBLOCK.pack(**fields, s_block_group_nr=number)
        packed = packed[:-4] + superblock_checksum(packed).to_bytes(4, "little")
        start = number * records.BLOCKS_PER_GROUP
        yield start, packed.rjust(2048 if not number else 1024, b"\0")
        yield start + 1, table


def _group(
    geometry: Geometry, usage: Usage, number: int, bitmap: bytes, unused: int, seed: int
) -> tuple[bytes, Iterable[tuple[int, bytes]]]:
    """Return the descriptor of a group, and its bitmaps unless they follow from the descriptor."""
    group, per_group = geometry.group(number), geometry.inodes_per_group
    used = min(max(usage.inodes - number * per_group, 0), per_group)
    flags, blocks = GroupFlag.INODE_ZEROED, []
    bitmap_sum = inodes_sum = 0
    if unused == group.blocks - geometry.copy_in(number) and number < geometry.group_count - 1:
        flags |= GroupFlag.BLOCK_UNINIT
    else:
        bitmap_sum = checksum(seed, bitmap)
        blocks.append((group.block_bitmap, bitmap))
    if used:
        inodes = ((1 << used) - 1 | -1 << per_group & (1 << 8 * BLOCK) - 1).to_bytes(BLOCK, "little")
        inodes_sum = checksum(seed, inodes[: per_group // 8])
        blocks.append((group.inode_bitmap, inodes))
    else:
        flags |= GroupFlag.INODE_UNINIT
    descriptor = GROUP_DESCRIPTOR.pack(
        **_halves("bg_block_bitmap", group.block_bitmap, 32),
        **_halves("bg_inode_bitmap", group.inode_bitmap, 32),
        **_halves("bg_inode_table", group.inode_table, 32),
        **_halves("bg_free_blocks_count", unused, 16),
        **_halves("bg_free_inodes_count", per_group - used, 16),
        **_halves("bg_used_dirs_count", usage.directories[number], 16),
        **_halves("bg_itable_unused", per_group - used, 16),
        **_halves("bg_block_bitmap_csum", bitmap_sum, 16),
        **_halves("bg_inode_bitmap_csum", inodes_sum, 16),
        bg_flags=flags,
    )
    value = checksum(checksum(seed, number.to_bytes(4, "little")), descriptor) & 0xFFFF
    return descriptor[:0x1E] + value.to_bytes(2, "little") + descriptor[0x20:], blocks


def _halves(name: str, value: int, bits: int) -> dict[str, int]:
    """Return a number as the two fields that have its lower and its upper bits."""
    return {f"{name}_lo": value & (1 << bits) - 1, f"{name}_hi": value >> bits}


def _fields(geometry: Geometry, usage: Usage, identity: FilesystemIdentity, free: int) -> dict[str, int | bytes]:
    """Return the fields that all copies of the superblock share."""
    block, size = usage.journal
    backup = block + (size >> 32).to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
    return {
        "s_inodes_count": geometry.inodes,
        **_halves("s_blocks_count", geometry.blocks, 32),
        **_halves("s_free_blocks_count", free, 32),
        "s_free_inodes_count": geometry.inodes - usage.inodes,
        "s_log_block_size": 2,
        "s_log_cluster_size": 2,
        "s_blocks_per_group": records.BLOCKS_PER_GROUP,
        "s_clusters_per_group": records.BLOCKS_PER_GROUP,
        "s_inodes_per_group": geometry.inodes_per_group,
        "s_wtime": identity.time & 0xFFFFFFFF,
        "s_max_mnt_count": _NEVER,
        "s_magic": records.MAGIC,
        "s_state": _CLEAN,
        "s_errors": _CONTINUE,
        "s_lastcheck": identity.time & 0xFFFFFFFF,
        "s_rev_level": 1,
        "s_first_ino": records.FIRST_INODE,
        "s_inode_size": records.INODE_SIZE,
        "s_feature_compat": records.COMPATIBLE,
        "s_feature_incompat": records.INCOMPATIBLE,
        "s_feature_ro_compat": records.READ_ONLY_COMPATIBLE,
        "s_uuid": identity.uuid.bytes,
        "s_volume_name": identity.label.encode(),
        "s_reserved_gdt_blocks": geometry.reserved,
        "s_journal_inum": records.JOURNAL,
        "s_hash_seed": identity.hash_seed.bytes,
        "s_def_hash_version": dirhash.VERSION,
        "s_jnl_backup_type": _JOURNAL_BLOCKS,
        "s_desc_size": records.DESCRIPTOR_SIZE,
        "s_default_mount_opts": _XATTRS_AND_ACLS,
        "s_mkfs_time": identity.time & 0xFFFFFFFF,
        "s_jnl_blocks": backup,
        "s_min_extra_isize": records.EXTRA_ISIZE,
        "s_want_extra_isize": records.EXTRA_ISIZE,
        "s_flags": dirhash.SIGNED,
        "s_log_groups_per_flex": records.GROUPS_PER_FLEX.bit_length() - 1,
        "s_checksum_type": _CRC32C,
        "s_overhead_blocks": usage.overhead,
    }
