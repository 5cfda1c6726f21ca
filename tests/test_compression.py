"""Compressed layers: what they inflate to, their digests, and the same bytes for any number of threads."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.oci import mediatypes
from imgkit.oci.compression import Algorithm, Compression, compress
from imgkit.tree.tarwriter import PIECE
from tests.conftest import need_program
from tests.ocitrees import inflate

ALGORITHMS = pytest.mark.parametrize("algorithm", ["gzip", "zstd"])


def pieces(size: int, seed: int = 1) -> list[bytes]:
    """Return pieces that compress about as programs do."""
    rng = random.Random(seed)
    words = [rng.randbytes(8) for _ in range(3000)]
    data = b"".join(rng.choices(words, k=size // 8 + 1))[:size]
    return [data[start : start + PIECE] for start in range(0, size, PIECE)]


@ALGORITHMS
def test_digests_and_sizes_are_those_of_the_bytes(algorithm: Algorithm, tmp_path: Path) -> None:
    given = pieces(3 * PIECE + 77)
    blob = compress(given, tmp_path / "blob", Compression(algorithm))
    data = (tmp_path / "blob").read_bytes()
    assert blob.descriptor.size == len(data) < 2 * PIECE
    assert blob.descriptor.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blob.diff_id == f"sha256:{hashlib.sha256(b''.join(given)).hexdigest()}"
    assert blob.descriptor.media_type == (mediatypes.LAYER_GZIP if algorithm == "gzip" else mediatypes.LAYER_ZSTD)
    assert inflate(tmp_path / "blob", blob.descriptor.media_type) == b"".join(given)


@pytest.mark.slow
@ALGORITHMS
def test_the_bytes_do_not_depend_on_the_number_of_threads(algorithm: Algorithm, tmp_path: Path) -> None:
    given = pieces(40 * PIECE + 1)  # several jobs of libzstd, which have 8 MiB
    digests = {
        compress(given, tmp_path / str(threads), Compression(algorithm), threads=threads).descriptor.digest
        for threads in (0, 1, 2, 5)
    }
    assert len(digests) == 1


@ALGORITHMS
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
def test_small_archives(algorithm: Algorithm, size: int, tmp_path: Path) -> None:
    given = pieces(size)
    blob = compress(given, tmp_path / "blob", Compression(algorithm))
    assert inflate(tmp_path / "blob", blob.descriptor.media_type) == b"".join(given)
    assert blob.diff_id == f"sha256:{hashlib.sha256(b''.join(given)).hexdigest()}"


@pytest.mark.slow
@given(data=st.lists(st.binary(max_size=70_000), max_size=5), level=st.integers(1, 9))
def test_whatever_the_pieces_are_gzip_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes], level: int
) -> None:
    target = tmp_path_factory.mktemp("blobs") / "blob"
    blob = compress(data, target, Compression("gzip", level))
    assert gzip.decompress(target.read_bytes()) == b"".join(data)
    assert blob.descriptor.size == target.stat().st_size


@ALGORITHMS
def test_other_programs_inflate_the_same(algorithm: Algorithm, tmp_path: Path) -> None:
    program = need_program(algorithm)
    given = pieces(2 * PIECE + 5)
    compress(given, tmp_path / "blob", Compression(algorithm))
    with (tmp_path / "blob").open("rb") as source:
        done = subprocess.run([program, "-dc"], stdin=source, capture_output=True, check=True)
    assert done.stdout == b"".join(given)


def test_gzip_says_nothing_about_its_origin(tmp_path: Path) -> None:
    compress([b"x"], tmp_path / "blob", Compression("gzip"))
    assert (tmp_path / "blob").read_bytes()[:10] == bytes.fromhex("1f8b08000000000000ff")


def test_the_dictionary_of_a_piece_is_the_end_of_the_one_before(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(30 << 10)
    alone = compress([noise], tmp_path / "1", Compression("gzip")).descriptor.size
    twice = compress([noise, noise], tmp_path / "2", Compression("gzip")).descriptor.size
    assert twice - alone < 1000
    apart = compress([noise + b"\0", bytes(32 << 10), noise], tmp_path / "3", Compression("gzip")).descriptor.size
    assert apart - alone > 30 << 10


@ALGORITHMS
def test_levels(algorithm: Algorithm, tmp_path: Path) -> None:
    sizes = {
        level: compress(pieces(PIECE), tmp_path / str(level), Compression(algorithm, level)).descriptor.size
        for level in (0, 1, 3, 6)
    }
    assert sizes[0] == sizes[3] != sizes[1]
    assert sizes[6] != sizes[3]


def test_the_identity_names_what_the_bytes_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Compression("gzip").identity == Compression("gzip", 3).identity
    identities = {Compression("gzip", 4).identity, Compression("gzip").identity, Compression("zstd").identity}
    monkeypatch.setattr("zstandard.ZSTD_VERSION", (9, 9, 9))
    monkeypatch.setattr("zlib_ng.zlib_ng.ZLIBNG_RUNTIME_VERSION", "9.9.9")
    identities |= {Compression("gzip").identity, Compression("zstd").identity}
    assert len(identities) == 5


@ALGORITHMS
def test_a_failure_of_the_source_ends_the_threads(algorithm: Algorithm, tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield from pieces(6 * PIECE)
        raise EOFError("gone")

    with pytest.raises(EOFError, match="gone"):
        compress(failing(), tmp_path / "blob", Compression(algorithm), threads=2)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("imgkit-")] == []


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        compress([b"x"], tmp_path / "blob", Compression())
    assert (tmp_path / "blob").read_bytes() == b"old"
