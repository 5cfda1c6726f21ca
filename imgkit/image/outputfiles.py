"""The names of the files that a build of a disk puts into its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from imgkit.errors import HostError
from imgkit.host import lookup
from imgkit.image.imagepaths import ROOT_FILESYSTEM, beside
from imgkit.recipe import DiskOutput, ImageFormat, Recipe


@dataclass(frozen=True)
class OutputFiles:
    """The names of the files of one image.

    Attributes:
        kernel, initramfs: for boots without firmware.
        firecracker: Firecracker's configuration, beside a root filesystem; None beside a disk.
    """

    image: str
    manifest: str
    kernel: str
    initramfs: str
    firecracker: str | None = None


def output_files(recipe: Recipe, arch: str, output: DiskOutput = "disk") -> OutputFiles:
    """Return the names of the files of a disk or root filesystem of this architecture."""
    is_disk = output == "disk"
    image = f"{recipe.name}-{arch}{f'.{recipe.format}' if is_disk else ROOT_FILESYSTEM}"
    return OutputFiles(
        image=image,
        manifest=beside(Path(image), "manifest.json").name,
        kernel=f"{'vmlinuz' if is_disk else 'vmlinux'}-{recipe.kernel}-{arch}",
        initramfs=f"initramfs-{recipe.kernel}-{arch}",
        firecracker=None if is_disk else f"{recipe.name}-{arch}.firecracker.json",
    )


def others_of(image: Path) -> list[Path]:
    """Return the images of other formats that share a manifest with ``image``, from earlier builds.

    Raises:
        HostError: the folder cannot be looked up.
    """
    if image.suffix == ROOT_FILESYSTEM:
        return []
    paths = [image.with_suffix(f".{name}") for name in get_args(ImageFormat)]
    return [path for path in paths if path != image and lookup.is_file(path, HostError)]
