"""Check the text of relative paths: do they stay in their folder?"""

from __future__ import annotations


def leads_out(path: str, depth: int = 0) -> bool:
    """Return whether the text of a relative path leads out of a folder. Links on its way are not followed.

    Args:
        path: with ``/`` between its parts.
        depth: number of folders that the path's start is below the folder; 0 for the folder itself.
    """
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False
