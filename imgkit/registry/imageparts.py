"""What belongs to an image in a layout on disk: its documents, its blobs, and what refers to it.

Which entry of a layout's ``index.json`` is the image:

* With a name, the entry whose ``org.opencontainers.image.ref.name`` it is.
* The only entry, which may be an index or a manifest, as imgkit, skopeo and buildx write it.
* If there are several, all have a platform and none has a name, then all of them together: ``index.json`` itself is the
  image's index.

Manifests with a ``subject`` are not images but refer to one (image-spec 1.1, "Image Manifest": signatures, SBOMs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from imgkit.errors import InputError, UsageError
from imgkit.host.jsonfile import read_bytes
from imgkit.oci import mediatypes
from imgkit.oci.annotations import REF_NAME
from imgkit.oci.descriptors import Descriptor, describe_blob
from imgkit.oci.documents import MAX_DOCUMENT, DescriptorObject, ImageManifest, parse_index, parse_manifest
from imgkit.oci.ocilayout import OciLayout, to_json

BASE_NAME = "org.opencontainers.image.base.name"
MAX_DEPTH = 4
"""How many levels of indexes an image may have."""
MAX_DOCUMENTS = 1000
"""Indexes and manifests that an image may have."""


@dataclass(frozen=True)
class ImageDocument:
    """An index or a manifest: its descriptor and its bytes."""

    descriptor: Descriptor
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class ImageParts:
    """An image as it is pushed.

    Attributes:
        root: what a tag will name.
        documents: in the order in which they can be stored: each after what it names, the root last.
        blobs: configurations and layers, each once, with the largest first.
        referrers: manifests that refer to one of the documents, each with the digest of its subject.
        bases: names of the images that this one was made from, as its annotations say.
    """

    root: Descriptor
    documents: tuple[ImageDocument, ...]
    blobs: tuple[Descriptor, ...]
    referrers: tuple[tuple[str, ImageDocument], ...] = ()
    bases: tuple[str, ...] = ()


def read_parts(
    layout: OciLayout, *, image: str = "", architectures: Sequence[str] = (), name: object = None
) -> ImageParts:
    """Read the documents of an image, each verified.

    Args:
        image: the name of the entry in the layout's index; empty if there is one image only.
        architectures: which images of an index; one of them alone is its manifest, several are a new index. None
            means the whole index.
        name: what messages call the layout; None for its folder.

    Raises:
        InputError: the layout is damaged, or its documents are nested too deeply.
        UsageError: there is no such entry, or several; or no image of an architecture.
    """
    collector = _Collector(layout, name or layout.folder)
    entries, referring = collector.entries()
    root = _root(collector, entries, image)
    if architectures:
        root = collector.selected(root, architectures)
    collector.collect(root, 0)
    documents = tuple(collector.documents.values())
    referrers = collector.referrers(referring)
    return ImageParts(
        root.descriptor,
        documents,
        tuple(sorted(collector.blobs.values(), key=lambda blob: (-blob.size, blob.digest))),
        referrers,
        tuple(dict.fromkeys(collector.bases)),
    )


def _root(collector: _Collector, entries: Sequence[Descriptor], image: str) -> ImageDocument:
    """Choose the image."""
    names = sorted({entry.annotations.get(REF_NAME, "") for entry in entries} - {""})
    hint = f"choose one with --image: {', '.join(names)[:500]}" if names else None
    if image:
        entries = [entry for entry in entries if entry.annotations.get(REF_NAME) == image]
        if not entries:
            raise UsageError(f"{collector.name}: has no image {image!r}", hint=hint)
    elif len(entries) > 1 and not names and all(entry.platform is not None for entry in entries):
        return _whole(collector.layout, entries)
    if len(entries) != 1:
        count = f"{len(entries)} images" if entries else "no image"
        raise UsageError(f"{collector.name}: has {count}, where one is pushed", hint=hint)
    return ImageDocument(entries[0], collector.layout.read(entries[0]))


def _whole(layout: OciLayout, entries: Sequence[Descriptor]) -> ImageDocument:
    """Return the layout's index as the image; without manifests that only refer to others, if there are any."""
    if len(entries) == len(layout.index().manifests):
        data = read_bytes(layout.folder / "index.json", MAX_DOCUMENT)
        return ImageDocument(describe_blob(mediatypes.INDEX, data), data)
    return _new_index(entries)


