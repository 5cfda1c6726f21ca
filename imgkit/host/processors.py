"""How many threads are worth having for work that uses the processor."""

from __future__ import annotations

import os

_MOST = 16  # threads; each takes memory, and more of them hardly make imgkit quicker


def usable_processors(most: int | None = None) -> int:
    """Return the number of processors that this process may use, which a container or ``taskset`` can limit.

    Args:
        most: a limit, for work of which each part takes memory.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if most is None else min(usable, most)
