"""Compare the files of a build with the manifest: the image itself, and the kernel and the initramfs beside it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imgkit.errors import InputError
from imgkit.fetch.cache import hash_file
from imgkit.host import lookup
from imgkit.image.imagepaths import ROOT_FILESYSTEM, beside
from imgkit.image.manifest import read_manifest
from imgkit.verification import statement
from imgkit.verification.statement import StatedFile, Statement

_PREFIX = {"kernel": "vmlinuz", "initramfs": "initramfs"}


def is_as_built(path: Path, stated: StatedFile) -> bool:
    """Return whether a file is the one that was built. A file of another size is not read.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != stated.size:
            return False
        return hash_file(path) == stated.sha256
    except OSError as cause:
        raise InputError(f"{path}: {cause.strerror}") from cause


def manifest_of(image: Path) -> Path:
    """Return where the manifest of an image lies."""
    return beside(image, "manifest.json")


def boot_files(image: Path, arch: str) -> dict[str, Path]:
    """Return the files of a direct boot beside the image, which may be missing: "kernel" and "initramfs" → path.

    Their names are those in the manifest beside the image. Without a manifest, the last name in the alphabet that fits
    is taken; if there is no such file, the role is left out.

    Raises:
        InputError: the manifest is damaged.
    """
    path = manifest_of(image)
    has_manifest = lookup.exists(path, InputError) or path.is_symlink()
    stated = statement.parse(read_manifest(path), path).boot if has_manifest else {}
    names = {role: _last(image, role, arch) for role in _PREFIX}
    by_name = {role: image.parent / name for role, name in names.items() if name}
    return {**by_name, **{role: image.parent / file.name for role, file in stated.items()}}


def compare_boot_files(image: Path, stated: Statement) -> tuple[list[str], list[str]]:
    """Compare the files beside the image that ``imgkit boot --firmware direct`` would start from.

    Returns:
        The names of the files that are as they were built, and one line for each fault. A missing file is not a fault:
        an image is often kept without these files.

    Raises:
        InputError: a file cannot be read.
    """
    same = []
    faults = []
    for role, file in stated.boot.items():
        path = image.parent / file.name
        is_there = lookup.exists(path, InputError)
        if is_there or path.is_symlink():
            if is_there and is_as_built(path, file):
                same.append(file.name)
            else:
                faults.append(f"{file.name}: is not the {role} that was built")
        faults += _others(image, role, file.name, stated.arch)
    return same, faults


def _others(image: Path, role: str, name: str, arch: str) -> Iterator[str]:
    """Yield one line for each file that a direct boot may take in place of the one that was built.

    A direct boot uses the manifest beside the image, which may not be the one that is compared with here, or the names
    of the files if there is no manifest. Both ways are checked.
    """
    candidates = {_last(image, role, arch)}
    with suppress(InputError):  # with a damaged manifest nothing is booted
        booted = boot_files(image, arch)
        candidates |= {booted[role].name} if role in booted and lookup.exists(booted[role], InputError) else set()
    for other in sorted(candidates - {name, ""}):
        yield f"{other}: not in the manifest, and taken for the {role} by a direct boot"


def _last(image: Path, role: str, arch: str) -> str:
    """Return the last name in the alphabet that fits a role; empty if none does."""
    prefix = "vmlinux" if role == "kernel" and image.suffix == ROOT_FILESYSTEM else _PREFIX[role]
    names = [path.name for path in image.parent.glob(f"{prefix}-*-{arch}")] if arch.isalnum() else []
    return max(names, default="")
