"""An OCI image layout: a folder of blobs, named by their digests, and an index (image-spec 1.1, "Image Layout").

layout = OciLayout.open(Path("out/linux.oci"))
for manifest in layout.index().manifests: …
data = layout.read(descriptor)                 # verified

layout = OciLayout.create(folder)
descriptor = layout.add(mediatypes.CONFIG, data)
layout.write_index([descriptor, …])
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from imgkit.errors import InputError
from imgkit.host import lookup
from imgkit.host.jsonfile import read_bytes, read_json
from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor, describe_blob, is_digest
from imgkit.oci.documents import MAX_DOCUMENT, ImageIndex, parse_index

MARKER = "oci-layout"
"""The file that says that a folder is a layout, and of which version."""
_VERSION = "1.0.0"
_CHUNK = 1 << 20


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a document: sorted keys and no spaces, so equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


MARKER_TEXT = to_json({"imageLayoutVersion": _VERSION})


def index_json(manifests: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """Return the bytes of an image index."""
    index: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.INDEX,
        "manifests": [manifest.to_json() for manifest in manifests],
    }
    if annotations:
        index["annotations"] = dict(annotations)
    return to_json(index)


class OciLayout:
    """A layout in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> OciLayout:
        """Make an empty layout in a folder, which may exist. It has no index yet."""
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_bytes(MARKER_TEXT)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> OciLayout:
        """Open a layout that exists.

        Raises:
            InputError: the folder is not a layout, or one of another version, or it cannot be looked up.
        """
        hint = "imgkit build --output oci makes one"
        if not lookup.is_file(folder / MARKER, InputError):
            raise InputError(f"{folder}: not an OCI image layout (it has no file {MARKER})", hint=hint)
        marker = read_json(folder / MARKER, 1 << 10)
        version = marker.get("imageLayoutVersion") if isinstance(marker, dict) else None
        if version != _VERSION:
            raise InputError(f"{folder}: an OCI image layout of version {str(version)[:40]!r}, not {_VERSION}")
        return cls(folder)

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be.

        Raises:
            InputError: the text is not a digest.
        """
        if not is_digest(digest):
            raise InputError(f"{digest[:80]!r}: not a digest")
        algorithm, _, digits = digest.partition(":")
        return self.folder / "blobs" / algorithm / digits

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether there is a blob of this digest and size; its bytes are not verified."""
        path = self.path(descriptor.digest)
        return path.is_file() and path.stat().st_size == descriptor.size

    # ---- reading -----------------------------------------------------------------------------------------------------

    def index(self) -> ImageIndex:
        """Return the layout's index.

        Raises:
            InputError: it is missing or malformed.
        """
        path = self.folder / "index.json"
        return parse_index(read_bytes(path, MAX_DOCUMENT), path)

    def read(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        """Return a small blob after verifying it.

        Raises:
            InputError: the blob is missing, has more than ``limit`` bytes, or another size or digest than announced.
        """
        if descriptor.size > limit:
            raise InputError(f"{descriptor.digest}: has {descriptor.size} bytes, where at most {limit} are read")
        with self.verified(descriptor) as source:
            return source.read()

    @contextmanager
    def verified(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """Open a blob whose size and digest were verified. It must not change during the block.

        Raises:
            InputError: the blob is missing, or has another size or digest than announced.
        """
        path = self.path(descriptor.digest)
        try:
            descriptor_number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as cause:
            raise InputError(f"{path}: {cause.strerror}", hint="the layout is incomplete: make it anew") from cause
        with os.fdopen(descriptor_number, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            if size != descriptor.size:
                raise InputError(f"{path}: has {size} bytes, not the {descriptor.size} that the image announces")
            if (actual := _digest(source, descriptor.digest.partition(":")[0])) != descriptor.digest:
                raise InputError(f"{path}: has the digest {actual}: the blob is damaged")
            source.seek(0)
            yield source

    # ---- writing -----------------------------------------------------------------------------------------------------

    def add(self, media_type: str, data: bytes) -> Descriptor:
        """Write a blob that is in memory; return its descriptor."""
        descriptor = describe_blob(media_type, data)
        self.path(descriptor.digest).write_bytes(data)
        return descriptor

    def adopt(self, source: Path, descriptor: Descriptor) -> Descriptor:
        """Move a file of the same filesystem into the layout as the blob that ``descriptor`` names."""
        place = self.path(descriptor.digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, place)
        return descriptor

    def write_index(self, manifests: Sequence[Descriptor], annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Write the layout's index; return its descriptor. Equal arguments make equal bytes."""
        data = index_json(manifests, annotations or {})
        (self.folder / "index.json").write_bytes(data)
        return describe_blob(mediatypes.INDEX, data)


def _digest(source: BinaryIO, algorithm: str) -> str:
    hashed = hashlib.new(algorithm)
    while piece := source.read(_CHUNK):
        hashed.update(piece)
    return f"{algorithm}:{hashed.hexdigest()}"
