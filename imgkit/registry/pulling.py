"""Pull images from a registry into an OCI image layout, every digest and size verified.

name = ImageName.parse("docker.io/library/alpine:3.22")
digest = resolve(name)                                         # asks the registry once, reads nothing
root = fetch_image(name.with_digest(digest), layout, [Platform("linux", "arm64")])
"""

from __future__ import annotations

from collections.abc import Sequence

from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.access import RegistryAccess


def resolve(name: ImageName, *, access: RegistryAccess | None = None) -> str:
    """Return the digest that a tag has at this moment; that of the name itself if it has one.

    Args:
        access: how registries are reached (credentials, certificates, plain http); None takes the defaults.

    Raises:
        InputError: the registry does not have the image, refuses, or sends something else.
    """
    raise NotImplementedError


def fetch_image(
    name: ImageName,
    layout: OciLayout,
    platforms: Sequence[Platform] = (),
    *,
    access: RegistryAccess | None = None,
) -> Descriptor:
    """Pull an image into ``layout``: its documents and its layers, as they are. The layout's index is not touched.

    Blobs that the layout has already are verified and kept. What is at the digest of the result may be an index of
    several architectures or the manifest of one image, OCI's or Docker's.

    Args:
        platforms: which images of an index are fetched; none means all of them, attestations included. ``arm64`` and
            ``arm64/v8`` are the same platform.
        access: as for :func:`resolve`.

    Returns:
        The descriptor of what the name stands for: of the index, although images of other platforms in it may be
        missing from the layout, or of the manifest.

    Raises:
        InputError: the registry does not have the image, or not for one of the platforms; it refuses; or it sends
            something else.
        HostError: the disk is full.
    """
    raise NotImplementedError
