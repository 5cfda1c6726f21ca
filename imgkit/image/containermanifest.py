"""The manifest of a container image for one architecture: what it is made of, in ``NAME-ARCH.container.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgkit.image.buildid import ImageIdentity
from imgkit.image.manifest import describe_root
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.layerwriter import ImageLayer
from imgkit.planning.baseimage import BaseImage
from imgkit.planning.plan import Plan
from imgkit.recipe import Recipe
from imgkit.rootfs.composecontainer import ContainerComposition


def describe_container(
    recipe: Recipe,
    plan: Plan,
    composition: ContainerComposition,
    identity: ImageIdentity,
    manifest: Descriptor,
    layers: Sequence[ImageLayer],
    image: BaseImage | None = None,
) -> Mapping[str, Any]:
    """Return the manifest of a finished image, ready for JSON.

    Args:
        manifest: the descriptor of the image's own manifest, whose digest names the image.
        layers: the lowest one first.
        image: the container image that it starts from; None for the minirootfs.
    """
    return {
        **describe_root(recipe, plan, composition, identity, image),
        "container": {
            "digest": manifest.digest,
            "layers": [
                {
                    "digest": layer.blob.descriptor.digest,
                    "diffId": layer.blob.diff_id,
                    "size": layer.blob.descriptor.size,
                    "reason": layer.history.created_by or "",
                }
                for layer in layers
                if layer.blob is not None
            ],
        },
    }
