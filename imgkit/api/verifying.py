"""Compare an image with its manifest; boots nothing of the image.

::

    result = imgkit.verify("out/linux-amd64.qcow2")
    assert result.ok, result.faults
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.api.applianceoptions import appliance_options
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import Limits
from imgkit.engines.reading import ImageReader
from imgkit.host import scratch
from imgkit.image.imagepaths import is_container_image, split_reference
from imgkit.image.manifest import read_manifest
from imgkit.verification import check, statement
from imgkit.verification.beside import manifest_of
from imgkit.verification.check import Subject, Verification, limits_for
from imgkit.verification.containers import verify_container
from imgkit.vm.bootspec import StrPath


@dataclass(frozen=True)
class VerifiedImage:
    """The result of a comparison.

    Attributes:
        image: what was compared.
        manifest: what it was compared with; None for the manifests beside a container image.
        proved: sentences about everything that is as it was built.
        faults: one line for each difference; empty if the image is as it was built.
    """

    image: Path
    manifest: Path | None
    proved: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the image is as it was built."""
        return not self.faults


def verify(
    image: StrPath, manifest: StrPath | None = None, *, limit: int | None = None, timeout: float | None = None
) -> VerifiedImage:
    """Compare an image, and the kernel and initramfs beside it, with the manifest, which is believed.

    The very file that was built is known by its SHA-256. A converted, resized or changed disk is compared byte by byte
    as a guest sees it. Of a container image, which may have been compressed anew, every file is compared.

    Args:
        image: a qcow2 or raw file, or a container image: an OCI image layout or an archive, ``LAYOUT:TAG``.
        manifest: None takes the one beside the image.
        limit: bytes of the disk that are read at most; None takes twice what was built, and 1 GiB at least.
        timeout: seconds to read the disk in; None takes 900.

    Raises:
        InputError: the image or the manifest is missing or damaged, or reading the image exceeds the limits.
        HostError: the host lacks a program, a kernel or space.
    """
    image, path = Path(image), None if manifest is None else Path(manifest)
    if is_container_image(image):
        layout, tag = split_reference(image)
        return _result(image, path, verify_container(layout, path, tag))
    info = image_info(image)
    place = path or manifest_of(image)
    stated = statement.parse(read_manifest(place), place)
    if path is not None:  # whoever names a manifest knows which image it is about
        stated = replace(stated, image_name="")
    near = image.parent  # a filesystem that has room for the image has room for its files
    with scratch.folder(near if os.access(near, os.W_OK) else None, ".imgkit-") as work:
        subject = Subject(image, info, work)
        return _result(image, place, check.verify(subject, stated, limits_for(stated, limit, timeout), open_disk))


def _result(image: Path, manifest: Path | None, found: Verification) -> VerifiedImage:
    return VerifiedImage(image, manifest, tuple(found.proved), tuple(found.faults))


@contextmanager
def open_disk(disk: Path, limits: Limits) -> Iterator[ImageReader]:
    """Open a raw disk for reading, with scratch files beside it if that is possible."""
    with (
        scratch.folder(disk.parent if os.access(disk.parent, os.W_OK) else None, ".imgkit-") as folder,
        open_image(disk, folder, appliance_options(), limits, info=_info_of_raw(disk)) as reader,
    ):
        yield reader


def _info_of_raw(disk: Path) -> ImageInfo:
    status = disk.stat()
    return ImageInfo("raw", status.st_size, status.st_blocks * 512)
