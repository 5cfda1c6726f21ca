"""Compare the files of a build with their manifest: the image itself, and the kernel and the initramfs beside it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from imgkit.errors import InputError
from imgkit.fetch.cache import hash_file
from imgkit.verify.statement import StatedFile, Statement

_PREFIX = {"kernel": "vmlinuz", "initramfs": "initramfs"}


def is_as_built(path: Path, stated: StatedFile) -> bool:
    """Whether a file is the one that was built. One of another size is not read.

    Raises:
        InputError: it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != stated.size:
            return False
        return hash_file(path) == stated.sha256
    except OSError as cause:
        raise InputError(f"{path}: {cause.strerror}") from cause


def compare_boot_files(folder: Path, stated: Statement) -> tuple[list[str], list[str]]:
    """Compare what ``imgkit boot --firmware direct`` would start from beside the image.

    Returns:
        The names of those that are as they were built, and one line for each fault. A file that is not there is
        neither: an image is often kept without them.
    """
    same = []
    faults = []
    for role, file in stated.boot.items():
        path = folder / file.name
        if path.exists() or path.is_symlink():
            if path.exists() and is_as_built(path, file):
                same.append(file.name)
            else:
                faults.append(f"{file.name}: is not the {role} that was built")
        faults += _others(folder, role, file.name, stated.arch)
    return same, faults


def _others(folder: Path, role: str, name: str, arch: str) -> Iterator[str]:
    """Files that a direct boot, which takes the last of all that fit, would prefer to the one that was built."""
    if not arch.isalnum():
        return
    for path in sorted(folder.glob(f"{_PREFIX[role]}-*-{arch}")):
        if path.name > name:
            yield f"{path.name}: not in the manifest, and taken for the {role} by a direct boot"
