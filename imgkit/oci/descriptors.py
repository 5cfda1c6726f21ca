"""Descriptors, by which the documents of an image name each other (image-spec 1.1, "Content Descriptors")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Platform:
    """What an image runs on, in the words of Go: ``Platform("linux", "amd64")``. Most tools give arm64 no variant."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def to_json(self) -> dict[str, str]:
        """Return the object of the specification."""
        variant = {"variant": self.variant} if self.variant else {}
        return {"architecture": self.architecture, "os": self.os, **variant}


@dataclass(frozen=True)
class Descriptor:
    """Names a blob.

    Attributes:
        media_type: what the blob is.
        digest: ``sha256:`` and 64 hexadecimal digits.
        size: in bytes.
        platform: of a manifest in an index; None elsewhere.
        annotations: further facts about the blob.
        artifact_type: what a manifest describes that is not an image; empty for images.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object of the specification."""
        described: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            described["artifactType"] = self.artifact_type
        if self.platform is not None:
            described["platform"] = self.platform.to_json()
        if self.annotations:
            described["annotations"] = dict(sorted(self.annotations.items()))
        return described


def is_digest(text: str) -> bool:
    """Return whether ``text`` is a digest by SHA-256 or SHA-512, the registered algorithms."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    """Return the digest of a blob by SHA-256."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe_blob(media_type: str, data: bytes) -> Descriptor:
    """Return the descriptor of a blob that is in memory."""
    return Descriptor(media_type, digest_of(data), len(data))
