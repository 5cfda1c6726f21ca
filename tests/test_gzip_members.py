"""Files of several gzip members: where each one ends, what it may inflate to, and what is no gzip file at all."""

from __future__ import annotations

import io
import zlib

import pytest

from fixtures.apkbuild import gzip_member
from imgkit.apk.container import refuse_foreign
from imgkit.errors import InputError
from imgkit.tree.gzipmembers import GzipMembers, members_of

PARTS = (b"first" * 100, b"", b"third")
FILE = b"".join(map(gzip_member, PARTS))


def test_members_come_one_after_the_other_with_their_raw_bytes() -> None:
    members = members_of(FILE, "a.apk")
    found, raw, offsets = [], [], []
    while members.more():
        offsets.append(members.offset)
        pieces: list[bytes] = []
        found.append(members.read_member(1 << 20, pieces.append))
        raw.append(b"".join(pieces))
    assert tuple(found) == PARTS
    assert raw == [gzip_member(part) for part in PARTS]
    assert offsets == [0, len(raw[0]), len(raw[0] + raw[1])]
    assert members.offset == len(FILE)


def test_reading_starts_where_the_file_stands() -> None:
    source = io.BytesIO(b"before" + FILE)
    source.seek(6)
    members = GzipMembers(source, "a.apk")
    assert members.read_member(1 << 20) == PARTS[0]
    assert members.offset == 6 + len(gzip_member(PARTS[0]))


def test_a_member_may_be_larger_than_what_is_read_and_inflated_at_a_time() -> None:
    noise = b"".join(zlib.crc32(b"%d" % number).to_bytes(4, "big") for number in range(100_000)) * 4
    members = members_of(gzip_member(noise) + gzip_member(bytes(3 << 20)), "a.apk")
    raw: list[bytes] = []
    assert b"".join(members.member(1 << 21, raw.append)) == noise
    assert b"".join(raw) == gzip_member(noise)
    pieces = list(members.member(3 << 20))
    assert b"".join(pieces) == bytes(3 << 20)
    assert max(map(len, pieces)) <= 1 << 20, "a bomb costs no memory"
    assert b"" not in pieces


def test_a_member_is_inflated_up_to_its_limit_and_not_beyond() -> None:
    assert members_of(FILE, "a.apk").read_member(500) == PARTS[0]
    with pytest.raises(InputError) as caught:
        members_of(FILE, "a.apk").read_member(499)
    assert caught.value.message == "a.apk: inflates to more than 499 bytes"


@pytest.mark.parametrize("size", [0, 5, len(gzip_member(PARTS[0])) - 1])
def test_a_member_that_is_cut_is_truncated(size: int) -> None:
    with pytest.raises(InputError) as caught:
        members_of(FILE[:size], "a.apk").read_member(500)
    assert caught.value.message == "a.apk: is truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x" + FILE, "incorrect header check"),
        (zlib.compress(PARTS[0]), "incorrect header check"),
        (gzip_member(b"abc")[:-8] + bytes(8), "incorrect data check"),
        (gzip_member(b"abc")[:-4] + bytes(4), "incorrect length check"),
    ],
)
def test_a_member_that_is_damaged_or_of_another_format(data: bytes, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        members_of(data, "a.apk").read_member(500)
    assert caught.value.message == f"a.apk: is damaged (Error -3 while decompressing data: {reason})"


@pytest.mark.parametrize(
    ("head", "message", "hint"),
    [
        (b"", "is empty", None),
        (b"\x1f", "is not gzip data", None),
        (b"\x8b\x1f", "is not gzip data", None),
        (b"hello", "is not gzip data", None),
        (b" <html>", "is a web page", "check the mirror's URL, and whether a proxy or portal answers"),
        (
            b"ADBd",
            "is in format version 3 (ADB), which imgkit does not read",
            "choose a branch whose repositories have APKINDEX.tar.gz: ALPINE_BRANCH, or branch in the recipe",
        ),
    ],
)
def test_a_file_of_another_format_is_told_by_its_first_bytes(head: bytes, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        refuse_foreign(head, "a.apk")
    assert (caught.value.message, caught.value.hint) == (f"a.apk: {message}", hint)


def test_a_gzip_file_is_not_foreign_whatever_follows() -> None:
    refuse_foreign(b"\x1f\x8b", "a.apk")
    refuse_foreign(b"\x1f\x8bADB<html>", "a.apk")
