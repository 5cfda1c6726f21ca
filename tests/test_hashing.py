"""The order of apk's table of names, which the oracle test compares with apk itself."""

from __future__ import annotations

import pytest

from imgkit.apk.hashing import bucket, murmur3


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"test", 0, 0xBA6BD213),
        (b"test", 0x9747B28C, 0x704B81DC),
        (b"Hello, world!", 0x9747B28C, 0x24884CBA),
        (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    ],
)
def test_published_values(data: bytes, seed: int, expected: int) -> None:
    assert murmur3(data, seed) == expected


def test_places_are_within_the_table_and_spread() -> None:
    places = {bucket(f"name{number}") for number in range(1000)}
    assert 0 <= min(places) < max(places) < 20_000
    assert len(places) > 950


def test_the_order_of_names_is_that_of_apk_s_table() -> None:
    """As apk goes through four packages with the same install_if."""
    assert sorted("abcd", key=bucket) == ["c", "a", "d", "b"]
