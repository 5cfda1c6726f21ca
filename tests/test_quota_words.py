"""Quotas as values: the words of the command line, sizes in messages, and what is allowed by default."""

from __future__ import annotations

import pytest

from imgkit.errors import UsageError
from imgkit.vm.shares.quotas import FolderQuota, Quotas, format_size, parse

MIB = 1 << 20


def test_words_of_the_command_line() -> None:
    assert parse([]) == Quotas()
    words = ["ipc=5", "ipc-files=6", "share=7K", "share=8G", "share-files=none", "disk=1.5", "time=9"]
    with pytest.raises(UsageError, match=r"--quota disk=1\.5: not a number"):
        parse(words)
    words[5] = "disk=2TiB"
    assert parse(words) == Quotas(FolderQuota(5, 6), FolderQuota(8 << 30, None), 2 << 40, 9)
    assert parse(["disk=none", "time=none"]) == Quotas(disk=None)


@pytest.mark.parametrize(
    "word", ["ipc", "ipc=", "=5", "work=5", "ipc=-1", "ipc=1X", "time=5K", "ipc-files=5K", "share=99999999999999999"]
)
def test_words_without_sense(word: str) -> None:
    with pytest.raises(UsageError, match="--quota"):
        parse([word])


@pytest.mark.parametrize("name", ["ipc", "ipc-files", "share", "share-files", "disk", "time"])
def test_nothing_at_all_is_no_quota(name: str) -> None:
    """A quota of 0 is refused, as ``--timeout 0`` is."""
    with pytest.raises(UsageError, match=f"--quota {name}=0: at least 1"):
        parse([f"{name}=0"])


def test_the_hint_has_an_example_of_time() -> None:
    with pytest.raises(UsageError) as raised:
        parse(["time=1h"])
    assert "time=600" in str(raised.value.hint)


def test_the_default_lets_the_longest_stream_pass() -> None:
    from imgkit.vm.agent.requests import MAX_STREAM

    limit = Quotas().ipc.size
    assert limit is not None
    assert limit > MAX_STREAM


@pytest.mark.parametrize(("size", "text"), [(0, "0 MiB"), (1, "1 MiB"), (MIB + 1, "2 MiB"), (3 << 29, "1.5 GiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_sizes_at_the_change_of_the_unit() -> None:
    assert (format_size(1 << 30), format_size((1 << 30) - 1), format_size(MIB)) == ("1.0 GiB", "1024 MiB", "1 MiB")


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2k", 2 << 10), ("3M", 3 << 20), ("4GB", 4 << 30), ("5TiB", 5 << 40), ("6b", 6)]
)
def test_units_of_the_command_line(text: str, size: int) -> None:
    assert parse([f"ipc={text}"]).ipc == FolderQuota(size, Quotas().ipc.files)
    assert parse([f"disk={text}"]).disk == size


def test_the_hint_names_the_quotas() -> None:
    with pytest.raises(UsageError, match="--quota work=5: no such quota") as raised:
        parse(["work=5"])
    assert raised.value.hint == "ipc, ipc-files, share, share-files, disk, time"


def test_the_default_quotas() -> None:
    """docs/reference/limits.md."""
    assert parse([]) == Quotas(FolderQuota(2147483648, 10000), FolderQuota(68719476736, 2000000), 68719476736, None)
