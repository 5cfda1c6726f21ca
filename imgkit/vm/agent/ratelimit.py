"""Limit the rate at which a guest sends data, lines and questions.

The limits are far above what any real agent sends, and a guest that floods the host exceeds them at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from imgkit.vm.failures import FloodError

LINES, LINES_PER_SECOND = 1_000_000, 50_000
"""Lines that are allowed at once, and per second after that. agentd writes one line for each read of up to 64 KiB."""
BYTES, BYTES_PER_SECOND = 512 << 20, 64 << 20
"""Bytes that are allowed at once, and per second after that."""
QUESTIONS, QUESTIONS_PER_SECOND = 1_000, 100
"""Questions of the agent to the host that are allowed at once, and per second after that; each waits for its answer."""


@dataclass
class RateLimit:
    """Allows ``burst`` units at once, and ``per_second`` more for every second since it was created.

    Attributes:
        unit: what is counted, in the plural, for the message of the error.
        burst: number of units that are allowed at once.
        per_second: number of further units that every second allows.
        total: number of units counted so far.
        started: time of creation on the monotonic clock, in seconds.
    """

    unit: str
    burst: int
    per_second: int
    total: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, number: int) -> None:
        """Count ``number`` more units.

        Raises:
            FloodError: the total exceeds what is allowed by now.
        """
        self.total += number
        seconds = time.monotonic() - self.started
        if self.total > self.burst + self.per_second * seconds:
            raise FloodError(
                f"the guest floods the host: {self.total} {self.unit} within {seconds:.0f} s "
                f"(the limit is {self.burst} and {self.per_second} a second)",
                hint="docs/reference/limits.md says what a guest may say",
            )


class StreamRateLimit:
    """The limits of one stream of lines: of its bytes and of its lines."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._lines = RateLimit("lines", LINES, LINES_PER_SECOND)
        self._bytes = RateLimit("bytes", BYTES, BYTES_PER_SECOND)

    def count(self, data: bytes) -> None:
        """Count the bytes and the lines of ``data``; to be called before anything is done with them.

        Raises:
            FloodError: the guest sent more than is allowed by now.
        """
        self._bytes.count(len(data))
        self._lines.count(data.count(b"\n"))
