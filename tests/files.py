"""Real Alpine files for tests, incompressible data, hashes of files, and trees that are deeper than paths can be."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.host import walk

ALPINE = Path(os.environ.get("IMGKIT_SHARED", Path(__file__).parents[2] / "shared")) / "alpine"
"""Folder of real Alpine files, by their path on a mirror. Tests that need a missing file are skipped."""
REAL_INDEX = ALPINE / "v3.17/main/aarch64/APKINDEX.tar.gz"
"""The signed index of a release's main repository: 5,004 packages."""
REAL_PACKAGE = ALPINE / "v3.17/main/aarch64/alpine-baselayout-3.4.0-r0.apk"
"""A signed package, whose name is that of another version."""
REAL_MINIROOTFS = {
    arch: ALPINE / f"v3.20/releases/{arch}/alpine-minirootfs-3.20.3-{arch}.tar.gz" for arch in ("x86_64", "aarch64")
}
NEEDS_ALPINE = "needs files of Alpine's own"
"""Start of the reason why such a test is skipped; the summary of a test run counts these tests."""
ALPINE_FILES = (REAL_INDEX, REAL_PACKAGE, *REAL_MINIROOTFS.values())

needs_alpine = pytest.mark.skipif(
    not all(path.is_file() for path in ALPINE_FILES), reason=f"{NEEDS_ALPINE} in {ALPINE}"
)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder during the block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def skipped_for_alpine(reasons: Iterable[str]) -> list[str]:
    """Return lines for the summary of a test run: how many tests lacked Alpine's files, and how to run them.

    Args:
        reasons: why tests were skipped.
    """
    count = sum(NEEDS_ALPINE in reason for reason in reasons)
    if not count:
        return []
    lines = [
        f"{count} tests on files of Alpine's own were skipped. To have them, put these files of an Alpine mirror into"
    ]
    lines += [f"{ALPINE} (or set IMGKIT_SHARED to the folder that has alpine/ in it):"]
    lines += [f"    {path.relative_to(ALPINE)}" for path in ALPINE_FILES]
    return [*lines, "pytest -m mirror asks the same questions of another real system (tests/test_real.py)."]


def noise(size: int) -> bytes:
    """Return bytes that do not compress and have no long runs of zeros. They are the same in every run."""
    return random.Random(size).randbytes(size)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    hasher = hashlib.sha256()
    with path.open("rb") as source:
        while data := source.read(1 << 20):
            hasher.update(data)
    return hasher.hexdigest()


@contextmanager
def nested(top: Path, depth: int, name: str = "d") -> Iterator[Path]:
    """Make ``depth`` nested folders in the new folder ``top``, as a guest can by changing into each of them.

    They are removed at the end of the block, because pytest itself cannot remove such a tree.
    """
    top.mkdir()
    try:
        nest(top, depth, name)
        yield top
    finally:
        walk.remove(top)


def nest(top: Path, depth: int, name: str = "d") -> None:
    """Make ``depth`` nested folders. The caller must remove a deep tree itself; see :func:`nested`."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def public(folder: Path) -> Path:
    """Let every user reach ``folder``, which pytest made for the user who runs the tests, and return it."""
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode
        if mode & 0o5 != 0o5:
            path.chmod(stat.S_IMODE(mode) | 0o755)
    return folder