def _new_index(entries: Sequence[Descriptor]) -> ImageDocument:
    manifests = [entry.to_json() for entry in entries]
    data = to_json({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": manifests})
    return ImageDocument(describe_blob(mediatypes.INDEX, data), data)


class _Collector:
    """Collects the parts of one image."""

    def __init__(self, layout: OciLayout, name: object) -> None:
        self.layout, self.name = layout, name
        self.documents: dict[str, ImageDocument] = {}
        self.blobs: dict[str, Descriptor] = {}
        self.bases: list[str] = []

    def entries(self) -> tuple[list[Descriptor], list[tuple[str, ImageDocument]]]:
        """Return the images in the layout's index, and the manifests that refer to others."""
        images, referring = [], []
        for entry in (item.value for item in self.layout.index().manifests):
            subject = self._subject(entry)
            if subject:
                referring.append((subject, ImageDocument(entry, self.layout.read(entry))))
            else:
                images.append(entry)
        return images, referring

    def selected(self, root: ImageDocument, architectures: Sequence[str]) -> ImageDocument:
        """Return the images of some architectures: the manifest, or an index of several."""
        if root.descriptor.media_type not in mediatypes.INDEXES:
            raise UsageError(f"{self.name}: is the image of one architecture", hint="leave out --arch")
        entries = [item.value for item in parse_index(root.data, root.descriptor.digest).manifests]
        chosen = [_of_architecture(entries, one, self.name) for one in dict.fromkeys(architectures)]
        if len(chosen) == 1:
            return ImageDocument(chosen[0], self.layout.read(chosen[0]))
        return _new_index(chosen)

    def collect(self, document: ImageDocument, depth: int) -> None:
        """Take a document, after everything that it names."""
        digest = document.descriptor.digest
        if digest in self.documents:
            return
        if depth >= MAX_DEPTH or len(self.documents) >= MAX_DOCUMENTS:
            raise InputError(f"{self.name}: has more than {MAX_DEPTH} levels or {MAX_DOCUMENTS} documents")
        if document.descriptor.media_type in mediatypes.INDEXES:
            for item in parse_index(document.data, digest).manifests:
                self.collect(ImageDocument(item.value, self.layout.read(item.value)), depth + 1)
        else:
            self._take_manifest(parse_manifest(document.data, digest))
        self.documents[digest] = document

    def referrers(self, referring: list[tuple[str, ImageDocument]]) -> tuple[tuple[str, ImageDocument], ...]:
        """Return what refers to the documents, or to something that does, in the order in which it can be stored."""
        known, chosen = set(self.documents), []
        for _ in range(MAX_DEPTH):
            for subject, document in [*referring]:
                if subject in known:
                    referring.remove((subject, document))
                    known.add(document.descriptor.digest)
                    self._take_manifest(parse_manifest(document.data, document.descriptor.digest))
                    chosen.append((subject, document))
        return tuple(chosen)

    def _take_manifest(self, manifest: ImageManifest) -> None:
        for blob in (manifest.config, *manifest.layers):
            self.blobs.setdefault(blob.digest, _blob(blob))
        if base := (manifest.annotations or {}).get(BASE_NAME):
            self.bases.append(base)

    def _subject(self, entry: Descriptor) -> str:
        """Return the digest of what a manifest refers to; empty if it is an image."""
        if entry.media_type not in mediatypes.MANIFESTS:
            return ""
        subject = parse_manifest(self.layout.read(entry), entry.digest).subject
        return "" if subject is None else subject.digest


def _blob(blob: DescriptorObject) -> Descriptor:
    return Descriptor(blob.mediaType, blob.digest, blob.size)


def _of_architecture(entries: Sequence[Descriptor], architecture: str, name: object) -> Descriptor:
    found = [entry for entry in entries if entry.platform and entry.platform.architecture == architecture]
    if not found:
        known = sorted({entry.platform.architecture for entry in entries if entry.platform} - {"unknown"})
        raise UsageError(f"{name}: has no image for {architecture}", hint=f"it has {', '.join(known)[:200]}")
    return found[0]
