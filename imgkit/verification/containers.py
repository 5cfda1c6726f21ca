"""Compare a container image with the manifests beside it: its digest, and every file that its layers make.

A registry, or a copy by another tool, may compress the layers anew, so that all digests are other ones. Then the files
are what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgkit.errors import InputError
from imgkit.host import scratch
from imgkit.image.manifest import read_manifest
from imgkit.oci.applying import tree_of
from imgkit.oci.choosing import all_images, layout_entries
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import opened_layout
from imgkit.rootfs.digest import differences, records
from imgkit.verification import statement
from imgkit.verification.check import Verification


def manifest_beside(image: Path, arch: str) -> Path:
    """Return where the manifest lies: ``x-amd64.container.json`` for ``x.oci`` and ``x-amd64.docker.tar``."""
    name = image.name.partition(".")[0].removesuffix(f"-{arch}")
    return image.parent / f"{name}-{arch}.container.json"


def verify_container(image: Path, manifest: Path | None = None, reference: str = "") -> Verification:
    """Compare every image of a layout, or of an archive of one, with its manifest.

    Args:
        manifest: the manifest of the only image; None takes the ones that lie beside the image.
        reference: a tag or a digest in the layout; empty for all of its images.

    Raises:
        InputError: it is not a layout, its blobs are damaged, or a manifest is missing or damaged.
    """
    proved: list[str] = []
    faults: list[str] = []
    with opened_layout(image) as layout:
        images = all_images(layout, layout_entries(layout, reference))
        if not images:
            raise InputError(f"{image}: has no image in it")
        for descriptor in images:
            arch = "" if descriptor.platform is None else descriptor.platform.architecture
            path = manifest or manifest_beside(image, arch)
            stated = read_manifest(path)
            found = _compare(layout, descriptor, stated, path)
            faults += [f"{arch}: {line}" for line in found]
            if not found:
                proved.append(f"{arch}: {_summary(descriptor, stated)}")
    return Verification(proved, faults)


def _compare(layout: OciLayout, image: Descriptor, stated: Mapping[str, Any], path: Path) -> list[str]:
    """Return one line for each file that differs."""
    expected = statement.parse(stated, path).files
    with scratch.folder() as folder:
        root = tree_of(layout, image, folder / "contents")
        return differences(expected, records(root.tree))


def _summary(image: Descriptor, stated: Mapping[str, Any]) -> str:
    container = stated.get("container")
    digest = container.get("digest") if isinstance(container, dict) else None
    if digest == image.digest:
        return f"{image.digest}: the image that was built, with all of its {len(stated['files'])} files"
    return f"{image.digest}: another form of the image that was built, with all of its {len(stated['files'])} files"
