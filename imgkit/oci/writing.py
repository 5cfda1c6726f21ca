"""Write the documents of an image: its configuration, its manifest, and the index of a layout.

    layers = [writer.write(changes(None, tree), reason="packages", created=epoch)]
    amd64 = write_image(layout, layers, ImageFacts(platform=Platform("linux", "amd64"), created=epoch))
    write_layout_index(layout, [amd64, arm64], name="example.com/linux:main")

Equal arguments make equal bytes, so equal digests. Sources: image-spec 1.1, "Image Configuration", "Image Manifest",
"Annotations".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from imgkit.oci import mediatypes
from imgkit.oci.annotations import FULL_NAME, REF_NAME
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.layerwriter import ImageLayer, rfc3339
from imgkit.oci.ocilayout import OciLayout, index_json, to_json

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of images that do not set it; engines that are given none take the same value, or none at all."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What the configuration of an image says besides its layers. None and empty values are left out of it.

    Attributes:
        platform: what the image runs on.
        created: seconds since 1970.
        entrypoint, command: arguments of the program, as in :class:`imgkit.recipe.ContainerSpec`.
        env: variables in order; PATH comes first and has :data:`DEFAULT_PATH` if it is not among them.
        user: ``name``, ``uid`` or ``uid:gid``.
        workdir: where the program starts.
        labels: of the configuration.
        ports: ``8080/tcp``.
        volumes: folders.
        stop_signal: a name, or a number as text.
        annotations: of the manifest.
    """

    platform: Platform
    created: int
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    user: str | None = None
    workdir: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def write_image(layout: OciLayout, layers: Sequence[ImageLayer], facts: ImageFacts) -> Descriptor:
    """Write the configuration and the manifest of an image whose layers are in the layout.

    Args:
        layers: the lowest one first; those of a base image come before the image's own.

    Returns:
        The descriptor of the manifest, with its platform, as an index has it.
    """
    config = layout.add(mediatypes.CONFIG, to_json(_config(layers, facts)))
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.MANIFEST,
        "config": config.to_json(),
        "layers": [_plain(layer.blob.descriptor).to_json() for layer in layers if layer.blob is not None],
    }
    if facts.annotations:
        manifest["annotations"] = dict(facts.annotations)
    return replace(layout.add(mediatypes.MANIFEST, to_json(manifest)), platform=facts.platform)


def write_layout_index(
    layout: OciLayout,
    manifests: Sequence[Descriptor],
    *,
    name: str | None = None,
    annotations: Mapping[str, str] = _NOTHING,
) -> Descriptor:
    """Write the index of a layout that has one image, for one platform or several.

    Images for several platforms are in an image index of their own, which is all that the layout's index names, as
    buildx writes it: tools refuse to choose from several manifests in the layout's own index.

    Args:
        name: of the image, such as ``example.com/linux:main``; None for none.
        annotations: of the image index; not used for a single image, which has those of its manifest.

    Returns:
        The descriptor of the image index, or of the only manifest: what is pushed.
    """
    image = manifests[0]
    if len(manifests) > 1:
        image = layout.add(mediatypes.INDEX, index_json(manifests, annotations))
    layout.write_index([replace(image, annotations=name_annotations(name))])
    return image


def name_annotations(name: str | None) -> Mapping[str, str]:
    """Return the annotations by which tools find the name of an image in a layout or an archive."""
    if name is None:
        return _NOTHING
    tag = name.rpartition("/")[2].partition("@")[0].partition(":")[2]
    return MappingProxyType({FULL_NAME: name} | ({REF_NAME: tag} if tag else {}))


def _config(layers: Sequence[ImageLayer], facts: ImageFacts) -> dict[str, Any]:
    """Return the image configuration."""
    return {
        **facts.platform.to_json(),
        "created": rfc3339(facts.created),
        "config": _runtime(facts),
        "rootfs": {"type": "layers", "diff_ids": [layer.blob.diff_id for layer in layers if layer.blob is not None]},
        "history": [layer.history.model_dump(exclude_none=True, exclude_defaults=True) for layer in layers],
    }


def _runtime(facts: ImageFacts) -> dict[str, Any]:
    """Return the member ``config``, without what is not set."""
    members = {
        "User": facts.user,
        "ExposedPorts": _set(facts.ports),
        "Env": _environment(facts.env),
        "Entrypoint": _words(facts.entrypoint),
        "Cmd": _words(facts.command),
        "Volumes": _set(facts.volumes),
        "WorkingDir": facts.workdir,
        "Labels": dict(facts.labels),
        "StopSignal": facts.stop_signal,
    }
    return {name: value for name, value in members.items() if value}


def _environment(env: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in ({"PATH": DEFAULT_PATH} | dict(env)).items()]


def _words(words: Iterable[str] | None) -> list[str]:
    return list(words or ())


def _set(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a set as documents of images have it: an object whose members are empty objects."""
    return {name: {} for name in names}


def _plain(descriptor: Descriptor) -> Descriptor:
    """Return the descriptor of a layer as a manifest has it: with neither platform nor annotations."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
