"""Read a qcow2 file without QEMU and without imgkit, and compare its reference counts with its tables.

Written from QEMU's docs/interop/qcow2.txt for the files that imgkit writes: version 3, no snapshots, 16-bit counts.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import zstandard

COMPRESSED, COPIED = 1 << 62, 1 << 63
OFFSET = (1 << 56) - 512


class DamagedError(Exception):
    """The file is not consistent."""


@dataclass
class Qcow2File:
    """A file that was read: the disk's size, its clusters that are not zeros, and how many are compressed."""

    size: int
    clusters: dict[int, bytes]
    compressed: int
    cluster_size: int

    @property
    def disk(self) -> bytes:
        """All bytes of the disk."""
        result = bytearray(-(-self.size // self.cluster_size) * self.cluster_size)
        for number, data in self.clusters.items():
            result[number * self.cluster_size : (number + 1) * self.cluster_size] = data
        return bytes(result[: self.size])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        fields = struct.unpack_from(">4sIQIIQIIQQIIQQQQII", data)
        self.size, self.features, length = fields[5], fields[13], fields[17]
        self.l1_size, self.l1_offset, self.refcount_offset, self.refcount_clusters = fields[7:11]
        expected = (b"QFI\xfb", 3, 0, 0, 16, 0, 0, 0, 0, 0, 4)
        if (*fields[:5], fields[6], *fields[11:13], *fields[14:17]) != expected:
            raise DamagedError(f"the header has {fields}")
        self.bits, self.cluster = 16, 1 << 16
        kind = data[104] if length > 104 else 0
        if self.features != (8 if kind else 0) or length % 8 or any(data[105:length]):
            raise DamagedError("features and the type of compression differ")
        self.zstd = kind == 1
        self.used: dict[int, int] = {}
        self.compressed = 0

    def entries(self, offset: int, count: int, size: int = 8) -> tuple[int, ...]:
        return struct.unpack_from(f">{count}{'Q' if size == 8 else 'H'}", self.data, offset)

    def use(self, offset: int, size: int, *, whole: bool = True) -> None:
        """Count what refers to the clusters of these bytes."""
        if (whole and offset % self.cluster) or offset + size > len(self.data):
            raise DamagedError(f"nothing can be at {offset}")
        for number in range(offset // self.cluster, (offset + size - 1) // self.cluster + 1):
            self.used[number] = self.used.get(number, 0) + 1

    def referred(self, entry: int) -> int:
        """Return the offset of a whole cluster that an entry of a table refers to."""
        if entry != entry & OFFSET | COPIED:
            raise DamagedError(f"{entry:#x} is not an entry")
        self.use(entry & OFFSET, self.cluster)
        return entry & OFFSET

    def content(self, entry: int) -> bytes:
        if not entry & COMPRESSED:
            offset = self.referred(entry)
            return self.data[offset : offset + self.cluster]
        offset, sectors = entry & ((1 << 54) - 1), entry >> 54 & 0xFF
        size = (sectors + 1) * 512 - offset % 512
        self.use(offset, size, whole=False)
        self.compressed += 1
        data = self.data[offset : offset + size]
        try:
            if not self.zstd:
                return zlib.decompressobj(-12).decompress(data, self.cluster)
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=self.cluster, allow_extra_data=True)
        except (zlib.error, zstandard.ZstdError) as cause:
            raise DamagedError(f"the cluster at {offset} cannot be decompressed: {cause}") from cause

    def clusters(self) -> dict[int, bytes]:
        found = {}
        self.use(self.l1_offset, 8 * self.l1_size)
        for table, l1_entry in enumerate(self.entries(self.l1_offset, self.l1_size)):
            for index, entry in enumerate(self.entries(self.referred(l1_entry), 8192) if l1_entry else ()):
                if entry:
                    found[table * 8192 + index] = self.content(entry)
        if any(len(data) != self.cluster for data in found.values()):
            raise DamagedError("a compressed cluster is too short")
        return found

    def check_counts(self) -> None:
        """Compare the reference counts with what refers to each cluster."""
        self.use(0, self.cluster)
        self.use(self.refcount_offset, self.refcount_clusters * self.cluster)
        counts: list[int] = []
        for block in self.entries(self.refcount_offset, self.refcount_clusters * 8192):
            if block:
                self.use(block, self.cluster)
                counts += self.entries(block, self.cluster // 2, 2)
        known = {number: count for number, count in enumerate(counts) if count}
        if known != self.used:
            raise DamagedError(f"reference counts differ: {sorted(set(known.items()) ^ set(self.used.items()))[:9]}")
        if len(self.data) != (max(known) + 1) * self.cluster:
            raise DamagedError(f"a file of {len(self.data)} bytes")


def read_qcow2(path: Path) -> Qcow2File:
    """Read a file.

    Raises:
        DamagedError: its header, tables or reference counts contradict each other.
    """
    reader = _Reader(path.read_bytes())
    clusters = reader.clusters()
    reader.check_counts()
    return Qcow2File(reader.size, clusters, reader.compressed, reader.cluster)
