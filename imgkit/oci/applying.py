"""The root filesystem of an image: its layers, verified and applied to a Tree.

    image = tree_of(OciLayout.open(folder), manifest, spool)
    image.tree.text("etc/os-release")

What is verified: the manifest, the configuration and every layer by size and digest before they are read; every layer
also by the digest of what it inflates to, which the configuration has.
Sources: image-spec 1.1, "Image Manifest Property Descriptions", "Layer DiffID" and "Applying Changesets".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from imgkit.errors import InputError
from imgkit.host.progress import bar
from imgkit.oci import mediatypes
from imgkit.oci.changesets import Allowance, Changeset
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.documents import ImageConfig, ImageManifest, parse_config, parse_manifest
from imgkit.oci.inflating import inflated
from imgkit.oci.ocilayout import OciLayout
from imgkit.tree import Device, File, HardLink, Node, Tree, TreeError
from imgkit.tree.members import Spool
from imgkit.tree.tarstream import TarError

_SET_ID = 0o6000
_CAPABILITY = "security.capability"
_ENCRYPTED = "+encrypted"  # media types of encrypted layers end with it (ocicrypt, "Encrypted layers")
_FOREIGN = ("application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign.")


@dataclass(frozen=True)
class InflationLimits:
    """What the layers of an image may inflate to.

    Attributes:
        total: bytes of all layers together.
        ratio: bytes for each byte of the layers' blobs; gzip can have 1,032, zstd more than 10,000.
        free: bytes that the layers may have together whatever their ratio is.
    """

    total: int = 64 << 30
    ratio: int = 200
    free: int = 1 << 30

    def of(self, size: int) -> int:
        """Return the bytes that layers whose blobs have ``size`` bytes together may inflate to."""
        return min(self.total, max(self.free, size * self.ratio))


@dataclass(frozen=True)
class ImageRoot:
    """The root filesystem of an image, and what it was made from.

    Attributes:
        tree: as the layers describe it, but without ``left_out``.
        manifest: the image's manifest.
        config: the image's configuration.
        layers: the descriptors of its layers, the lowest first.
        privileged: paths of the programs that run with other rights than those of who starts them: set-user-id,
            set-group-id, or with capabilities.
        left_out: paths of device nodes and FIFOs.
    """

    tree: Tree
    manifest: ImageManifest
    config: ImageConfig
    layers: tuple[Descriptor, ...]
    privileged: tuple[str, ...]
    left_out: tuple[str, ...]


def tree_of(
    layout: OciLayout,
    manifest: Descriptor,
    spool: Path,
    *,
    limits: InflationLimits | None = None,
    allowance: Allowance | None = None,
) -> ImageRoot:
    """Verify an image of a layout, and apply its layers in their order.

    Args:
        manifest: the descriptor of the image's manifest.
        spool: a new file, into which the contents of files are inflated. The Tree refers to it.
        limits: on what the layers inflate to.
        allowance: what the layers may cost otherwise; it is used up.

    Raises:
        InputError: a document or a layer is missing, damaged, not of the image, or more than the limits allow; or a
            layer has an entry that leads out of the image.
    """
    limits, allowance = limits or InflationLimits(), allowance or Allowance()
    document, config = read_image(layout, manifest)
    layers = tuple(layer.value for layer in document.layers)
    size = sum(layer.size for layer in layers)
    tree, left = Tree(), limits.of(size)
    with Spool(spool) as contents, bar(size, "base layers") as progress:
        for layer, diff_id in zip(layers, config.rootfs.diff_ids, strict=True):
            with layout.verified(layer) as source:
                pieces = _Measured(source, layer.digest, left, diff_id.partition(":")[0])
                _apply(Changeset(tree, contents, allowance), pieces, layer.digest)
            if pieces.diff_id != diff_id:
                raise InputError(f"{layer.digest}: inflates to {pieces.diff_id}, not to {diff_id}")
            left -= pieces.size
            progress.update(layer.size)
    left_out = _leave_out_devices(tree)
    return ImageRoot(tree, document, config, layers, privileged_in(tree), left_out)


def read_image(layout: OciLayout, descriptor: Descriptor) -> tuple[ImageManifest, ImageConfig]:
    """Read and check the manifest and the configuration of an image.

    Raises:
        InputError: one of them is missing or damaged, or they are not those of an image for Linux whose layers imgkit
            can read.
    """
    name = descriptor.digest
    if descriptor.media_type not in mediatypes.MANIFESTS:
        raise InputError(f"{name}: has the media type {descriptor.media_type[:80]!r}, so it is not an image")
    manifest = parse_manifest(layout.read(descriptor), name)
    if manifest.config.mediaType not in mediatypes.CONFIGS:
        described = manifest.artifactType or manifest.config.mediaType
        raise InputError(f"{name}: is an artifact of the type {described[:80]!r}, not an image")
    config = parse_config(layout.read(manifest.config.value), manifest.config.digest)
    if config.os != "linux":
        raise InputError(f"{name}: is an image for {config.os[:40]!r}, not for Linux")
    _check_layers(manifest, config, name)
    return manifest, config


def privileged_in(tree: Tree) -> tuple[str, ...]:
    """Return the paths of the files that are set-user-id or set-group-id, or that have capabilities."""

    def is_privileged(node: Node) -> bool:
        file = tree[node.target] if isinstance(node, HardLink) else node
        return isinstance(file, File) and bool(file.mode & _SET_ID or _CAPABILITY in file.xattrs)

    return tuple(path for path, node in tree.items() if is_privileged(node))


def drop_privileges(tree: Tree) -> None:
    """Take the set-user-id and set-group-id bits and the capabilities from all files of ``tree``."""
    for path in privileged_in(tree):
        node = tree[path]
        if isinstance(node, File):
            xattrs = {name: value for name, value in node.xattrs.items() if name != _CAPABILITY}
            tree.amend(path, replace(node, mode=node.mode & ~_SET_ID, xattrs=xattrs))


def _check_layers(manifest: ImageManifest, config: ImageConfig, name: str) -> None:
    if config.rootfs.type != "layers":
        raise InputError(f"{name}: its root filesystem is of the type {config.rootfs.type[:40]!r}, not 'layers'")
    for layer in manifest.layers:
        if layer.mediaType.endswith(_ENCRYPTED):
            raise InputError(f"{layer.digest}: is an encrypted layer", hint="use an image that is not encrypted")
        if layer.mediaType.startswith(_FOREIGN):
            raise InputError(f"{layer.digest}: is a layer that registries must not distribute, as those of Windows are")
        if layer.mediaType not in mediatypes.LAYERS:
            raise InputError(f"{layer.digest}: has the media type {layer.mediaType[:80]!r}, which is not a layer's")
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        raise InputError(f"{name}: has {layers} layers, but its configuration has the diff ids of {diff_ids}")


class _Measured:
    """The bytes that a layer inflates to, counted and hashed as they pass."""

    def __init__(self, source: BinaryIO, name: str, limit: int, algorithm: str) -> None:
        self._pieces = inflated(source, name, limit)
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._hash.update(piece)
        self.size += len(piece)
        return piece

    @property
    def diff_id(self) -> str:
        """The digest of what has passed."""
        return f"{self._hash.name}:{self._hash.hexdigest()}"


def _apply(changeset: Changeset, pieces: Iterator[bytes], name: str) -> None:
    try:
        changeset.apply(pieces)
    except (TarError, TreeError) as cause:
        raise InputError(f"{name}: {cause}") from cause


def _leave_out_devices(tree: Tree) -> tuple[str, ...]:
    """Remove device nodes and FIFOs, which imgkit writes into no image; return their paths."""
    paths = tuple(path for path, node in tree.items() if isinstance(node, Device))
    for path in paths:
        tree.remove(path)
    return paths
