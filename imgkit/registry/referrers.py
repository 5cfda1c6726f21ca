"""Make a manifest known as one that refers to another, at registries that do not do that by themselves.

A registry with the referrers API says so when such a manifest is stored (header ``OCI-Subject``). For the others there
is an index of the referrers under a tag that is made from the digest of the subject, which clients keep.
Source: distribution-spec 1.1, "Pushing Manifests with Subject" and "Referrers Tag Schema".
"""

from __future__ import annotations

import threading
from typing import Any

from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor, describe_blob
from imgkit.oci.documents import parse_index, parse_manifest
from imgkit.oci.ocilayout import to_json
from imgkit.registry.imageparts import ImageDocument
from imgkit.registry.registryerrors import MissingImageError
from imgkit.registry.remote import RemoteRepository


def fallback_tag(digest: str) -> str:
    """Return the tag under which the referrers of a digest are listed."""
    return digest.replace(":", "-")[:128]


def note_referrer(
    repository: RemoteRepository, subject: str, document: ImageDocument, cancelled: threading.Event
) -> None:
    """Add a manifest to the list of those that refer to ``subject``.

    Two clients that do this at the same moment may lose an entry: the specification has nothing against that.
    """
    tag = fallback_tag(subject)
    try:
        _, data = repository.document(tag, cancelled)
        entries = [item.value for item in parse_index(data, f"{repository.name.full_repository}:{tag}").manifests]
    except MissingImageError:
        entries = []
    own = _described(document)
    if any(entry.digest == own.digest for entry in entries):
        return
    manifests: list[dict[str, Any]] = [entry.to_json() for entry in (*entries, own)]
    index = to_json({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": manifests})
    repository.put_document(tag, describe_blob(mediatypes.INDEX, index), index, cancelled)


def _described(document: ImageDocument) -> Descriptor:
    """Return the descriptor of a referrer: with its type and its annotations, which clients choose by."""
    manifest = parse_manifest(document.data, document.descriptor.digest)
    given = document.descriptor
    kind = manifest.artifactType or manifest.config.mediaType
    return Descriptor(given.media_type, given.digest, given.size, None, manifest.annotations or {}, kind)
