"""Find the image that a recipe starts from: in a layout or its archive, or in a registry, whose images are cached.

Below the cache's folder::

    images/                 an OCI image layout without an index: the blobs of all images, by their digests
    images/names/abcd….json what a name stood for when it was last asked for
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import HostError, InputError
from imgkit.fetch.cache import Cache
from imgkit.host import lookup, wholefile
from imgkit.host.jsonfile import StrictModel, checked, read_json
from imgkit.oci.applying import read_image
from imgkit.oci.choosing import choose_image, layout_entries
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import DescriptorObject
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import unpack_archive
from imgkit.planning.plan import ImageSource
from imgkit.recipe.basereference import BaseReference
from imgkit.registry.access import RegistryAccess
from imgkit.registry.pulling import fetch_image, resolve

_IMAGES = "images"
_MAX_RECORD = 64 << 10
_BY_DIGEST = "the digest in the recipe"
_BY_TAG = "the tag as it was first seen"
_BY_PLACE = "the file or folder on this computer"
_CHANGED_HINT = "imgkit lock writes a lock of the image as it is now"


@dataclass(frozen=True)
class FoundImage:
    """An image for one platform, whose blobs are in ``layout``.

    Attributes:
        name: what the recipe calls it, without a digest.
        digest: what the name stands for, of an index or of a manifest.
        manifest: the descriptor of the image's manifest.
        vouched_by: why the digest is trusted.
    """

    layout: OciLayout
    name: str
    digest: str
    manifest: Descriptor
    vouched_by: str


class _Record(StrictModel):
    """What a name stood for."""

    name: str
    descriptor: DescriptorObject


def find_image(
    reference: BaseReference,
    platform: Platform,
    cache: Cache,
    unpacked: Path,
    *,
    locked: ImageSource | None = None,
    access: RegistryAccess | None = None,
) -> FoundImage:
    """Find an image, and download what is missing of it.

    Args:
        unpacked: a new folder for the layout of an archive; it is made if the reference is an archive.
        locked: the image of a lock, which must be found exactly.
        access: how registries are reached; None takes the defaults.

    Raises:
        InputError: there is no such image, or not the one of the lock; offline: it is not in the cache.
        HostError: the cache cannot be written.
    """
    if reference.image is None:
        found = _on_disk(reference, platform, unpacked, locked)
    else:
        found = _in_registry(reference.image, platform, cache, locked, access)
    if locked is not None and found.manifest.digest != locked.manifest:
        message = f"{found.name}: the image for {platform} is {found.manifest.digest}, not the lock's {locked.manifest}"
        raise InputError(message, hint=_CHANGED_HINT)
    return found


def _on_disk(reference: BaseReference, platform: Platform, unpacked: Path, locked: ImageSource | None) -> FoundImage:
    """Find an image in a layout. That of a lock is found by its digest, whatever has the tag now."""
    place = reference.place or Path()
    layout = unpack_archive(place, unpacked) if lookup.is_file(place, InputError) else OciLayout.open(place)
    entries = layout_entries(layout, locked.digest if locked is not None else reference.reference, place)
    manifest = choose_image(layout, entries, platform, place)
    digest = entries[0].digest if len(entries) == 1 else manifest.digest
    by = locked.vouched_by if locked is not None else _BY_DIGEST if reference.digest else _BY_PLACE
    return FoundImage(layout, place.name, digest, manifest, by)


def _in_registry(
    name: ImageName, platform: Platform, cache: Cache, locked: ImageSource | None, access: RegistryAccess | None
) -> FoundImage:
    """Find an image in a registry, or in the cache what was found there before."""
    store = _store(cache)
    wanted = name if locked is None else name.with_digest(locked.digest)
    top = _recalled(store, wanted) if cache.offline else _fetched(store, wanted, platform, access)
    manifest = choose_image(store, [top], platform, wanted)
    _touch(store, [top, manifest, *_parts(store, manifest)])
    by = locked.vouched_by if locked is not None else _BY_DIGEST if name.digest else _BY_TAG
    return FoundImage(store, _without_digest(name), top.digest, manifest, by)


def _store(cache: Cache) -> OciLayout:
    folder = cache.folder / _IMAGES
    try:
        return OciLayout.create(folder)
    except OSError as cause:
        hint = "set IMGKIT_CACHE to a folder that can be written"
        raise HostError(f"{folder}: {cause.strerror}", hint=hint) from cause


def _parts(store: OciLayout, image: Descriptor) -> list[Descriptor]:
    """Return the configuration and the layers of an image; nothing if it is damaged, which is found later."""
    with suppress(InputError):
        manifest, _ = read_image(store, image)
        return [manifest.config.value, *(layer.value for layer in manifest.layers)]
    return []


def _touch(store: OciLayout, parts: Iterable[Descriptor]) -> None:
    """Give blobs the time of their use, by which their age is counted."""
    for part in parts:
        with suppress(OSError):
            os.utime(store.path(part.digest))


def _without_digest(name: ImageName) -> str:
    return str(name).partition("@")[0]


def _fetched(store: OciLayout, name: ImageName, platform: Platform, access: RegistryAccess | None) -> Descriptor:
    """Fetch an image, and remember what its name and its digest stand for."""
    exact = name.with_digest(name.digest or resolve(name, access=access))
    top = fetch_image(exact, store, [platform], access=access)
    if top.digest != exact.digest:
        raise InputError(f"{exact}: the registry sent {top.digest}")
    for known in {str(name), str(exact), f"{exact.full_repository}@{exact.digest}"}:
        _remember(store, known, top)
    return top


def _remember(store: OciLayout, name: str, top: Descriptor) -> None:
    path = _record(store, name)
    try:
        path.parent.mkdir(exist_ok=True)
        wholefile.write(path, json.dumps({"name": name, "descriptor": top.to_json()}).encode())
    except OSError as cause:
        raise HostError(f"{path}: {cause.strerror}") from cause


def _recalled(store: OciLayout, name: ImageName) -> Descriptor:
    """Return what a name stood for when it was last asked for.

    Raises:
        InputError: it was never asked for on this computer.
    """
    known = f"{name.full_repository}@{name.digest}" if name.digest else str(name)
    try:
        path = _record(store, known)
        record = checked(_Record, read_json(path, _MAX_RECORD), path, description="a record of an image's name")
    except InputError as cause:
        hint = f"build once without --offline (the cache is {store.folder.parent})"
        raise InputError(f"offline, and the image {name} is not in the cache", hint=hint) from cause
    return record.descriptor.value


def _record(store: OciLayout, name: str) -> Path:
    return store.folder / "names" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"
