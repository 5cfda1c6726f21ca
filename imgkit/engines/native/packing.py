"""Read, hash and compress the chunks of a disk on all processors; the results come in the order of the disk::

    with Packer(disk, regions, ClusterCompression("zstd"), cache) as packer:
        for chunk in packer.chunks():
            writer.write(chunk.offset, chunk.clusters)

A chunk that has nothing but files is looked for in the cache (:mod:`imgkit.engines.native.clustercache`) first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

from imgkit.disk.regions import CHUNK, Chunk, Region, chunk_at
from imgkit.engines.native.clustercache import ClusterCache
from imgkit.engines.native.clustercompression import CLUSTER, ClusterCompression
from imgkit.engines.native.packedclusters import PackedClusters, chunk_key
from imgkit.engines.native.sharedfiles import SharedFiles, changed
from imgkit.engines.native.sparsedisk import FileData, FilePiece, PlannedChunk, SparseDisk
from imgkit.errors import HostError
from imgkit.host.processors import usable_processors

_AHEAD = 16  # chunks that may be in work or wait for those before them: 16 MiB, and as much for 16 threads
_ZEROS = bytes(CHUNK)


@dataclass(frozen=True)
class PackedChunk:
    """A chunk that is ready to be written.

    Attributes:
        offset: of the chunk on the disk.
        hashes: the entries of the map for it: an offset on the disk, and the SHA-256 in hex.
        clusters: its bytes.
    """

    offset: int
    size: int
    hashes: tuple[tuple[int, str], ...]
    clusters: PackedClusters


class _Workplace(threading.local):
    """What each thread has for itself: the bytes of the chunk in work, and a compressor."""

    def __init__(self, compression: ClusterCompression) -> None:
        self.buffer = bytearray(CHUNK)
        self.compress = compression.compressor()


@dataclass
class _Check:
    """The check of a file that lies in several chunks."""

    data: FileData
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_done: bool = False
    stamp: object = None


class Packer:
    """Packs the chunks of a disk. Leaving the block waits for the chunks that are in work.

    Args:
        regions: those of the whole disk, in order.
        cache: has chunks that were compressed before; None for none.
        threads: that pack; by default one for each processor.
    """

    def __init__(
        self,
        disk: SparseDisk,
        regions: Sequence[Region],
        compression: ClusterCompression,
        cache: ClusterCache | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        self._disk = disk
        self._regions = regions
        self._compression = compression
        self._cache = cache
        self._threads = threads or usable_processors(_AHEAD)
        self._place = _Workplace(compression)
        self._files = SharedFiles()
        self._checks: dict[int, _Check] = {}
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Packer:
        self._stack.enter_context(self._files)
        self._pool = ThreadPoolExecutor(self._threads, "imgkit-pack")
        self._stack.callback(self._pool.shutdown, cancel_futures=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def chunks(self) -> Iterator[PackedChunk]:
        """Yield the chunks of the disk, in order.

        Raises:
            HostError: a file cannot be read, or is shorter than it was.
        """
        packed: deque[Future[PackedChunk]] = deque()
        for chunk in self._disk.chunks():
            packed.append(self._pool.submit(self._pack, chunk))
            if len(packed) >= min(_AHEAD, 2 * self._threads + 2):
                yield packed.popleft().result()
        while packed:
            yield packed.popleft().result()

    def _pack(self, chunk: PlannedChunk) -> PackedChunk:
        mapped = self._mapped(chunk)
        if self._cache is None or chunk.is_generated or len(mapped) > 1:
            return self._made(chunk, mapped)
        key = chunk_key(chunk, self._compression)
        cached = self._cache.take(key)
        if cached is not None:
            hashes = ((chunk.offset, cached.sha256.hex()),) if cached.sha256 else ()
            return PackedChunk(chunk.offset, chunk.size, hashes, cached)
        made = self._made(chunk, mapped)
        self._cache.store(key, made.clusters)
        return made

    def _mapped(self, chunk: PlannedChunk) -> list[Chunk]:
        """Return the chunks of the map that a chunk consists of: several where regions begin in it."""
        at, end, mapped = chunk.offset, chunk.offset + chunk.size, []
        while at < end:
            mapped.append(chunk_at(self._regions, at))
            at = mapped[-1].end
        return mapped

    def _made(self, chunk: PlannedChunk, mapped: Sequence[Chunk]) -> PackedChunk:
        buffer = self._place.buffer
        with memoryview(buffer) as view:
            stamps = [(piece.data, self._whole(piece.data, view)) for piece in chunk.pieces if not _is_whole(piece)]
            self._fill(view, chunk)
            for data, stamp in stamps:
                if self._files.stamp(data.content) != stamp:
                    raise changed(data.content)
            hashes = tuple(self._hashes(view, chunk, mapped))
            clusters = [self._cluster(view, start) for start in range(0, chunk.size, CLUSTER)]
        sha256 = bytes.fromhex(hashes[0][1]) if len(mapped) == 1 and hashes else b""
        return PackedChunk(chunk.offset, chunk.size, hashes, PackedClusters.of(sha256, clusters))

    def _fill(self, view: memoryview, chunk: PlannedChunk) -> None:
        """Fill ``view`` with the bytes of a chunk, and with zeros behind them."""
        if chunk.is_generated:
            try:
                self._disk.read_generated(chunk.offset, view[: chunk.size])
            except (OSError, EOFError) as cause:
                raise HostError(f"the scratch file of the disk cannot be read: {cause}") from cause
        end = chunk.size if chunk.is_generated else 0  # of what is known to be right
        for piece in chunk.pieces:
            if piece.at > end:
                view[end : piece.at] = memoryview(_ZEROS)[: piece.at - end]
            end = max(end, piece.at + piece.length)
            self._read(view[piece.at : piece.at + piece.length], piece)
        view[end:] = memoryview(_ZEROS)[: len(view) - end]

    def _read(self, view: memoryview, piece: FilePiece) -> None:
        """Read bytes of a file, and check them if they are the whole file."""
        content = piece.data.content
        self._files.read_into(view, content, piece.start)
        if _is_whole(piece) and hashlib.sha256(view).digest() != piece.data.sha256:
            raise changed(content)

    def _whole(self, data: FileData, buffer: memoryview) -> object:
        """Check, once, a file that lies in several chunks; return its stamp from before.

        Its parts are stored in the cache as parts of a file of that SHA-256, so it must have it.
        """
        with self._lock:
            check = self._checks.setdefault(id(data), _Check(data))
        with check.lock:
            if not check.is_done:
                check.stamp = self._files.stamp(data.content)
                if self._files.sha256(data.content, buffer) != data.sha256:
                    raise changed(data.content)
                check.is_done = True
        return check.stamp

    def _hashes(self, view: memoryview, chunk: PlannedChunk, mapped: Sequence[Chunk]) -> Iterator[tuple[int, str]]:
        for part in mapped:
            start, end = part.start - chunk.offset, part.end - chunk.offset
            if not self._is_zeros(start, end):
                yield part.start, hashlib.sha256(view[start:end]).hexdigest()

    def _cluster(self, view: memoryview, start: int) -> bytes:
        """Return what is stored for a cluster: nothing for zeros, its own bytes if they cannot be compressed."""
        if self._is_zeros(start, start + CLUSTER):
            return b""
        cluster = view[start : start + CLUSTER]
        compressed = self._place.compress(cluster)
        return compressed if len(compressed) < CLUSTER else bytes(cluster)

    def _is_zeros(self, start: int, end: int) -> bool:
        return self._place.buffer.startswith(_ZEROS[: end - start], start)


def _is_whole(piece: FilePiece) -> bool:
    return piece.length == piece.data.content.size
