"""How many processors this process may use."""

from __future__ import annotations

import os


def usable_processors(most: int | None = None) -> int:
    """Return the number of processors that this process may use, which a container or ``taskset`` can limit.

    Args:
        most: a limit, for work of which each part takes memory.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if most is None else min(usable, most)
