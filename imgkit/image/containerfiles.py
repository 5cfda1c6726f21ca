"""Put a finished container image into place: a layout, archives, and the manifests beside them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgkit.errors import HostError
from imgkit.host import interrupts, lookup, scratch, wholefile
from imgkit.image.manifest import write_manifest
from imgkit.image.workspace import SCRATCH_PREFIX
from imgkit.oci.archives import write_docker_archive, write_oci_archive
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.layerwriter import ImageLayer
from imgkit.oci.ocilayout import OciLayout
from imgkit.recipe import Output, Recipe


@dataclass(frozen=True)
class BuiltImage:
    """The image of one architecture.

    Attributes:
        manifest: the descriptor of its manifest.
        build_id: equal for equal images (:mod:`imgkit.image.buildid`).
        layers: the lowest one first.
        description: the manifest for people and programs (:mod:`imgkit.image.containermanifest`).
    """

    arch: str
    manifest: Descriptor
    build_id: str
    layers: tuple[ImageLayer, ...]
    description: Mapping[str, Any]


def place_container(
    recipe: Recipe,
    outputs: Sequence[Output],
    layout: OciLayout,
    images: Sequence[BuiltImage],
    out: Path,
    *,
    name: str,
) -> tuple[Path, ...]:
    """Write the forms that were asked for, and rename them into place together.

    Args:
        layout: the finished layout in a scratch folder; it is moved.
        images: the images in the layout.
        name: what archives call the image.

    Returns:
        The new files and folders, the most important one first.

    Raises:
        HostError: a folder that is not a layout is in the place of the new one.
    """
    targets: dict[str, Path] = {}
    with scratch.folder(out, SCRATCH_PREFIX) as near:  # WORK_DIR may be on another filesystem
        if "oci" in outputs:
            targets["layout"] = out / f"{recipe.name}.oci"
            _check_replaceable(targets["layout"])
        if "oci-archive" in outputs:
            targets["oci-archive"] = out / f"{recipe.name}.oci.tar"
            write_oci_archive(layout, near / "oci-archive")
        if "docker-archive" in outputs:
            for image in images:
                targets[f"{image.arch}.docker.tar"] = out / f"{recipe.name}-{image.arch}.docker.tar"
                write_docker_archive(layout, image.manifest, near / f"{image.arch}.docker.tar", name=name)
        for image in images:
            targets[f"{image.arch}.json"] = out / f"{recipe.name}-{image.arch}.container.json"
            write_manifest(image.description, near / f"{image.arch}.json")
        if "oci" in outputs:
            shutil.move(layout.folder, near / "layout")
        placed = {near / file: target for file, target in targets.items()}
        wholefile.settle(placed)
        with scratch.alone(out), interrupts.held_back():
            if "oci" in outputs and targets["layout"].exists():
                targets["layout"].rename(near / "replaced")
            wholefile.rename(placed)
    return tuple(targets.values())


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace something that is not a layout."""
    if lookup.exists(folder, HostError) and not lookup.is_file(folder / "oci-layout", HostError):
        raise HostError(
            f"{folder}: is in the way, and not an OCI image layout", hint="remove it, or choose another --out"
        )
