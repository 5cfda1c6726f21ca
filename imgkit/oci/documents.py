"""The JSON documents of an image, as untrusted inputs: indexes, manifests and configurations, within limits.

    manifest = parse_manifest(data, name)        # InputError unless it is an image manifest
    config = parse_config(layout.read(manifest.config), name)

Documents that imgkit writes are made in :mod:`imgkit.oci.writing`.
Sources: image-spec 1.1, "Image Index", "Image Manifest" and "Image Configuration".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from imgkit.errors import InputError
from imgkit.host.jsonfile import StrictModel, checked, parse_json
from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor, Platform, is_digest

MAX_DOCUMENT = 4 << 20
"""Bytes of an index, a manifest or a configuration. Registries take manifests of at most 4 MiB (distribution-spec 1.1,
"Pushing Manifests")."""
_MAX_LAYERS = 1000  # overlayfs mounts at most 500, Docker allows 127
_MAX_MANIFESTS = 1000
_MAX_BLOB = 1 << 40


def _digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"{text[:80]!r} is not a digest")
    return text


_NONE = BeforeValidator(lambda value: [] if value is None else value)  # Go writes null for an empty list: umoci init
Digest = Annotated[str, AfterValidator(_digest)]
Text = Annotated[str, StringConstraints(max_length=64 << 10)]
Name = Annotated[str, StringConstraints(max_length=300)]
Annotations = dict[Name, Text]


class PlatformObject(StrictModel):
    """The platform of a manifest in an index."""

    os: Name = ""
    architecture: Name = ""
    variant: Name = ""


class DescriptorObject(StrictModel):
    """A content descriptor."""

    mediaType: Name  # noqa: N815 - as it is in the file
    digest: Digest
    size: Annotated[int, Field(ge=0, le=_MAX_BLOB)]
    platform: PlatformObject | None = None
    annotations: Annotations | None = None
    artifactType: Name | None = None  # noqa: N815 - as it is in the file

    @property
    def value(self) -> Descriptor:
        """The descriptor as a value."""
        given = self.platform
        platform = None if given is None else Platform(given.os, given.architecture, given.variant)
        return Descriptor(
            self.mediaType, self.digest, self.size, platform, self.annotations or {}, self.artifactType or ""
        )


class ImageIndex(StrictModel):
    """An image index. ``manifests`` may be images of several platforms, attestations, or further indexes."""

    schemaVersion: int  # noqa: N815 - as it is in the file
    mediaType: Name | None = None  # noqa: N815 - as it is in the file
    manifests: Annotated[list[DescriptorObject], Field(max_length=_MAX_MANIFESTS), _NONE]
    annotations: Annotations | None = None


class ImageManifest(StrictModel):
    """An image manifest: the configuration and the layers of one image, the lowest layer first."""

    schemaVersion: int  # noqa: N815 - as it is in the file
    mediaType: Name | None = None  # noqa: N815 - as it is in the file
    artifactType: Name | None = None  # noqa: N815 - as it is in the file
    config: DescriptorObject
    layers: Annotated[list[DescriptorObject], Field(max_length=_MAX_LAYERS), _NONE]
    subject: DescriptorObject | None = None
    annotations: Annotations | None = None


class RuntimeConfig(StrictModel):
    """The member ``config`` of an image configuration: how its program is run."""

    User: Text | None = None
    Env: list[Text] | None = None
    Entrypoint: list[Text] | None = None
    Cmd: list[Text] | None = None
    WorkingDir: Text | None = None
    Labels: Annotations | None = None
    StopSignal: Text | None = None
    ExposedPorts: dict[Name, dict[str, Any]] | None = None
    Volumes: dict[Text, dict[str, Any]] | None = None


class RootFilesystem(StrictModel):
    """The member ``rootfs`` of an image configuration: the digests of the layers when they are not compressed."""

    type: Name
    diff_ids: Annotated[list[Digest], Field(max_length=_MAX_LAYERS), _NONE]


class HistoryEntry(StrictModel):
    """How a layer was made."""

    created: Text | None = None
    created_by: Text | None = None
    author: Text | None = None
    comment: Text | None = None
    empty_layer: bool = False


class ImageConfig(StrictModel):
    """An image configuration."""

    os: Name
    architecture: Name
    variant: Name | None = None
    created: Text | None = None
    config: RuntimeConfig | None = None
    rootfs: RootFilesystem
    history: Annotated[list[HistoryEntry], Field(max_length=4 * _MAX_LAYERS)] | None = None

    @property
    def runtime(self) -> RuntimeConfig:
        """How the image's program is run; nothing is set if the image does not say."""
        return self.config or RuntimeConfig()


def parse_index(data: bytes, name: object) -> ImageIndex:
    """Parse an image index, or Docker's manifest list.

    Args:
        name: what messages call the document.

    Raises:
        InputError: the text is not an index, or says that it is something else.
    """
    index = checked(ImageIndex, _parse(data, name), name, description="an image index")
    _check(index.schemaVersion, index.mediaType, mediatypes.INDEXES, name)
    return index


def parse_manifest(data: bytes, name: object) -> ImageManifest:
    """Parse an image manifest, OCI's or Docker's.

    Raises:
        InputError: the text is not a manifest, or says that it is something else.
    """
    manifest = checked(ImageManifest, _parse(data, name), name, description="an image manifest")
    _check(manifest.schemaVersion, manifest.mediaType, mediatypes.MANIFESTS, name)
    return manifest


def parse_config(data: bytes, name: object) -> ImageConfig:
    """Parse an image configuration.

    Raises:
        InputError: the text is not an image configuration.
    """
    return checked(ImageConfig, _parse(data, name), name, description="an image configuration")


def _parse(data: bytes, name: object) -> Mapping[str, Any]:
    if len(data) > MAX_DOCUMENT:
        raise InputError(f"{name}: has {len(data)} bytes, where at most {MAX_DOCUMENT} are read of such a document")
    value: Mapping[str, Any] = parse_json(data, name)
    return value


def _check(version: int, media_type: str | None, allowed: frozenset[str], name: object) -> None:
    """Check the version of a document and its media type, which a document need not state."""
    if version != 2:
        raise InputError(f"{name}: is of schema version {version}, not 2")
    if media_type is not None and media_type not in allowed:
        raise InputError(f"{name}: has the media type {media_type[:80]!r}, not {' or '.join(sorted(allowed))}")
