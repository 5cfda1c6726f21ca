"""The field ``base`` of a recipe: which container image its root filesystems start from.

``oci:registry.example/team/app@sha256:…``, ``oci:alpine:3.22``
    an image of a registry, by digest or by tag
``oci:./folder``, ``oci:../image.oci.tar:1.0``, ``oci:/srv/images/folder@sha256:…``
    an image of an OCI image layout on disk, or of an archive of one. A layout may hold several images; a tag or a
    digest chooses one. A path begins with ``/``, ``./`` or ``../`` and is relative to the recipe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import UsageError
from imgkit.host import lookup
from imgkit.oci.descriptors import is_digest
from imgkit.oci.imagename import ImageName

PREFIX = "oci:"
_PATHS = ("/", "./", "../")


@dataclass(frozen=True)
class BaseReference:
    """Where a base image is.

    Attributes:
        image: the name of an image in a registry; None for a layout on disk.
        place: the layout or its archive; None for a registry.
        reference: a tag or a digest in the layout, empty if there is none.
    """

    image: ImageName | None
    place: Path | None
    reference: str = ""

    @classmethod
    def parse(cls, text: str) -> BaseReference:
        """Parse the field.

        Raises:
            UsageError: the text is not a reference to an image.
        """
        name = text.removeprefix(PREFIX)
        if not name.startswith(_PATHS):
            return cls(ImageName.parse(name), None)
        folder, _, last = name.rpartition("/")
        file, at, reference = last.partition("@")
        if at and not is_digest(reference):
            raise UsageError(f"{text!r}: {reference[:80]!r} is not a digest", hint="write sha256: and 64 digits")
        if not at:
            file, _, reference = last.partition(":")
        return cls(None, Path(f"{folder}/{file}"), reference)

    @property
    def digest(self) -> str:
        """The digest in the reference, empty if there is none."""
        if self.image is not None:
            return self.image.digest
        return self.reference if is_digest(self.reference) else ""


def absolute(text: str, folder: Path) -> str:
    """Return the field ``base`` with the path of a layout made absolute.

    Args:
        folder: the folder that relative paths start from.
    """
    place = text.removeprefix(PREFIX)
    return f"{PREFIX}{lookup.real(folder / place)}" if place.startswith(_PATHS) else text


def relative(text: str, folder: Path) -> str:
    """Return the field ``base`` with the path of a layout relative to ``folder``, the reverse of :func:`absolute`."""
    place = text.removeprefix(PREFIX)
    if not place.startswith(_PATHS):
        return text
    path = os.path.relpath(place, folder)
    return f"{PREFIX}{path}" if path.startswith("../") else f"{PREFIX}./{path}"
