"""How many threads are worth having for work that uses the processor."""

from __future__ import annotations

import os

_MOST = 16  # threads; each takes memory, and more of them hardly make imgkit quicker


def usable_processors() -> int:
    """Return the number of processors that this process may use, at most 16."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _MOST)
