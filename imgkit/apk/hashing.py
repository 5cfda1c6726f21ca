"""The order of apk's hash table of names, in which apk visits names that have no other order.

It is visible in its results: when one package completes the conditions of several install_if, their packages are
considered in this order. The hash is 32-bit MurmurHash3 (in the public domain) with a seed of 5381; the table has
20,000 buckets.
"""

from __future__ import annotations

from functools import lru_cache

_MASK = 0xFFFFFFFF
_SEED = 5381
_BUCKETS = 20_000


@lru_cache(maxsize=16384)
def bucket(name: str) -> int:
    """Return the place of a name in apk's table of names."""
    return murmur3(name.encode(), _SEED) % _BUCKETS


def murmur3(data: bytes, seed: int) -> int:
    """Return the 32-bit MurmurHash3 of ``data``."""
    value = seed
    tail = len(data) & ~3
    for start in range(0, tail, 4):
        value ^= _mixed(int.from_bytes(data[start : start + 4], "little"))
        value = (_rotated(value, 13) * 5 + 0xE6546B64) & _MASK
    value ^= _mixed(int.from_bytes(data[tail:], "little"))
    value ^= len(data)
    value = ((value ^ value >> 16) * 0x85EBCA6B) & _MASK
    value = ((value ^ value >> 13) * 0xC2B2AE35) & _MASK
    return value ^ value >> 16


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK
