"""Find out whether processes have ended."""

from __future__ import annotations

import time
from pathlib import Path


def gone(pid: int, seconds: float = 0.0) -> bool:
    """Return whether a process has ended, waiting up to ``seconds`` for it. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while _runs(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went between opening and reading
        return False
