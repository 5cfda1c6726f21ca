"""Paths of a folder as text: do they stay in the folder?"""

from __future__ import annotations


def leads_out(path: str, depth: int = 0) -> bool:
    """Whether a relative path climbs out of a folder, judged by its text alone: links on its way are not followed.

    Args:
        path: with ``/`` between its parts.
        depth: how many folders deep the path starts, 0 in the folder itself.
    """
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False
