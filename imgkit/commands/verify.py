"""Compare every file of an image with the manifest beside it; boots nothing of the image."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgkit import scratch, terminal
from imgkit.commands.reading import appliance_options
from imgkit.engines.reading import image_info, open_image
from imgkit.errors import InputError
from imgkit.manifest import read_manifest
from imgkit.rootfs.archive import tree_from_tar
from imgkit.rootfs.digest import differences, records

NAME = "verify"
HELP = "compare every file of an image with its manifest"
SHOWN = 50  # differences that are listed


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="qcow2 or raw image; it is not changed")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: IMAGE with .manifest.json")


def run(options: argparse.Namespace) -> int:
    """Status 0 when everything is as the manifest says, 4 when something is not."""
    image_info(options.image)
    path = options.manifest or options.image.with_suffix(".manifest.json")
    manifest = read_manifest(path)
    near = options.image.parent  # where there was room for the image there is room for its files
    with scratch.folder(near if os.access(near, os.W_OK) else None, ".imgkit-") as work:
        archive = work / "root.tar"
        folder = work / "appliance"
        folder.mkdir()
        with open_image(options.image, folder, appliance_options()) as reader, archive.open("wb") as sink:
            reader.read_tar(sink)
        found = records(tree_from_tar(archive))
    lines = differences(manifest["files"], found)
    for line in lines[:SHOWN]:
        print(terminal.line(line))
    if lines:
        raise InputError(f"{options.image}: {len(lines)} of {len(found)} paths are not as {path} says")
    print(terminal.line(f"{options.image}: {len(found)} paths are as {path} says"))
    return 0
