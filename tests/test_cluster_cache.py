"""The cache of compressed chunks: when it has a chunk, what a damaged one does, and what is removed."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.api.cacheentries import cache_entries
from imgkit.api.cachepruning import prune
from imgkit.disk.regions import CHUNK, Region
from imgkit.engines.native import clustercache
from imgkit.engines.native.clustercache import ClusterCache
from imgkit.engines.native.clustercompression import CLUSTER, ClusterCompression, Compress
from imgkit.engines.native.diskwriting import write_image
from imgkit.engines.native.packedclusters import PackedClusters, chunk_key
from imgkit.engines.native.sparsedisk import BLOCK, Extent, FileData, FilePiece, PlannedChunk, SparseDisk
from imgkit.tree import Inline
from tests.files import noise

KEY = "ab" * 32
CLUSTERS = PackedClusters(b"h" * 32, (3, 0, CLUSTER, *(0,) * 13), b"abc" + noise(CLUSTER))
DATA = noise(CHUNK + 5 * BLOCK) + b"x" * CHUNK
FILE = FileData(Inline(DATA), hashlib.sha256(DATA).digest())
SIZE = 6 * CHUNK
REGIONS = (Region("first", 0, 2 * CHUNK + BLOCK), Region("second", 2 * CHUNK + BLOCK, SIZE - 2 * CHUNK - BLOCK))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ClusterCache]:
    with ClusterCache(tmp_path / "cache") as cache:
        yield cache


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "clusters").rglob("*") if path.is_file())


def stored(cache: ClusterCache, folder: Path) -> Path:
    """Store an object and return its path."""
    cache.store(KEY, CLUSTERS)
    [path] = objects(folder)
    return path


def test_what_was_stored_is_taken(cache: ClusterCache, tmp_path: Path) -> None:
    assert cache.take(KEY) is None
    assert stored(cache, tmp_path / "cache") == tmp_path / "cache/clusters/ab" / KEY
    assert cache.take(KEY) == CLUSTERS
    for clusters in (PackedClusters(b"", (0,) * 16, b""), PackedClusters(b"h" * 32, (1, 2), b"xyz")):
        cache.store("cd" * 32, clusters)
        assert cache.take("cd" * 32) == clusters
    with ClusterCache(tmp_path / "cache") as other:
        assert other.take(KEY) == CLUSTERS


def test_a_cache_that_is_only_read_is_not_made(cache: ClusterCache, tmp_path: Path) -> None:
    assert cache.take(KEY) is None
    cache.__exit__(None, None, None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("at", [0, 3, 4, 12, 44, 76, 77, 144, 145, 147, -1])
def test_a_damaged_object_is_removed(
    at: int, cache: ClusterCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = stored(cache, tmp_path / "cache")
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    assert cache.take(KEY) is None
    assert caplog.messages == [f"{path}: damaged in the cache, and deleted"]
    assert not path.exists()


def sealed(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: sealed(data[4:][:-1]),
        lambda data: sealed(data[4:] + b"x"),
        lambda data: sealed(b"imgkitC1" + data[12:]),
        lambda data: sealed(data[4:32]),
        lambda data: sealed(data[4:].replace(b"\0\0\0\3\0\0\0\0\0\1\0\0", b"\0\1\0\3\0\0\0\0\0\0\0\0")),
    ],
)
def test_objects_of_another_form(change: object, cache: ClusterCache, tmp_path: Path) -> None:
    assert callable(change)
    path = stored(cache, tmp_path / "cache")
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    assert cache.take(KEY) is None
    assert not path.exists()


def test_an_object_under_another_name_is_not_taken(cache: ClusterCache, tmp_path: Path) -> None:
    stored(cache, tmp_path / "cache").rename(tmp_path / "cache/clusters/ab" / ("ab" * 31 + "ac"))
    assert cache.take("ab" * 31 + "ac") is None


def piece(**changes: object) -> str:
    planned = PlannedChunk(CHUNK, CHUNK, (FilePiece(0, FILE, 5, BLOCK), FilePiece(BLOCK, FILE, 0, 9)), False)
    return chunk_key(replace(planned, **changes), ClusterCompression())  # type: ignore[arg-type]


def test_all_that_the_bytes_depend_on_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FilePiece(0, FILE, 5, BLOCK), FilePiece(BLOCK, FILE, 0, 9)
    keys = [
        piece(),
        piece(size=CHUNK - 512),
        piece(pieces=()),
        piece(pieces=(first,)),
        piece(pieces=(first, replace(second, at=2 * BLOCK))),
        piece(pieces=(first, replace(second, start=1))),
        piece(pieces=(first, replace(second, length=8))),
        piece(pieces=(first, replace(second, data=replace(FILE, sha256=b"x" * 32)))),
    ]
    chunk = PlannedChunk(CHUNK, CHUNK, (first, second), False)
    keys.append(chunk_key(chunk, ClusterCompression("zlib")))
    keys.append(chunk_key(chunk, ClusterCompression(None)))
    monkeypatch.setattr("zstandard.ZSTD_VERSION", (9, 9, 9))
    monkeypatch.setattr("zlib_ng.zlib_ng.ZLIBNG_RUNTIME_VERSION", "9.9")
    keys += [piece(), chunk_key(chunk, ClusterCompression("zlib"))]
    assert len(set(keys)) == len(keys)


def test_the_place_of_a_chunk_and_of_a_content_is_not_in_the_key() -> None:
    assert piece(offset=5 * CHUNK) == piece()
    other = FileData(Inline(b"elsewhere"), FILE.sha256)
    assert piece(pieces=(FilePiece(0, other, 5, BLOCK), FilePiece(BLOCK, other, 0, 9))) == piece()


def write(folder: Path, cache: ClusterCache | None, name: str) -> bytes:
    """Write a disk with chunks that can be cached, chunks that have generated bytes, and one of two regions."""
    with SparseDisk(SIZE, folder / f"spool-{name}") as disk:
        disk.place(Extent(CHUNK - BLOCK, FILE, 0, len(DATA)))
        disk.place(Extent(4 * CHUNK, FileData(Inline(bytes(BLOCK)), hashlib.sha256(bytes(BLOCK)).digest()), 0, BLOCK))
        disk.put(0, b"generated")
        stated = write_image(disk, folder / name, REGIONS, cache=cache)
    hashes = "\n".join(map(str, stated.hashes.items()))
    return (folder / name).read_bytes() + hashes.encode()


def test_what_is_kept(tmp_path: Path) -> None:
    """Of five chunks, one has generated bytes and one is in two regions."""
    plain = write(tmp_path, None, "plain")
    with ClusterCache(tmp_path / "cache") as cache:
        assert write(tmp_path, cache, "cold") == plain
    assert len(objects(tmp_path / "cache")) == 3
    assert list((tmp_path / "cache/tmp").iterdir()) == []
    with ClusterCache(tmp_path / "cache") as cache:
        assert write(tmp_path, cache, "warm") == plain


def test_a_chunk_of_the_cache_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ClusterCache(tmp_path / "cache") as cache:
        plain = write(tmp_path, cache, "cold")
        compressed: list[int] = []
        compressor = ClusterCompression.compressor

        def counting(self: ClusterCompression) -> Compress:
            compress = compressor(self)

            def count(cluster: memoryview) -> bytes:
                compressed.append(1)
                return compress(cluster)

            return count

        monkeypatch.setattr(ClusterCompression, "compressor", counting)
        assert write(tmp_path, cache, "warm") == plain
    assert 0 < len(compressed) <= 32  # the chunks that are not kept


def test_damaged_objects_are_made_again(tmp_path: Path) -> None:
    with ClusterCache(tmp_path / "cache") as cache:
        plain = write(tmp_path, cache, "cold")
        before = {path: path.read_bytes() for path in objects(tmp_path / "cache")}
        for path, data in before.items():
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert write(tmp_path, cache, "warm") == plain
        assert {path: path.read_bytes() for path in objects(tmp_path / "cache")} == before


def test_several_threads_share_a_cache(cache: ClusterCache, tmp_path: Path) -> None:
    keys = [hashlib.sha256(b"%d" % (number % 7)).hexdigest() for number in range(100)]

    def use(key: str) -> None:
        cache.store(key, CLUSTERS)
        assert cache.take(key) == CLUSTERS

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, keys))
    assert len(objects(tmp_path / "cache")) == 7


def test_the_objects_that_were_not_used_for_long_are_removed(tmp_path: Path) -> None:
    keys = [f"{number:02d}" * 32 for number in range(5)]
    with ClusterCache(tmp_path / "cache") as cache:
        for number, key in enumerate(keys):
            cache.store(key, CLUSTERS)
            used = time.time() - 86400 * (10 - number)
            os.utime(tmp_path / "cache/clusters" / key[:2] / key, (used, used))
        cache.take(keys[0])
    size = objects(tmp_path / "cache")[0].stat().st_size
    with ClusterCache(tmp_path / "cache", most_bytes=4 * size - 1) as cache:
        assert cache.take(keys[4]) == CLUSTERS  # nothing is added, so nothing is removed
    assert len(objects(tmp_path / "cache")) == 5
    with ClusterCache(tmp_path / "cache", most_bytes=4 * size - 1) as cache:
        cache.store("ff" * 32, CLUSTERS)
    assert {path.name for path in objects(tmp_path / "cache")} == {keys[0], keys[4], "ff" * 32}


def test_the_time_of_use_is_renewed_after_an_hour(cache: ClusterCache, tmp_path: Path) -> None:
    path = stored(cache, tmp_path / "cache")
    for age, renewed in ((3500, False), (3700, True)):
        used = time.time() - age
        os.utime(path, (used, used))
        cache.take(KEY)
        assert (path.stat().st_mtime > used + 1) == renewed


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    with ClusterCache(tmp_path / "cache") as cache:
        for _ in range(2):
            cache.store(KEY, CLUSTERS)
        with caplog.at_level(logging.DEBUG, "imgkit.engines"):
            assert cache.take(KEY) is None
    assert caplog.messages == [
        f"{tmp_path / 'cache'}: compressed clusters are not kept for the next build: Not a directory",
        f"{tmp_path / 'cache/clusters/ab' / KEY}: not taken from the cache: Not a directory",
    ]


def test_an_object_that_is_not_a_file(cache: ClusterCache, tmp_path: Path) -> None:
    (tmp_path / "cache/clusters/ab" / KEY).mkdir(parents=True)
    assert cache.take(KEY) is None
    (tmp_path / "cache/clusters/other").write_text("a file")
    cache.store("cd" * 32, CLUSTERS)
    assert cache.take("cd" * 32) == CLUSTERS


def test_what_imgkit_cache_shows(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with ClusterCache(folder) as cache:
        for number in range(3):
            cache.store(f"{number:02d}" * 32, CLUSTERS)
    old = objects(folder)[0]
    os.utime(old, (1e9, 1e9))
    first, second = (entry for entry in cache_entries(folder) if entry.kind == "clusters")
    assert (first.name, second.name) == ("1 compressed chunk of a disk", "2 compressed chunks of disks")
    assert first.paths == (old.relative_to(folder),)
    assert first.used == 1e9
    assert second.size == 2 * first.size >= 2 * CLUSTER
    assert {folder / path for path in second.paths} == set(objects(folder)) - {old}
    assert prune(folder, older_than=86400) == [first]
    assert len(objects(folder)) == 2
    assert prune(folder, everything=True) == [second]
    assert objects(folder) == []


def test_the_bound_is_that_of_the_documentation() -> None:
    assert clustercache.MOST_BYTES == 4 << 30
