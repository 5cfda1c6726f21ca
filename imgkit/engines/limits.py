"""What reading an image may take: images come from strangers, and some are made to fill a disk or to hang."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

DEFAULT_SECONDS = 900.0
"""How long an image may be read, from the first question to the last. Emulated appliances read 100 MB in 20 s."""

DEFAULT_SIZE = 64 << 20
"""Bytes that are read of a single file of an image: the package database of a thousand packages has 8 MiB."""


@dataclass(frozen=True)
class Limits:
    """What reading an image may take.

    Attributes:
        size: bytes that are read of it at most.
        seconds: how long it may take from now on.
    """

    size: int = DEFAULT_SIZE
    seconds: float = DEFAULT_SECONDS
    _start: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """When the time is over, in the time of :func:`time.monotonic`."""
        return self._start + self.seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least one."""
        return max(1.0, self.deadline - time.monotonic())
