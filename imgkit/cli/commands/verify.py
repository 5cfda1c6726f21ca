"""Compare an image, and the kernel and initramfs beside it, with the manifest; boots nothing of the image.

The very file that was built is known by its SHA-256. A converted, resized or changed image is compared byte by byte as
a guest sees it; whatever differs is located on the disk, and files are named. Of a container image, which may have been
compressed anew, every file is compared. The manifest itself is believed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.cli import readoptions
from imgkit.cli.command import Invocation
from imgkit.cli.imagepaths import is_container_image, split_reference
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import Limits
from imgkit.engines.reading import ImageReader
from imgkit.errors import InputError
from imgkit.host import scratch, terminal
from imgkit.image.manifest import read_manifest
from imgkit.verification import statement
from imgkit.verification.beside import manifest_of
from imgkit.verification.check import Subject, Verification, limits_for, verify
from imgkit.verification.containers import verify_container

NAME = "verify"
HELP = "compare an image with its manifest"
_MOST_LISTED = 50  # differences


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="qcow2 or raw image, or a container image; it is not changed"
    )
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: the one beside the image")
    readoptions.limit_arguments(parser, size="twice what was built, 1G at least")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print what is as it was built, or what is not.

    Raises:
        InputError: something is not as the manifest says.
    """
    if is_container_image(options.image):
        path, tag = split_reference(options.image)
        result = verify_container(path, options.manifest, tag)
        _report(options.image, options.manifest or "its manifest", result)
        return 0
    size, seconds = readoptions.given_limits(options)
    info = image_info(options.image)
    path = options.manifest or manifest_of(options.image)
    stated = statement.parse(read_manifest(path), path)
    near = options.image.parent  # a filesystem that has room for the image has room for its files
    with scratch.folder(near if os.access(near, os.W_OK) else None, ".imgkit-") as work:
        result = verify(Subject(options.image, info, work), stated, limits_for(stated, size, seconds), _open_disk)
    _report(options.image, path, result)
    return 0


@contextmanager
def _open_disk(disk: Path, limits: Limits) -> Iterator[ImageReader]:
    """Open a raw disk for reading, with scratch files beside it if that is possible."""
    with (
        scratch.folder(disk.parent if os.access(disk.parent, os.W_OK) else None, ".imgkit-") as folder,
        open_image(disk, folder, readoptions.appliance_options(), limits, info=_info_of_raw(disk)) as reader,
    ):
        yield reader


def _info_of_raw(disk: Path) -> ImageInfo:
    status = disk.stat()
    return ImageInfo("raw", status.st_size, status.st_blocks * 512)


def _report(image: Path, manifest: Path | str, result: Verification) -> None:
    """Print the result of the comparison.

    Raises:
        InputError: something is not as the manifest says.
    """
    if result.faults:
        for line in result.faults[:_MOST_LISTED]:
            print(terminal.line(line))
        if len(result.faults) > _MOST_LISTED:
            print(terminal.line(f"… and {len(result.faults) - _MOST_LISTED} more"))
        count = f"{len(result.faults)} differences" if len(result.faults) > 1 else "1 difference"
        raise InputError(f"{image}: is not as {manifest} says: {count}")
    for line in result.proved:
        print(terminal.line(line))
