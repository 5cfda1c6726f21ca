"""The contents of a finished image as values, and the protocol of an image reader.

An image is not trusted: names may hold control characters, and texts may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

Filesystem: TypeAlias = Literal["root", "esp"]
"""Which filesystem of an image: the root filesystem, or the EFI system partition."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class PartitionDescription:
    """A partition as it was found.

    Attributes:
        number: its number in the partition table, from 1 on.
        type: GUID of its kind.
        name, uuid: those of the partition table; empty if it has none.
        start, size: bytes.
        filesystem: the type, such as ``ext4``; empty if none is known.
        label, fs_uuid: those of the filesystem; empty if it has none.
    """

    number: int
    type: str
    name: str
    uuid: str
    start: int
    size: int
    filesystem: str
    label: str
    fs_uuid: str


@dataclass(frozen=True)
class FilesystemUsage:
    """How full a filesystem is: bytes, and numbers of inodes."""

    size: int
    used: int
    free: int
    inodes: int
    inodes_used: int


@dataclass(frozen=True)
class DiskDescription:
    """What is in a disk image, but for its packages.

    Attributes:
        format: of the file, "raw" or "qcow2".
        virtual_size: bytes of the disk that a guest sees.
        file_size: bytes that the file takes on the host's disk.
        disk_guid: GUID of the partition table.
        partitioned_size: bytes of the disk that the partition table was made for; 0 if it does not say. A disk that
            was enlarged has more: a guest whose root grows takes them at its next boot.
        partitions: in the order of their places on the disk.
        root: how full the root filesystem is.
        os_release: the assignments of the image's os-release file.
        kernels: the names below ``lib/modules``.
    """

    format: str
    virtual_size: int
    file_size: int
    disk_guid: str
    partitioned_size: int
    partitions: tuple[PartitionDescription, ...]
    root: FilesystemUsage
    os_release: Mapping[str, str]
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class ImageDescription(DiskDescription):
    """What a reader finds in a disk image.

    Attributes:
        apk_installed: text of the database of installed packages; empty if there is none.
    """

    apk_installed: str


@dataclass(frozen=True)
class Archive:
    """A tar archive of a filesystem of the image, in a file on the host.

    Attributes:
        path: the file. It is overwritten by the next request to the reader.
        offset: where the archive begins in the file.
        size: bytes of the archive.
        complete: False if there was more than the limits allow.
        complaints: what tar printed: files that could not be read, and what no archive can hold.
    """

    path: Path
    offset: int
    size: int
    complete: bool
    complaints: str

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the archive, in pieces of at most 1 MiB."""
        left = self.size
        with self.path.open("rb") as source:
            source.seek(self.offset)
            while left and (data := source.read(min(left, _BLOCK))):
                left -= len(data)
                yield data


class ImageReader(Protocol):
    """A read-only view of one image, made by an engine."""

    def describe(self) -> ImageDescription:
        """Describe what is in the image.

        Raises:
            UnreadableImageError: the image is damaged, has no ext4 filesystem, or a file that is read is not a regular
                file.
            LimitError: something that is read is larger than the limits allow, or reading took too long.
        """
        ...

    def archive(self, filesystem: Filesystem = "root", *, replay: bool = True) -> Archive:
        """Read a filesystem of the image as a tar archive (pax, numeric owners, extended attributes), sorted by name.

        Args:
            replay: whether the journal is replayed first, as the kernel does when the image boots. Boot loaders do not
                replay it: they see the filesystem as it is without.

        Raises:
            UnreadableImageError: the image has no such filesystem, or it cannot be mounted.
            LimitError: reading took too long.
        """
        ...
