"""Choose the image for a platform among the manifests of a layout or of an index, which may hold further indexes.

    manifest = choose_image(layout, layout_entries(layout, "1.2"), Platform("linux", "arm64"), name)

Passed over are attestations (BuildKit's have the platform ``unknown/unknown`` and an annotation) and other artifacts.
Manifests without a platform, as umoci, skopeo and buildah list them, have the one of their configuration.
Sources: image-spec 1.1, "Image Index Property Descriptions"; BuildKit, "Image Attestation Storage"; containerd,
platforms.Normalize.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from imgkit.errors import InputError
from imgkit.oci import mediatypes
from imgkit.oci.annotations import FULL_NAME, REF_NAME
from imgkit.oci.descriptors import Descriptor, Platform, is_digest
from imgkit.oci.documents import parse_config, parse_index, parse_manifest
from imgkit.oci.ocilayout import OciLayout

_ATTESTATION = "vnd.docker.reference.type"
_UNKNOWN = Platform("unknown", "unknown")
_USUAL_VARIANTS = {"arm64": "v8", "amd64": "v1", "arm": "v7"}  # what an empty variant means
_DEEPEST = 4  # indexes in one another; those of BuildKit are two
_MOST_DOCUMENTS = 200  # read in the search for one image
_MOST_NAMED = 10  # platforms or images that a message names


def same_platform(one: Platform, other: Platform) -> bool:
    """Return whether two platforms are the same: ``arm64`` and ``arm64/v8`` are."""
    return _normalized(one) == _normalized(other)


def layout_entries(layout: OciLayout, reference: str = "", name: object = None) -> tuple[Descriptor, ...]:
    """Return the entries of a layout's index that a reference means.

    Args:
        reference: a tag, a digest, or empty for all of them.
        name: what messages call the layout; by default its folder.

    Raises:
        InputError: the index is malformed, or has no such entry.
    """
    entries = tuple(entry.value for entry in layout.index().manifests)
    found = tuple(entry for entry in entries if not reference or _is_called(entry, reference))
    if not found and is_digest(reference):
        found = _below(layout, entries, reference)
    if not found:
        names = sorted({entry.annotations[REF_NAME] for entry in entries if REF_NAME in entry.annotations})
        hint = f"it has {_listed(names)}" if names else None
        raise InputError(f"{name or layout.folder}: has no image {reference}".rstrip(), hint=hint)
    return found


def choose_image(layout: OciLayout, entries: Sequence[Descriptor], platform: Platform, name: object) -> Descriptor:
    """Return the descriptor of the image for ``platform``, with its platform.

    Args:
        entries: descriptors of manifests and indexes, of which one must have the image.
        name: what messages call all of it.

    Raises:
        InputError: there is no such image, or several entries have one; or a document is missing, damaged, or nested
            too deeply.
    """
    search = _Search(layout, platform)
    images = {image.digest: image for entry in entries for image in search.first(entry)}
    if len(images) > 1:
        called = [image.annotations.get(REF_NAME, digest) for digest, image in images.items()]
        raise InputError(f"{name}: has {len(images)} images for {platform}", hint=f"choose one of {_listed(called)}")
    if not images:
        seen = _listed(sorted(set(map(str, search.others)))) or "no image at all"
        raise InputError(f"{name}: has no image for {platform}, but {seen}")
    return next(iter(images.values()))


def all_images(layout: OciLayout, entries: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the descriptors of all images in ``entries``, each once, with their platforms.

    Raises:
        InputError: a document is missing, damaged, or nested too deeply.
    """
    search = _Search(layout, None)
    return list({image.digest: image for entry in entries for image in search.all(entry)}.values())


@dataclass
class _Search:
    """A search for the image of one platform, or for all images if ``platform`` is None.

    Attributes:
        others: the platforms of other images that were met.
        documents: how many documents were read.
    """

    layout: OciLayout
    platform: Platform | None
    others: list[Platform] = field(default_factory=list)
    documents: int = 0

    def first(self, entry: Descriptor) -> Sequence[Descriptor]:
        """Return the first image that an entry has for the platform; empty if it has none."""
        image = next(self._images(entry, 0), None)
        return () if image is None else (image,)

    def all(self, entry: Descriptor) -> Iterator[Descriptor]:
        """Yield every image that an entry has for the platform."""
        return self._images(entry, 0)

    def _images(self, entry: Descriptor, depth: int) -> Iterator[Descriptor]:
        """Yield the images for the platform in an entry."""
        if entry.media_type in mediatypes.INDEXES:
            if depth == _DEEPEST:
                raise InputError(f"{entry.digest}: more than {_DEEPEST} indexes in one another")
            for inner in parse_index(self._read(entry), entry.digest).manifests:
                yield from self._images(inner.value, depth + 1)
        elif entry.media_type in mediatypes.MANIFESTS and not _is_attached(entry):
            platform = self._platform_of(entry)
            if platform is None:
                return
            if self.platform is None or same_platform(platform, self.platform):
                yield replace(entry, platform=platform)
            else:
                self.others.append(platform)

    def _platform_of(self, entry: Descriptor) -> Platform | None:
        """Return the platform of an image, from its configuration if the entry does not say; None for an artifact."""
        stated = entry.platform
        if stated is not None and stated.os and stated.architecture:
            return stated
        config = parse_manifest(self._read(entry), entry.digest).config
        if config.mediaType not in mediatypes.CONFIGS:
            return None
        facts = parse_config(self._read(config.value), config.digest)
        return Platform(facts.os, facts.architecture, facts.variant or "")

    def _read(self, descriptor: Descriptor) -> bytes:
        self.documents += 1
        if self.documents > _MOST_DOCUMENTS:
            raise InputError(f"{descriptor.digest}: more than {_MOST_DOCUMENTS} documents to search for one image")
        return self.layout.read(descriptor)


def _below(layout: OciLayout, entries: Sequence[Descriptor], digest: str) -> tuple[Descriptor, ...]:
    """Return the entry of this digest in the indexes that are entries themselves."""
    indexes = [entry for entry in entries if entry.media_type in mediatypes.INDEXES][:_MOST_DOCUMENTS]
    inner = [entry.value for index in indexes for entry in parse_index(layout.read(index), index.digest).manifests]
    return tuple(entry for entry in inner if entry.digest == digest)[:1]


def _normalized(platform: Platform) -> Platform:
    usual = platform.variant == _USUAL_VARIANTS.get(platform.architecture)
    return replace(platform, variant="") if usual else platform


def _is_called(entry: Descriptor, reference: str) -> bool:
    """Return whether a reference means an entry; entries are annotated with a tag or with a whole name."""
    names = (entry.annotations.get(REF_NAME, ""), entry.annotations.get(FULL_NAME, ""))
    return reference == entry.digest or any(name == reference or name.endswith(f":{reference}") for name in names)


def _is_attached(entry: Descriptor) -> bool:
    """Return whether an entry describes another image, or is no image."""
    return _ATTESTATION in entry.annotations or entry.platform == _UNKNOWN or bool(entry.artifact_type)


def _listed(names: Sequence[str]) -> str:
    shown = [name[:80] for name in names[:_MOST_NAMED]]
    return ", ".join(shown) + (" …" if len(names) > _MOST_NAMED else "")
