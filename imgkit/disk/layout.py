"""The places of the partitions on a disk with a GPT, as values.

The numbers are fixed: the EFI system partition is 1, root is 2 and last on the disk (so it can grow), the BIOS boot
partition of amd64 is 14 and first. All identifiers are derived from a seed, so a recipe always gives the same ones.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from imgkit.errors import RecipeError
from imgkit.recipe import Architecture, PartitionKind, parse_size

SECTOR = 512
ALIGNMENT = 1 << 20  # partitions start and end at multiples of 1 MiB
_BLOCK = 4096  # bytes, of the filesystems that imgkit makes
_BACKUP_TABLE = 33 * SECTOR  # UEFI specification 5.3: the disk ends with 32 sectors of entries and one header

NUMBERS: Mapping[PartitionKind, int] = MappingProxyType({"bios-boot": 14, "esp": 1, "root": 2})
# UEFI specification table 5-7, GRUB manual "BIOS installation", Discoverable Partitions Specification (Linux data)
TYPE_GUIDS: Mapping[PartitionKind, str] = MappingProxyType(
    {
        "bios-boot": "21686148-6449-6E6F-744E-656564454649",
        "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        "root": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    }
)
_FILESYSTEMS: Mapping[PartitionKind, str] = MappingProxyType({"bios-boot": "", "esp": "vfat", "root": "ext4"})
_LABELS: Mapping[PartitionKind, str] = MappingProxyType({"bios-boot": "", "esp": "ESP", "root": "root"})
_ORDER: tuple[PartitionKind, ...] = ("bios-boot", "esp", "root")  # as they lie on the disk


@dataclass(frozen=True)
class SizedPartition:
    """A partition without a place. ``size`` is in bytes; 0, for the root only, takes the remaining space."""

    kind: PartitionKind
    size: int = 0


@dataclass(frozen=True)
class Partition:
    """A partition with its place and identity; the ``fs_uuid`` of a FAT is its volume id in the form ``1A2B-3C4D``."""

    number: int
    kind: PartitionKind
    name: str
    type_guid: str
    uuid: str
    start_lba: int
    sectors: int
    filesystem: str
    label: str
    fs_uuid: str

    @property
    def start(self) -> int:
        """First byte on the disk."""
        return self.start_lba * SECTOR

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.sectors * SECTOR


@dataclass(frozen=True)
class Layout:
    """A whole disk of ``size_bytes``, with its partitions in the order of their places."""

    size_bytes: int
    disk_guid: str
    partitions: tuple[Partition, ...]

    def get(self, kind: PartitionKind) -> Partition | None:
        """Return the partition of this kind, or None."""
        return next((part for part in self.partitions if part.kind == kind), None)

    @property
    def root(self) -> Partition:
        """The root partition; every layout has one."""
        return next(part for part in self.partitions if part.kind == "root")

    @property
    def is_bare(self) -> bool:
        """Whether the disk has no partition table, and is a root filesystem as a whole."""
        return self.root.start == 0


def sized_partitions(architecture: Architecture) -> tuple[SizedPartition, ...]:
    """Return the partitions of a recipe for an architecture, with their sizes in bytes."""
    return tuple(
        SizedPartition(part.kind, parse_size(part.size) if part.size else 0) for part in architecture.partitions
    )


def make_layout(spec: Sequence[SizedPartition], size: int, seed: uuid.UUID) -> Layout:
    """Place partitions on a disk.

    Args:
        spec: the partitions in any order, at most one of each kind.
        size: bytes of the whole disk, a multiple of 512.
        seed: the namespace of the identifiers; equal seeds give equal identifiers.

    Raises:
        RecipeError: the disk is too small or not a multiple of 512 bytes, there is no root, two partitions are of the
            same kind, or one but the root has no size.
    """
    _check(spec, size)
    partitions: list[Partition] = []
    start = ALIGNMENT
    for sized in sorted(spec, key=lambda part: _ORDER.index(part.kind)):
        length = -(-sized.size // ALIGNMENT) * ALIGNMENT
        if sized.kind == "root":
            length = (size - _BACKUP_TABLE - start) // ALIGNMENT * ALIGNMENT
        if length < ALIGNMENT:
            minimum = start // ALIGNMENT + 2
            raise RecipeError(f"image size of {size} bytes leaves no room for root", hint=f"at least {minimum} MiB")
        partitions.append(_partition(sized.kind, start, length, seed))
        start += length
    return Layout(size, _guid(seed, "disk"), tuple(partitions))


def bare_layout(size: int, seed: uuid.UUID) -> Layout:
    """Return the layout of a disk without a partition table, which is a root filesystem as a whole.

    Its filesystem has the identifiers that it has in a layout of the same seed with partitions.

    Args:
        size: bytes of the whole disk, a multiple of 4096.
        seed: the namespace of the identifiers.

    Raises:
        RecipeError: the size is not such a multiple.
    """
    if size % _BLOCK:
        raise RecipeError(f"root filesystem of {size} bytes: not a multiple of {_BLOCK}")
    return Layout(size, _guid(seed, "disk"), (_partition("root", 0, size, seed),))


def _check(spec: Sequence[SizedPartition], size: int) -> None:
    kinds = [part.kind for part in spec]
    if size % SECTOR:
        raise RecipeError(f"image size of {size} bytes is not a multiple of {SECTOR}")
    if len(set(kinds)) != len(kinds) or "root" not in kinds:
        raise RecipeError(f"partitions {', '.join(kinds) or '(none)'}: root exactly once and no kind twice")
    for part in spec:
        if part.size < 0 or (part.size == 0 and part.kind != "root"):
            raise RecipeError(f"partition {part.kind}: size of {part.size} bytes")


def _partition(kind: PartitionKind, start: int, length: int, seed: uuid.UUID) -> Partition:
    fs_uuid = ""
    if kind == "root":
        fs_uuid = str(uuid.uuid5(seed, "filesystem root"))
    elif kind == "esp":
        volume = uuid.uuid5(seed, "filesystem esp").hex[:8].upper()
        fs_uuid = f"{volume[:4]}-{volume[4:]}"
    return Partition(
        number=NUMBERS[kind],
        kind=kind,
        name=kind,
        type_guid=TYPE_GUIDS[kind],
        uuid=_guid(seed, f"partition {kind}"),
        start_lba=start // SECTOR,
        sectors=length // SECTOR,
        filesystem=_FILESYSTEMS[kind],
        label=_LABELS[kind],
        fs_uuid=fs_uuid,
    )


def _guid(seed: uuid.UUID, name: str) -> str:
    return str(uuid.uuid5(seed, name)).upper()
