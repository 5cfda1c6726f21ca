"""Real Alpine files that tests may use, noise, a short question about files, and trees that are deeper than paths."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.host import walk

ALPINE = Path(os.environ.get("IMGKIT_SHARED", Path(__file__).parents[2] / "shared")) / "alpine"
"""Files of Alpine's own beside the repository; tests skip where they are not there."""
REAL_INDEX = ALPINE / "v3.17/main/aarch64/APKINDEX.tar.gz"
"""The signed index of a release's main repository: 5,004 packages."""


def noise(size: int) -> bytes:
    """Bytes that do not compress and are never zero for long. They are the same in every run."""
    return random.Random(size).randbytes(size)


def digest(path: Path) -> str:
    """SHA-256 of its contents."""
    found = hashlib.sha256()
    with path.open("rb") as source:
        while data := source.read(1 << 20):
            found.update(data)
    return found.hexdigest()


@contextmanager
def nested(top: Path, depth: int, name: str = "d") -> Iterator[Path]:
    """Have ``depth`` folders in one another in the new folder ``top``, as a guest can make that changes into each.

    They are removed at the end: pytest itself cannot remove such a tree.
    """
    top.mkdir()
    try:
        nest(top, depth, name)
        yield top
    finally:
        walk.remove(top)


def nest(top: Path, depth: int, name: str = "d") -> None:
    """Make ``depth`` folders in one another. Who makes many must have them removed, see :func:`nested`."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def public(folder: Path) -> Path:
    """``folder``, which pytest made for the user who runs the tests, with a way to it for every user."""
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode
        if mode & 0o5 != 0o5:
            path.chmod(stat.S_IMODE(mode) | 0o755)
    return folder
