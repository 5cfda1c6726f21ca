"""Pull images from a registry into an OCI image layout, every digest and size verified.

    name = ImageName.parse("docker.io/library/alpine:3.22")
    digest = resolve(name)                                         # asks the registry once, reads nothing
    root = fetch_image(name.with_digest(digest), layout, [Platform("linux", "arm64")])

Source: distribution-spec 1.1, "Pulling manifests" and "Pulling blobs".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgkit.errors import InputError
from imgkit.fetch.pool import Meter, in_parallel
from imgkit.host import scratch
from imgkit.oci import mediatypes
from imgkit.oci.choosing import same_platform
from imgkit.oci.descriptors import Descriptor, Platform, is_digest
from imgkit.oci.documents import DescriptorObject, parse_index, parse_manifest
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.access import RegistryAccess
from imgkit.registry.downloading import BlobDownload
from imgkit.registry.imageparts import MAX_DEPTH, MAX_DOCUMENTS
from imgkit.registry.registryerrors import MissingImageError, RegistryError
from imgkit.registry.remote import RemoteRepository
from imgkit.registry.wire import Wire

log = logging.getLogger("imgkit.registry")


@dataclass(frozen=True)
class PulledImage:
    """What was pulled.

    Attributes:
        root: what the name stands for: an index or a manifest.
        entries: what a layout's index should list: the root, or the chosen images of an index, with their platforms.
        bytes_fetched: of blobs and documents that came from the registry.
        bytes_kept: of blobs that the layout had already.
    """

    root: Descriptor
    entries: tuple[Descriptor, ...]
    bytes_fetched: int
    bytes_kept: int


def resolve(name: ImageName, *, access: RegistryAccess | None = None) -> str:
    """Return the digest that a tag has at this moment; that of the name itself if it has one.

    Args:
        access: how registries are reached (credentials, certificates, plain http); None takes the defaults.

    Raises:
        InputError: the registry does not have the image, refuses, or sends something else.
    """
    if name.digest:
        return name.digest
    access = access or RegistryAccess()
    wire = Wire(access)
    try:
        repository, never = RemoteRepository(name, access, wire), threading.Event()
        said = repository.digest_at(name.reference, never)
        return said if is_digest(said) else repository.document(name.reference, never)[0].digest
    finally:
        wire.close()


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
    return pull_image(name, layout, platforms, access=access).root


def pull_image(
    name: ImageName,
    layout: OciLayout,
    platforms: Sequence[Platform] = (),
    *,
    access: RegistryAccess | None = None,
) -> PulledImage:
    """Pull an image as :func:`fetch_image` does, and say more about it."""
    access = access or RegistryAccess()
    wire = Wire(access)
    try:
        return _Pull(RemoteRepository(name, access, wire), layout, platforms).run(name)
    finally:
        wire.close()


@dataclass
class _Pull:
    """One pull."""

    repository: RemoteRepository
    layout: OciLayout
    platforms: Sequence[Platform]
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    documents: dict[str, Descriptor] = field(default_factory=dict)
    never: threading.Event = field(default_factory=threading.Event)
    fetched: int = 0
    kept: int = 0

    def run(self, name: ImageName) -> PulledImage:
        """Fetch the documents, then the blobs."""
        root, data = self.repository.document(name.reference, self.never)
        self._note(root, data)
        if root.media_type in mediatypes.INDEXES:
            entries = self._chosen(name, self._items(root, data))
            for entry in entries:
                self._fetch_document(entry, 1)
            self._fetch_blobs()
            return PulledImage(root, tuple(entries) if self.platforms else (root,), self.fetched, self.kept)
        self._note_manifest(root, data)
        self._fetch_blobs()
        return PulledImage(root, (root,), self.fetched, self.kept)

    # ---- documents ---------------------------------------------------------------------------------------------------

    def _items(self, index: Descriptor, data: bytes) -> list[Descriptor]:
        return [item.value for item in parse_index(data, self._what(index)).manifests]

    def _chosen(self, name: ImageName, items: list[Descriptor]) -> list[Descriptor]:
        """Return the entries of an index that are fetched.

        Raises:
            MissingImageError: there is none for one of the platforms.
        """
        if not self.platforms:
            return items
        chosen = []
        for wanted in self.platforms:
            found = [item for item in items if item.platform is not None and same_platform(wanted, item.platform)]
            if not found:
                known = ", ".join(sorted({str(item.platform) for item in items if item.platform}))
                raise MissingImageError(f"{name}: has no image for {wanted}", hint=f"it has {known[:300] or 'none'}")
            chosen.append(found[0])
        return _unique(chosen)

    def _fetch_document(self, wanted: Descriptor, depth: int) -> None:
        """Fetch a document that an index names, and what it names itself."""
        if wanted.digest in self.documents:
            return
        if depth >= MAX_DEPTH or len(self.documents) >= MAX_DOCUMENTS:
            message = (
                f"{self.repository.name}: has more than {MAX_DEPTH} levels of indexes or {MAX_DOCUMENTS} documents"
            )
            raise InputError(message)
        got, data = self._document(wanted)
        if got.media_type != wanted.media_type or got.size != wanted.size:
            raise RegistryError(
                f"{self._what(wanted)}: has {got.size} bytes of {got.media_type}, where the index announces "
                f"{wanted.size} bytes of {wanted.media_type[:80]}"
            )
        self._note(got, data)
        if got.media_type in mediatypes.INDEXES:
            for item in self._items(got, data):
                self._fetch_document(item, depth + 1)
        else:
            self._note_manifest(got, data)

    def _document(self, wanted: Descriptor) -> tuple[Descriptor, bytes]:
        """Take a document from the layout, or else from the registry."""
        if self.layout.has(wanted) and wanted.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
            try:
                data = self.layout.read(wanted)
            except InputError as damaged:
                log.info("%s", damaged)
            else:
                return replace(wanted, platform=None), data
        return self.repository.document(wanted.digest, self.never)

    def _note(self, document: Descriptor, data: bytes) -> None:
        """Keep a document in the layout, in place of a damaged one."""
        self.documents[document.digest] = document
        if self.layout.has(document) and self.layout.path(document.digest).read_bytes() == data:
            self.kept += len(data)
        else:
            self.fetched += len(data)
            self._store(document, data)

    def _store(self, document: Descriptor, data: bytes) -> None:
        with scratch.folder(self.layout.folder, ".imgkit-") as near:
            (near / "document").write_bytes(data)
            self.layout.adopt(near / "document", document)

    def _note_manifest(self, manifest: Descriptor, data: bytes) -> None:
        parsed = parse_manifest(data, self._what(manifest))
        for blob in (parsed.config, *parsed.layers):
            self.blobs.setdefault(blob.digest, _blob(blob))

    def _what(self, document: Descriptor) -> str:
        return f"{self.repository.name.full_repository}@{document.digest}"

    # ---- blobs -------------------------------------------------------------------------------------------------------

    def _fetch_blobs(self) -> None:
        blobs = sorted(self.blobs.values(), key=lambda blob: (-blob.size, blob.digest))
        with scratch.folder(self.layout.folder, ".imgkit-") as near, Meter("pull") as meter:
            jobs = [self._job(blob, near, meter) for blob in blobs]
            for blob, is_new in zip(blobs, in_parallel(jobs, workers=self.repository.access.workers), strict=True):
                if is_new:
                    self.fetched += blob.size
                else:
                    self.kept += blob.size

    def _job(self, blob: Descriptor, near: Path, meter: Meter) -> Callable[[threading.Event], bool]:
        """Return what brings one blob into the layout; its result is whether the blob had to be fetched."""

        def job(cancelled: threading.Event) -> bool:
            if _is_kept(self.layout, blob):
                return False
            meter.expect(blob.size)
            path = near / blob.digest.partition(":")[2]
            BlobDownload(self.repository, blob, path, cancelled=cancelled, on_bytes=meter.advance).fetch()
            self.layout.adopt(path, blob)
            return True

        return job


def _is_kept(layout: OciLayout, blob: Descriptor) -> bool:
    """Return whether the layout has a blob, undamaged."""
    if not layout.has(blob):
        return False
    try:
        with layout.verified(blob):
            return True
    except InputError as damaged:
        log.info("%s: fetched anew", damaged)
        return False


def _unique(descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    return list({descriptor.digest: descriptor for descriptor in descriptors}.values())


def _blob(blob: DescriptorObject) -> Descriptor:
    return Descriptor(blob.mediaType, blob.digest, blob.size)
