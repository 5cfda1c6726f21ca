"""Write a sparse disk to a file, as qcow2 or raw, on all processors::

    with ClusterCache(default_folder()) as cache:
        disk_map = write_image(disk, target, regions_of(layout), cache=cache)

The bytes depend on what is on the disk, the format, the compression and the version of its library; never on the
number of processors, on what is in the cache, or on where the files of the disk are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from imgkit.disk.diskimage import Format
from imgkit.disk.regions import CHUNK, DiskMap, Region
from imgkit.engines.engineerrors import write_error
from imgkit.engines.interface import Compression
from imgkit.engines.native.clustercache import ClusterCache
from imgkit.engines.native.clustercompression import ClusterCompression
from imgkit.engines.native.packedclusters import PackedClusters
from imgkit.engines.native.packing import Packer
from imgkit.engines.native.qcow2writer import Qcow2Writer
from imgkit.engines.native.rawwriter import RawWriter
from imgkit.engines.native.sparsedisk import SparseDisk


def write_image(
    disk: SparseDisk,
    target: Path,
    regions: Sequence[Region],
    *,
    format: Format = "qcow2",
    compression: Compression = "zstd",
    cache: ClusterCache | None = None,
    progress: Callable[[int], object] = lambda _size: None,
    threads: int | None = None,
) -> DiskMap:
    """Write a disk to the new file ``target`` and return its map.

    Args:
        regions: the regions of the whole disk, in order.
        compression: of a qcow2 file. zstd can be read by QEMU 5.1 and newer, zlib by every version.
        cache: has chunks that were compressed before, and takes those that were not; None for none. A raw disk is made
            without it.
        progress: is called with the size of each chunk that was written. There are ``disk.chunk_count`` of them.
        threads: that do the work; by default one for each processor.

    Raises:
        FileExistsError: there is a file ``target``.
        NoSpaceError: the disk of ``target`` is full.
        HostError: ``target`` cannot be written; or a file of the disk cannot be read, or is shorter than it was.
        ValueError: the regions are not those of a disk of this size.

    No file ``target`` is left after an error.
    """
    if regions[-1].end != disk.size:
        raise ValueError(f"the regions end at {regions[-1].end}, and the disk at {disk.size}")
    is_raw = format == "raw"
    packing = ClusterCompression(None if is_raw else compression)
    hashes: dict[int, str] = {}
    sink = target.open("xb")
    try:
        writer = _writer(sink, disk.size, None if is_raw else compression)
        with Packer(disk, regions, packing, None if is_raw else cache, threads=threads) as packer:
            for chunk in packer.chunks():
                hashes.update(chunk.hashes)
                writer.write(chunk.offset, chunk.clusters)
                progress(chunk.size)
        writer.finish()
        sink.close()
    except BaseException as cause:
        with suppress(OSError):  # what could not be written still cannot
            sink.close()
        target.unlink(missing_ok=True)
        if isinstance(cause, OSError):
            raise write_error(target, cause, disk.chunk_count * CHUNK) from cause
        raise
    return DiskMap(tuple(regions), hashes)


class _Writer(Protocol):
    def write(self, offset: int, clusters: PackedClusters) -> None: ...

    def finish(self) -> None: ...


def _writer(sink: BinaryIO, size: int, compression: Compression | None) -> _Writer:
    return RawWriter(sink, size) if compression is None else Qcow2Writer(sink, size, compression)
