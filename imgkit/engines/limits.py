"""Limits of reading an image, since a hostile image may be made to fill the disk or to take forever."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

DEFAULT_SECONDS = 900.0
"""How long reading an image may take altogether. An emulated appliance reads 100 MB in 20 s."""

DEFAULT_SIZE = 64 << 20
"""Bytes that are read of a single file of an image. The database of a thousand packages has 8 MiB."""

MORE_BYTES = "--limit reads more"
MORE_TIME = "--timeout gives it more"
"""Hints for an image that exceeds a limit."""


@dataclass(frozen=True)
class Limits:
    """Limits of reading one image. The time begins when the object is made.

    Attributes:
        size: bytes that are read of the image at most.
        seconds: how long reading may take.
    """

    size: int = DEFAULT_SIZE
    seconds: float = DEFAULT_SECONDS
    _start: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """The time at which reading must be complete, as :func:`time.monotonic` counts it."""
        return self._start + self.seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least one."""
        return max(1.0, self.deadline - time.monotonic())
