"""Compare an image, and the kernel and initramfs beside it, with the manifest; boots nothing of the image.

The very file that was built is known by its SHA-256. A converted, resized or changed image is compared byte by byte as
a guest sees it; whatever differs is located on the disk, and files are named. The manifest itself is believed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.cli import readoptions
from imgkit.cli.command import Invocation
from imgkit.engines.guestfs.readback import ImageReader, open_image
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import Limits
from imgkit.errors import InputError
from imgkit.host import scratch, terminal
from imgkit.image.manifest import read_manifest
from imgkit.verification import statement
from imgkit.verification.beside import manifest_of
from imgkit.verification.check import Subject, Verification, limits_for, verify

NAME = "verify"
HELP = "compare an image with its manifest"
SHOWN = 50  # differences that are listed


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="qcow2 or raw image; it is not changed")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: IMAGE with .manifest.json")
    readoptions.limit_arguments(parser, size="twice what was built, 1G at least")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Status 0 when everything is as the manifest says, 4 when something is not."""
    size, seconds = readoptions.given_limits(options)
    info = image_info(options.image)
    path = options.manifest or manifest_of(options.image)
    stated = statement.parse(read_manifest(path), path)
    near = options.image.parent  # where there was room for the image there is room for its files
    with scratch.folder(near if os.access(near, os.W_OK) else None, ".imgkit-") as work:
        verdict = verify(Subject(options.image, info, work), stated, limits_for(stated, size, seconds), _opened)
    _report(options.image, path, verdict)
    return 0


@contextmanager
def _opened(disk: Path, limits: Limits) -> Iterator[ImageReader]:
    with (
        scratch.folder(disk.parent if os.access(disk.parent, os.W_OK) else None, ".imgkit-") as folder,
        open_image(disk, folder, readoptions.appliance_options(), limits, info=_raw(disk)) as reader,
    ):
        yield reader


def _raw(disk: Path) -> ImageInfo:
    status = disk.stat()
    return ImageInfo("raw", status.st_size, status.st_blocks * 512)


def _report(image: Path, manifest: Path, verdict: Verification) -> None:
    """Print what came out.

    Raises:
        InputError: something is not as the manifest says.
    """
    if verdict.faults:
        for line in verdict.faults[:SHOWN]:
            print(terminal.line(line))
        if len(verdict.faults) > SHOWN:
            print(terminal.line(f"… and {len(verdict.faults) - SHOWN} more"))
        count = f"{len(verdict.faults)} differences" if len(verdict.faults) > 1 else "1 difference"
        raise InputError(f"{image}: is not as {manifest} says: {count}")
    for line in verdict.proved:
        print(terminal.line(line))
