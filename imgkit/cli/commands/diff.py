"""Compare two images, manifests or lock files: packages, files, sizes, kernel arguments, fields of the recipes.

Each side is a disk image, a container image (an OCI image layout, LAYOUT:TAG, or an archive), a manifest (.json) or a
lock file (.lock). What only one of them knows is not compared: a lock file has packages, but no files. The exit status
is that of diff(1): 0 if there is no difference, 1 if there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imgkit.api import comparing
from imgkit.cli.command import Invocation
from imgkit.cli.options import readoptions
from imgkit.cli.reports import difftext
from imgkit.engines.limits import DEFAULT_SECONDS
from imgkit.errors import DIFFERENT
from imgkit.host import terminal
from imgkit.host.jsonkeys import jsonable

NAME = "diff"
HELP = "compare two images, manifests or lock files"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("before", type=Path, metavar="BEFORE", help="image, manifest or lock file; it is not changed")
    parser.add_argument("after", type=Path, metavar="AFTER", help="what it is compared with")
    parser.add_argument("--arch", metavar="ARCH", help="compare this architecture only (default: all)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    readoptions.limit_arguments(parser, size="16G")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print the differences, about one screen of them, or all of them as JSON."""
    size, seconds = readoptions.given_limits(options)
    comparison = comparing.diff(
        options.before,
        options.after,
        arch=options.arch,
        limit=size or comparing.LIMIT,
        timeout=seconds or DEFAULT_SECONDS,
    )
    if options.json:
        print(terminal.as_json({"equal": comparison.equal, **jsonable(comparison)}))
    else:
        print(terminal.block(difftext.text(comparison)))
    return 0 if comparison.equal else DIFFERENT
