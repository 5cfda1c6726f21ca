"""What is compared: one image as values, whether they come from the image, from its manifest or from a lock file.

A snapshot has only what its source knows: a lock file knows packages, but no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imgkit.recipe import Shape
from imgkit.rootfs import agent
from imgkit.rootfs.digest import NodeRecord
from imgkit.rootfs.payload import PAYLOAD

SourceKind: TypeAlias = Literal["disk image", "container image", "manifest", "lock file"]

PAYLOAD_ORIGIN = "payload"
SETUP_ORIGIN = "setup"
"""Origins of files that are of no package: in the folders of payloads, and elsewhere (overlays, what a build makes)."""


@dataclass(frozen=True)
class PackageState:
    """A package of an image. ``identity`` is apk's (``Q1…``), a hash of its contents; ``origin`` its source package."""

    version: str
    identity: str
    origin: str


@dataclass(frozen=True)
class Snapshot:
    """One root filesystem, and what is known about its image.

    Attributes:
        source: the file or folder that it was taken from.
        kind: what that is.
        arch: imgkit's name of the architecture, ``amd64``; empty if it is not known.
        shape: what the root filesystem is for.
        facts: name → value for JSON; what only one of two snapshots knows is not compared.
        packages: by name.
        image_size: bytes of the image's file or of its layers; None if that is not known. It may be compressed anew.
        files: path → record; None if the source has no files.
        owners: path → name of the package that it belongs to; None if that is not known.
    """

    source: Path
    kind: SourceKind
    arch: str
    shape: Shape
    facts: Mapping[str, Any]
    packages: Mapping[str, PackageState]
    image_size: int | None = None
    files: Mapping[str, NodeRecord] | None = None
    owners: Mapping[str, str] | None = None

    def origin_of(self, path: str) -> str:
        """Return what a file comes from: a package, payload or setup; its topmost folder if owners are not known."""
        if self.owners is None:
            return "/" + path.split("/")[1]
        if path in self.owners:
            return self.owners[path]
        folders = (f"/{PAYLOAD}/", f"/{agent.FOLDER}/")
        return PAYLOAD_ORIGIN if f"{path}/".startswith(folders) else SETUP_ORIGIN
