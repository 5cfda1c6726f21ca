"""The order in which apk goes through names where nothing else says one: that of its hash table.

It shows: when one package completes the conditions of several install_if, their packages are looked at in this order.
The hash is 32-bit MurmurHash3 (in the public domain) with a seed of 5381, the table has 20,000 buckets.
"""

from __future__ import annotations

from functools import lru_cache

_MASK = 0xFFFFFFFF
_SEED = 5381
_BUCKETS = 20_000


@lru_cache(maxsize=16384)
def bucket(name: str) -> int:
    """The place of a name in apk's table of names."""
    return murmur3(name.encode(), _SEED) % _BUCKETS


def murmur3(data: bytes, seed: int) -> int:
    """32-bit MurmurHash3 of ``data``."""
    value = seed
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        value ^= _mixed(int.from_bytes(data[start : start + 4], "little"))
        value = (_rotated(value, 13) * 5 + 0xE6546B64) & _MASK
    if whole < len(data):
        value ^= _mixed(int.from_bytes(data[whole:], "little"))
    value ^= len(data)
    value = ((value ^ value >> 16) * 0x85EBCA6B) & _MASK
    value = ((value ^ value >> 13) * 0xC2B2AE35) & _MASK
    return value ^ value >> 16


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK
