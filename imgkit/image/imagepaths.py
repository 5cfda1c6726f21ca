"""How images are named: a disk image by its file, a container image by its layout or archive."""

from __future__ import annotations

from pathlib import Path

from imgkit.errors import InputError
from imgkit.host import lookup

ROOT_FILESYSTEM = ".ext4"
"""The end of the name of a root filesystem without a disk around it."""


def beside(image: Path, ending: str) -> Path:
    """Return the path of a file that belongs to a disk image: ``manifest.json`` → ``linux-amd64.manifest.json``.

    That of a root filesystem has another name, ``linux-amd64.rootfs.manifest.json``, as both may lie in one folder.
    """
    return image.with_suffix(f".rootfs.{ending}" if image.suffix == ROOT_FILESYSTEM else f".{ending}")


def is_container_image(image: Path) -> bool:
    """Return whether this is a container image and not a disk image: a folder, or a file called ``.tar``.

    Raises:
        InputError: the path cannot be looked up.
    """
    path, _ = split_reference(image)
    return lookup.is_folder(path, InputError) or path.suffix == ".tar"


def split_reference(image: Path) -> tuple[Path, str]:
    """Return the layout and the tag of ``LAYOUT:TAG``; the tag is empty if there is none, or a file has that name.

    Raises:
        InputError: the path cannot be looked up.
    """
    path, colon, tag = str(image).rpartition(":")
    if lookup.exists(image, InputError) or not colon or "/" in tag:
        return image, ""
    return Path(path), tag
