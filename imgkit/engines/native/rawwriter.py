"""Write a raw disk from clusters that are not compressed. Those of zeros are holes of the file."""

from __future__ import annotations

from typing import BinaryIO

from imgkit.engines.native.clustercompression import CLUSTER
from imgkit.engines.native.packedclusters import PackedClusters


class RawWriter:
    """Writes a raw disk of ``size`` bytes to a new file."""

    def __init__(self, sink: BinaryIO, size: int) -> None:
        self._sink = sink
        self._size = size

    def write(self, offset: int, clusters: PackedClusters) -> None:
        """Write clusters that lie at ``offset`` on the disk.

        Raises:
            OSError: the file cannot be written.
        """
        payload = memoryview(clusters.payload)
        for number, length in enumerate(clusters.lengths):
            if length:
                at = offset + number * CLUSTER
                if at != self._sink.tell():
                    self._sink.seek(at)
                self._sink.write(payload[:length])
                payload = payload[length:]

    def finish(self) -> None:
        """Give the file its size: the last cluster may be longer than the disk, or there may be nothing.

        Raises:
            OSError: the file cannot be written.
        """
        self._sink.truncate(self._size)
