"""The names of the files that a build of a disk puts into its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from imgkit.errors import HostError
from imgkit.host import lookup
from imgkit.image.imagepaths import beside
from imgkit.recipe import ImageFormat, Recipe


@dataclass(frozen=True)
class OutputFiles:
    """The names of the files of one image.

    Attributes:
        kernel, initramfs: for boots without firmware.
    """

    image: str
    manifest: str
    kernel: str
    initramfs: str


def output_files(recipe: Recipe, arch: str) -> OutputFiles:
    """Return the names of the files of a disk of this architecture."""
    image = f"{recipe.name}-{arch}.{recipe.format}"
    return OutputFiles(
        image,
        beside(Path(image), "manifest.json").name,
        f"vmlinuz-{recipe.kernel}-{arch}",
        f"initramfs-{recipe.kernel}-{arch}",
    )


def others_of(image: Path) -> list[Path]:
    """Return the images of other formats that share a manifest with ``image``, from earlier builds.

    Raises:
        HostError: the folder cannot be looked up.
    """
    paths = [image.with_suffix(f".{name}") for name in get_args(ImageFormat)]
    return [path for path in paths if path != image and lookup.is_file(path, HostError)]
