"""Write a qcow2 file of version 3 from compressed clusters, in one pass::

    with path.open("xb") as sink:
        writer = Qcow2Writer(sink, size, "zstd")
        for chunk in packer.chunks():
            writer.write(chunk.offset, chunk.clusters)
        writer.finish()

The file has the header, the clusters in the order of the disk with each L2 table behind those that it refers to, the L1
table and the reference counts. So nothing has to be known before, the bytes depend on the clusters alone, and a file
that was not finished has no header. Compressed clusters follow each other without gaps, as QEMU writes them. Source of
the format: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

from array import array
from typing import BinaryIO

from imgkit.disk import qcow2format
from imgkit.disk.qcow2format import COMPRESSION_TYPE, COPIED, ENTRY_SIZE, Qcow2Header
from imgkit.engines.interface import Compression
from imgkit.engines.native.clustercompression import CLUSTER, CLUSTER_BITS
from imgkit.engines.native.packedclusters import PackedClusters

_L2_ENTRIES = CLUSTER // ENTRY_SIZE
_REFCOUNTS = CLUSTER * 8 >> qcow2format.REFCOUNT_ORDER  # of a block
_TYPES: dict[Compression, int] = {"zlib": 0, "zstd": 1}  # "Additional fields", compression_type
_TYPE_BIT = COMPRESSION_TYPE.bit_length() - 1


class Qcow2Writer:
    """Writes a qcow2 file.

    Args:
        sink: a new file.
        size: of the disk, in bytes.
    """

    def __init__(self, sink: BinaryIO, size: int, compression: Compression) -> None:
        self._sink = sink
        self._size = size
        self._compression = compression
        self._l1 = array("Q", bytes(ENTRY_SIZE * -(-size // (_L2_ENTRIES * CLUSTER))))
        self._l2 = array("Q", bytes(CLUSTER))
        self._l2_number = 0
        self._refcounts = array("H")
        self._tail = 0  # where a compressed cluster may begin; 0 if there is no room before the free clusters
        self._at = 0  # the position of the sink
        self._allocate(1)  # the header

    def write(self, offset: int, clusters: PackedClusters) -> None:
        """Write clusters that lie at ``offset`` on the disk, which must be after those that were written before.

        Raises:
            OSError: the file cannot be written.
        """
        payload = memoryview(clusters.payload)
        begin = end = 0  # of the bytes that lie in a row in the file from ``place`` on
        place = 0
        for number, length in enumerate(clusters.lengths, offset // CLUSTER):
            if not length:
                continue
            here, entry = self._placed(length)
            if here != place + end - begin:
                self._write_at(place, payload[begin:end])
                begin, place = end, here
            end += length
            self._enter(number, entry)
        self._write_at(place, payload[begin:end])

    def _placed(self, length: int) -> tuple[int, int]:
        """Allocate room for a cluster of ``length`` stored bytes. Returns its offset and its entry."""
        if length == CLUSTER:
            offset = self._allocate(1)
            return offset, offset | COPIED
        offset = self._tail
        room = -offset % CLUSTER  # in the cluster where the last compressed one ends
        if room < length:
            free = self._allocate(1)
            if not room or offset + room != free:
                offset, room = free, 0
        last = offset + length - 1
        # A new cluster is counted once already, for what begins in it or runs into it.
        if room:
            self._refcounts[offset // CLUSTER] += 1
        self._tail = (last + 1) if (last + 1) % CLUSTER else 0
        return offset, qcow2format.compressed_entry(offset, length, CLUSTER_BITS)

    def _allocate(self, clusters: int) -> int:
        """Return the offset of so many new clusters at the end of the file; each has a reference count of 1."""
        offset = len(self._refcounts) * CLUSTER
        self._refcounts.extend([1] * clusters)
        return offset

    def _enter(self, number: int, entry: int) -> None:
        """Enter cluster ``number`` of the disk into its L2 table."""
        table, index = divmod(number, _L2_ENTRIES)
        if table != self._l2_number:
            self._write_l2()
            self._l2_number = table
        self._l2[index] = entry

    def _write_l2(self) -> None:
        """Write the L2 table if it has an entry, and begin an empty one."""
        if any(self._l2):
            offset = self._allocate(1)
            self._write_at(offset, qcow2format.packed(self._l2))
            self._l1[self._l2_number] = offset | COPIED
            self._l2 = array("Q", bytes(CLUSTER))

    def finish(self) -> None:
        """Write the tables and the header.

        Raises:
            OSError: the file cannot be written.
        """
        self._write_l2()
        l1_offset = self._allocate(_clusters(ENTRY_SIZE * len(self._l1)))
        self._write_at(l1_offset, qcow2format.packed(self._l1))
        table_offset, table_clusters = self._write_refcounts()
        header = Qcow2Header(
            cluster_bits=CLUSTER_BITS,
            size=self._size,
            l1_size=len(self._l1),
            l1_offset=l1_offset,
            refcount_table_offset=table_offset,
            refcount_table_clusters=table_clusters,
            incompatible=COMPRESSION_TYPE if _TYPES[self._compression] else 0,
            header_length=qcow2format.HEADER_SIZE + 8,
        )
        more = bytes([_TYPES[self._compression]]).ljust(8, b"\0")
        names = qcow2format.feature_names({_TYPE_BIT: "compression type"}) if header.incompatible else b""
        self._write_at(0, header.pack() + more + names)

    def _write_refcounts(self) -> tuple[int, int]:
        """Write the reference counts of all clusters. Returns the offset of their table, and its clusters."""
        blocks, table = 0, 0
        while True:  # they count themselves
            total = len(self._refcounts) + blocks + table
            needed = -(-total // _REFCOUNTS)
            if (blocks, table) == (needed, _clusters(ENTRY_SIZE * needed)):
                break
            blocks, table = needed, _clusters(ENTRY_SIZE * needed)
        table_offset, block_offset = self._allocate(table), self._allocate(blocks)
        entries = array("Q", range(block_offset, block_offset + blocks * CLUSTER, CLUSTER))
        self._write_at(table_offset, qcow2format.packed(entries))
        data = qcow2format.packed(self._refcounts)
        self._write_at(block_offset, data.ljust(blocks * CLUSTER, b"\0"))
        return table_offset, table

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        if not data:
            return
        if offset != self._at:
            self._sink.seek(offset)
        self._sink.write(data)
        self._at = offset + len(data)


def _clusters(size: int) -> int:
    """Return how many clusters ``size`` bytes take."""
    return -(-size // CLUSTER)
