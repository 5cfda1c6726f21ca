"""The hash of names in directories with an index: half MD4, seeded (fs/ext4/hash.c of the Linux kernel).

Bytes count as signed numbers, as they do on the processors on which mke2fs sets the flag for it; the superblock has the
flag whatever processor imgkit runs on.
"""

from __future__ import annotations

import struct

VERSION = 1
"""The number of half MD4 in superblocks and in the roots of indexes."""
SIGNED = 1
"""The flag of the superblock."""

_MASK = 0xFFFFFFFF
_K2, _K3 = 0x5A827999, 0x6ED9EBA1
_END = 0x7FFFFFFF << 1 & _MASK  # stands for the end of a directory
_WORDS = 8  # that one round takes
_ROUND_2 = ((1, 3), (3, 5), (5, 9), (7, 13), (0, 3), (2, 5), (4, 9), (6, 13))
_ROUND_3 = ((3, 3), (7, 9), (2, 11), (6, 15), (1, 3), (5, 9), (0, 11), (4, 15))


def name_hash(name: bytes, seed: tuple[int, int, int, int]) -> int:
    """Return the major hash of a name; its lowest bit is 0.

    Args:
        seed: the four words of ``s_hash_seed``.
    """
    a, b, c, d = seed
    for start in range(0, len(name), 4 * _WORDS):
        a, b, c, d = _transform(a, b, c, d, _words(name[start:]))
    value = b & ~1 & _MASK
    return value - 2 if value == _END else value


def _words(name: bytes) -> list[int]:
    """Return the next 32 bytes of a name as words, filled up with the length of what is left of the name."""
    fill = len(name) | len(name) << 8
    fill = (fill | fill << 16) & _MASK
    words, value = [], fill
    for at, byte in enumerate(name[: 4 * _WORDS]):
        value = ((byte - 256 if byte > 127 else byte) + (value << 8)) & _MASK
        if at % 4 == 3:
            words.append(value)
            value = fill
    if len(words) < _WORDS:
        words.append(value)
    return words + [fill] * (_WORDS - len(words))


def _transform(a: int, b: int, c: int, d: int, words: list[int]) -> tuple[int, int, int, int]:
    """Return the state after 32 bytes more (half_md4_transform)."""
    before = (a, b, c, d)
    for at, shift in enumerate((3, 7, 11, 19, 3, 7, 11, 19)):
        value = (a + (d ^ (b & (c ^ d))) + words[at]) & _MASK
        a, b, c, d = d, (value << shift | value >> (32 - shift)) & _MASK, b, c
    for at, shift in _ROUND_2:
        value = (a + ((b & c) + ((b ^ c) & d)) + words[at] + _K2) & _MASK
        a, b, c, d = d, (value << shift | value >> (32 - shift)) & _MASK, b, c
    for at, shift in _ROUND_3:
        value = (a + (b ^ c ^ d) + words[at] + _K3) & _MASK
        a, b, c, d = d, (value << shift | value >> (32 - shift)) & _MASK, b, c
    first, second, third, fourth = (old + new & _MASK for old, new in zip(before, (a, b, c, d), strict=True))
    return first, second, third, fourth


def seed_words(seed: bytes) -> tuple[int, int, int, int]:
    """Return the four words of ``s_hash_seed``, a UUID. Zeros stand for the constants of MD4."""
    a, b, c, d = struct.unpack("<4I", seed)
    return (a, b, c, d) if any(seed) else (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
