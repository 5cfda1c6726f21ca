"""A small fuzzer for hosts without a coverage-guided one: it changes seeds at random, in the same way every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_INTERESTING = (b"\0", b"\n", b" ", b"/", b":", b"=", b"\xff", b"\xc2\x85", b"-1", b"0", b"4294967296", b"9" * 5000)
_LONGEST = 1 << 16


class Mutator:
    """Makes inputs out of ``seeds`` and ``words``; equal seeds of the random numbers make equal inputs."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
        self._seeds = [seed for seed in seeds if seed] or [b"a"]
        self._words = [*words, *_INTERESTING]
        self._random = random.Random(seed)
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            self._byte, self._cut, self._repeat, self._word, self._word, self._swap, self._mix,
        )  # fmt: skip

    def next(self) -> bytes:
        """Return the next input."""
        data = self._random.choice(self._seeds)
        for _ in range(self._random.choice((1, 1, 2, 4, 8, 16))):
            data = self._random.choice(self._changes)(data or b"a")[:_LONGEST]
        return data

    def _place(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)

    def _byte(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data))
        return data[:at] + bytes([self._random.randrange(256)]) + data[at + 1 :]

    def _cut(self, data: bytes) -> bytes:
        start, end = sorted((self._place(data), self._place(data)))
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = sorted((self._place(data), self._place(data)))
        return data[:end] + data[start:end] * self._random.choice((1, 2, 100)) + data[end:]

    def _word(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + self._random.choice(self._words) + data[at:]

    def _swap(self, data: bytes) -> bytes:
        """Put a word in place of bytes of that length."""
        word, at = self._random.choice(self._words), self._place(data)
        return data[:at] + word + data[at + len(word) :]

    def _mix(self, data: bytes) -> bytes:
        other = self._random.choice(self._seeds)
        return data[: self._place(data)] + other[self._place(other) :]
