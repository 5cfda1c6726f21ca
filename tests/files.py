"""Real Alpine files that tests may use, a short question about files, and trees that are deeper than paths."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ALPINE = Path(os.environ.get("IMGKIT_SHARED", Path(__file__).parents[2] / "shared")) / "alpine"
"""Files of Alpine's own beside the repository; tests skip where they are not there."""
REAL_INDEX = ALPINE / "v3.17/main/aarch64/APKINDEX.tar.gz"
"""The signed index of a release's main repository: 5,004 packages."""


def digest(path: Path) -> str:
    """SHA-256 of its contents."""
    found = hashlib.sha256()
    with path.open("rb") as source:
        while data := source.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def nest(top: Path, depth: int, name: str = "d") -> None:
    """Make ``depth`` folders in one another, as a guest can that changes into each."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
