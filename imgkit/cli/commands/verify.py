"""Compare an image, and the kernel and initramfs beside it, with the manifest; boots nothing of the image.

The very file that was built is known by its SHA-256. A converted, resized or changed image is compared byte by byte as
a guest sees it; whatever differs is located on the disk, and files are named. Of a container image, which may have been
compressed anew, every file is compared. The manifest itself is believed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imgkit.api import verifying
from imgkit.api.verifying import VerifiedImage
from imgkit.cli.command import Invocation
from imgkit.cli.options import readoptions
from imgkit.errors import InputError
from imgkit.host import terminal
from imgkit.host.jsonkeys import jsonable

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
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    """Print what is as it was built, or what is not.

    Raises:
        InputError: something is not as the manifest says.
    """
    size, seconds = readoptions.given_limits(options)
    result = verifying.verify(options.image, options.manifest, limit=size, timeout=seconds)
    invocation.done.append(jsonable(result))
    if not result.ok:
        raise _failure(result, listed=not options.json)
    if options.json:
        print(terminal.as_json(jsonable(result)))
    else:
        for line in result.proved:
            print(terminal.line(line))
    return 0


def _failure(result: VerifiedImage, *, listed: bool) -> InputError:
    """Return the error about an image that is not as it was built. The first differences are printed if ``listed``."""
    for line in result.faults[: _MOST_LISTED if listed else 0]:
        print(terminal.line(line))
    if listed and len(result.faults) > _MOST_LISTED:
        print(terminal.line(f"… and {len(result.faults) - _MOST_LISTED} more"))
    count = f"{len(result.faults)} differences" if len(result.faults) > 1 else "1 difference"
    return InputError(f"{result.image}: is not as {result.manifest or 'its manifest'} says: {count}")
