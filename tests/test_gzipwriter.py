"""gzip files that are written on all processors: the same bytes whatever the host has, and what others read back."""

from __future__ import annotations

import gzip
import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.tree import gzipwriter
from imgkit.tree.gzipwriter import GzipSink
from tests.files import noise


def gzipped(*parts: bytes, level: int = 6) -> bytes:
    file = io.BytesIO()
    with GzipSink(file, level) as sink:
        for part in parts:
            sink.write(part)
    return file.getvalue()


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, 9))
def test_what_is_written_is_read_back(parts: list[bytes], level: int) -> None:
    assert gzip.decompress(gzipped(*parts, level=level)) == b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 3 << 19])
def test_the_bytes_depend_neither_on_the_parts_nor_on_the_processors(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (b"".join(b"%d " % number for number in range(1 << 18)) * 2)[:size]
    expected = gzipped(data)
    assert gzip.decompress(expected) == data
    for count in (1, 2, 5, 100):
        monkeypatch.setattr(gzipwriter, "usable_processors", lambda most, count=count: min(most, count))
        assert gzipped(*(data[place : place + 100_003] for place in range(0, size, 100_003))) == expected


def test_random_data_costs_little() -> None:
    data = noise(1 << 20)
    assert len(gzipped(data)) < len(data) + 2000


def test_no_thread_is_left_behind_by_a_failure() -> None:
    before = threading.active_count()

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), GzipSink(Full(), 6) as sink:
        sink.write(bytes(20 << 20))
    assert threading.active_count() == before
