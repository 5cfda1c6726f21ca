"""How much a guest may say in a given time. No agent comes near it; a guest that floods is over it at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from imgkit.vm.failures import FloodError

LINES, LINES_PER_SECOND = 1_000_000, 50_000
"""Lines at the beginning, and in every second since: agentd makes a line of what it reads at once, up to 64 KiB."""
BYTES, BYTES_PER_SECOND = 512 << 20, 64 << 20
QUESTIONS, QUESTIONS_PER_SECOND = 1_000, 100
"""Questions of the agent to the host; each waits for its answer."""


@dataclass
class RateLimit:
    """An allowance of ``first`` and of ``per_second`` in every second since it was made."""

    what: str
    first: int
    per_second: int
    total: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, number: int) -> None:
        """Take ``number`` from the allowance.

        Raises:
            FloodError: there is not as much.
        """
        self.total += number
        seconds = time.monotonic() - self.started
        if self.total > self.first + self.per_second * seconds:
            raise FloodError(
                f"the guest floods the host: {self.total} {self.what} within {seconds:.0f} s "
                f"(allowed are {self.first} and {self.per_second} a second)",
                hint="docs/limits.md says what a guest may say",
            )


class StreamRateLimit:
    """The allowances of a stream of lines."""

    def __init__(self) -> None:
        self._lines = RateLimit("lines", LINES, LINES_PER_SECOND)
        self._bytes = RateLimit("bytes", BYTES, BYTES_PER_SECOND)

    def count(self, data: bytes) -> None:
        """Count ``data`` before anything is done with it.

        Raises:
            FloodError: it is too much.
        """
        self._bytes.count(len(data))
        self._lines.count(data.count(b"\n"))
