"""Compare the files of a build with their manifest: the image itself, and the kernel and the initramfs beside it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imgkit.errors import InputError
from imgkit.fetch.cache import hash_file
from imgkit.image.manifest import read_manifest
from imgkit.verification import statement
from imgkit.verification.statement import StatedFile, Statement

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


def manifest_of(image: Path) -> Path:
    """Where the manifest of an image lies."""
    return image.with_suffix(".manifest.json")


def boot_files(image: Path, arch: str) -> dict[str, Path]:
    """What a direct boot starts from: "kernel" and "initramfs" → file beside the image, which may be missing.

    Their names are those in the manifest beside the image. Without one, the last name that fits is taken; a role of
    which there is no such file is left out.

    Raises:
        InputError: the manifest is damaged.
    """
    path = manifest_of(image)
    there = path.exists() or path.is_symlink()
    stated = statement.parse(read_manifest(path), path).boot if there else {}
    chosen = {role: _last(image.parent, role, arch) for role in _PREFIX}
    found = {role: image.parent / file for role, file in chosen.items() if file}
    return {**found, **{role: image.parent / file.name for role, file in stated.items()}}


def compare_boot_files(image: Path, stated: Statement) -> tuple[list[str], list[str]]:
    """Compare what ``imgkit boot --firmware direct`` would start from beside the image.

    Returns:
        The names of those that are as they were built, and one line for each fault. A file that is not there is
        neither: an image is often kept without them.

    Raises:
        InputError: a file cannot be read.
    """
    same = []
    faults = []
    for role, file in stated.boot.items():
        path = image.parent / file.name
        if path.exists() or path.is_symlink():
            if path.exists() and is_as_built(path, file):
                same.append(file.name)
            else:
                faults.append(f"{file.name}: is not the {role} that was built")
        faults += _others(image, role, file.name, stated.arch)
    return same, faults


def _others(image: Path, role: str, name: str, arch: str) -> Iterator[str]:
    """Files that a direct boot takes in place of the one that was built, whether or not that is there.

    It goes by the manifest beside the image, which need not be the one that is believed here, and by the names of the
    files once there is none. So both are asked.
    """
    chosen = {_last(image.parent, role, arch)}
    with suppress(InputError):  # a damaged manifest boots nothing
        found = boot_files(image, arch)
        chosen |= {found[role].name} if role in found and found[role].exists() else set()
    for other in sorted(chosen - {name, ""}):
        yield f"{other}: not in the manifest, and taken for the {role} by a direct boot"


def _last(folder: Path, role: str, arch: str) -> str:
    """The last of all names that fit; empty if none does."""
    names = [path.name for path in folder.glob(f"{_PREFIX[role]}-*-{arch}")] if arch.isalnum() else []
    return max(names, default="")
