"""Results that are kept for the next build: what is taken, what is damaged, and what is removed."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imgkit.errors import HostError
from imgkit.fetch.kept import IN_USE, Kept, say_unkept

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "cache", "things", 1000)


def record(kept: Kept, key: str = KEY) -> Path:
    return kept.blob(key).with_suffix(".record")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"x" + data[1:]])
def test_a_damaged_blob_is_a_miss_and_is_removed(
    damage: Callable[[bytes], bytes], kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    with kept.scratch() as work:
        (work / "x").write_bytes(bytes(1 << 18) + b"blob")
        kept.add(KEY, b"data", work / "x")
    assert kept.take(KEY) == b"data"
    kept.blob(KEY).write_bytes(damage(kept.blob(KEY).read_bytes()))
    assert kept.take(KEY) is None
    assert "damaged in the cache, and deleted: its blob has another CRC-32" in caplog.text
    assert not record(kept).exists()
    assert not kept.blob(KEY).exists()


def test_a_result_is_taken_by_its_key_with_its_blob(kept: Kept, tmp_path: Path) -> None:
    assert kept.take(KEY) is None
    with kept.scratch() as work:
        (work / "x").write_bytes(b"blob")
        assert kept.store(KEY, b"data", work / "x") == b"data"
    assert kept.take(KEY) == b"data"
    assert kept.blob(KEY).read_bytes() == b"blob"
    assert kept.take(OTHER) is None
    assert kept.store(OTHER, b"") == b""
    assert kept.take(OTHER) == b""
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-1] + b"x",
        lambda data: b"x" + data[1:],
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_record_is_a_miss_and_is_removed(
    damage: Callable[[bytes], bytes], kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.store(KEY, b"data")
    record(kept).write_bytes(damage(record(kept).read_bytes()))
    assert kept.take(KEY) is None
    assert not record(kept).exists()
    assert "damaged in the cache, and deleted: its record has another SHA-256" in caplog.text


def test_a_result_that_is_used_becomes_young(kept: Kept) -> None:
    kept.store(KEY, b"data")
    os.utime(record(kept), (0, 0))
    kept.take(KEY)
    assert time.time() - record(kept).stat().st_mtime < 60


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "cache", "things", 1000)
    assert kept.store(KEY, b"data") == b"data"
    assert "a result is not kept for the next build: Not a directory" in caplog.text
    assert kept.take(KEY) is None
    kept.shrink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_warning_of_its_own(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """The build says it in one line, when it comes to what it needs."""
    caplog.set_level(logging.DEBUG, "imgkit.fetch")
    log, fault = logging.getLogger("imgkit.fetch"), OSError(number, os.strerror(number))
    wrapped = HostError("output: no space left")
    wrapped.__cause__ = fault
    say_unkept(log, "a result", fault)
    say_unkept(log, "a package", wrapped)
    say_unkept(log, "another", HostError("something else"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", f"a result is not kept for the next build: {os.strerror(number)}"),
        ("DEBUG", "a package is not kept for the next build: output: no space left"),
        ("WARNING", "another is not kept for the next build: something else"),
    ]


def test_those_that_were_not_used_for_the_longest_time_are_removed(kept: Kept) -> None:
    """The blob of a process that was killed before it wrote the record is removed as well."""
    keys = [f"{number:02x}" * 32 for number in range(5)]
    old = time.time() - IN_USE - 100
    for number, key in enumerate(keys):
        kept.store(key, bytes(268))  # 300 with its seal
        os.utime(record(kept, key), (old + number,) * 2)
    kept.blob(OTHER).parent.mkdir()
    kept.blob(OTHER).write_bytes(bytes(300))
    os.utime(kept.blob(OTHER), (old - 1,) * 2)
    kept.shrink()
    assert [key for key in keys if record(kept, key).exists()] == keys[2:]
    assert not kept.blob(OTHER).exists()


def test_what_a_running_build_may_refer_to_stays(kept: Kept) -> None:
    keys = [f"{number:02x}" * 32 for number in range(5)]
    for number, key in enumerate(keys):
        kept.store(key, bytes(1000))
        os.utime(record(kept, key), (time.time() - IN_USE + 600 + number,) * 2)
    kept.shrink()
    assert all(record(kept, key).exists() for key in keys)
