"""A container image as the base of a root filesystem: its Tree, and its layers for the images that are built on it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from imgkit.errors import InputError
from imgkit.host import scratch
from imgkit.oci import mediatypes
from imgkit.oci.applying import drop_privileges, tree_of
from imgkit.oci.choosing import same_platform
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import ImageConfig, RuntimeConfig
from imgkit.oci.layerwriter import ImageLayer, layers_of
from imgkit.oci.ocilayout import OciLayout
from imgkit.planning.imagestore import FoundImage
from imgkit.planning.plan import ImageSource
from imgkit.tree import File, Tree

log = logging.getLogger("imgkit")

_RELEASE_FILES = ("etc/os-release", "usr/lib/os-release")  # os-release(5)
_CHUNK = 1 << 20
_MOST_NAMED = 5  # paths that a message names
_OCI_TYPES = {
    mediatypes.DOCKER_LAYER: mediatypes.LAYER,
    mediatypes.DOCKER_LAYER_GZIP: mediatypes.LAYER_GZIP,
    mediatypes.DOCKER_LAYER_ZSTD: mediatypes.LAYER_ZSTD,
}

PLATFORMS: Mapping[str, Platform] = MappingProxyType(
    {"x86_64": Platform("linux", "amd64"), "aarch64": Platform("linux", "arm64")}
)
"""Alpine's name of an architecture → the platform of its images."""


@dataclass(frozen=True)
class BaseImage:
    """A verified image, whose layers can be reused as they are.

    Attributes:
        source: which image it is.
        layout: where its blobs are.
        layers: its layers with their history, the lowest first, with the media types of OCI.
        config: its configuration.
        tree: the root filesystem as the layers describe it, without device nodes. What is built on the image is
            compared with it.
        privileged: paths of its set-user-id and set-group-id programs, and of those with capabilities.
        left_out: paths of its device nodes and FIFOs.
    """

    source: ImageSource
    layout: OciLayout
    layers: tuple[ImageLayer, ...]
    config: ImageConfig
    tree: Tree
    privileged: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def runtime(self) -> RuntimeConfig:
        """How its program is run, which images that are built on it inherit."""
        return self.config.runtime

    @property
    def description(self) -> str:
        """What is in the image, in its own words: ``Debian GNU/Linux 12 (bookworm)``; empty if it does not say."""
        return _pretty_name(self.tree)

    def copy_layers(self, target: OciLayout) -> None:
        """Copy the blobs of the layers into another layout, except those that it has. They are verified again.

        Raises:
            InputError: a blob has changed.
        """
        for layer in self.layers:
            if layer.blob is not None and not target.has(layer.blob.descriptor):
                self._copy(layer.blob.descriptor, target)

    def _copy(self, blob: Descriptor, target: OciLayout) -> None:
        with scratch.folder(target.folder, ".blob-") as near:
            with self.layout.verified(blob) as source, (near / "blob").open("xb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
            target.adopt(near / "blob", blob)


def open_base(found: FoundImage, platform: Platform, spool: Path) -> BaseImage:
    """Verify an image and read its layers.

    Args:
        spool: a new file, which takes the contents of its files.

    Raises:
        InputError: the image is damaged, hostile, or for another platform than it is listed for.
    """
    root = tree_of(found.layout, found.manifest, spool)
    config = root.config
    own = Platform(config.os, config.architecture, config.variant or "")
    if own.architecture != platform.architecture or (own.variant and not same_platform(own, platform)):
        raise InputError(f"{found.name}: the image that is listed for {platform} says that it is for {own}")
    source = ImageSource(
        found.name, found.digest, found.manifest.digest, found.manifest.size, _created(config), found.vouched_by
    )
    return BaseImage(
        source=source,
        layout=found.layout,
        layers=tuple(_as_oci(layer) for layer in layers_of(root.manifest, config)),
        config=config,
        tree=root.tree,
        privileged=root.privileged,
        left_out=root.left_out,
    )


def usable_tree(image: BaseImage, *, keep_privileges: bool) -> Tree:
    """Return a Tree to build on. Programs with other rights, and what was left out, are named in warnings.

    Args:
        keep_privileges: whether programs keep set-user-id and set-group-id bits and capabilities.
    """
    tree = image.tree.copy()
    name = image.source.name
    if image.left_out:
        log.warning("%s: device nodes and FIFOs of the base are left out: %s", name, _listed(image.left_out))
    if image.privileged:
        done = "keep their rights" if keep_privileges else "lose their rights"
        log.info("%s: set-user-id and similar programs of the base %s: %s", name, done, ", ".join(image.privileged))
    if not keep_privileges:
        drop_privileges(tree)
    return tree


def _as_oci(layer: ImageLayer) -> ImageLayer:
    """Return a layer with OCI's media type where it has Docker's: manifests of OCI have no others."""
    if layer.blob is None:
        return layer
    described = layer.blob.descriptor
    media_type = _OCI_TYPES.get(described.media_type, described.media_type)
    return replace(layer, blob=replace(layer.blob, descriptor=replace(described, media_type=media_type)))


def _listed(paths: tuple[str, ...]) -> str:
    return ", ".join(f"/{path}" for path in paths[:_MOST_NAMED]) + (" …" if len(paths) > _MOST_NAMED else "")


def _created(config: ImageConfig) -> int:
    """Return when an image was made, in seconds since 1970; 0 if it does not say, or something impossible."""
    text = (config.created or "").replace("Z", "+00:00")
    head, dot, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if dot else ""  # Go writes nine digits, which Python 3.10 does not read
    try:
        moment = datetime.fromisoformat(head + zone)
    except ValueError:
        return 0
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()))


def _pretty_name(tree: Tree) -> str:
    """Return PRETTY_NAME of os-release(5)."""
    for path in _RELEASE_FILES:
        if isinstance(tree.stat(path), File):
            lines = tree.read(path, 1 << 20).decode(errors="replace").splitlines()
            names = [line.partition("=")[2].strip("\"'") for line in lines if line.startswith("PRETTY_NAME=")]
            return names[0][:80] if names else ""
    return ""
