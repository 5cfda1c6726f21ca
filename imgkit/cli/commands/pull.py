"""Pull a container image from a registry into an OCI image layout, a folder.

Every digest is verified. Blobs that the folder has already are kept, so a pull that was interrupted goes on where it
was, and images that share layers have them once. Credentials are those of docker login and podman login.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgkit.cli.command import Invocation
from imgkit.cli.options import registryoptions
from imgkit.errors import HostError, UsageError
from imgkit.host import lookup, terminal
from imgkit.oci.annotations import REF_NAME
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.pulling import PulledImage, pull_image

NAME = "pull"
HELP = "pull a container image from a registry"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("name", metavar="REF", help="[REGISTRY/]NAME[:TAG][@DIGEST], such as alpine:3.22")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the layout (default: the last part of NAME, with .oci)"
    )
    parser.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help="pull this architecture only; may be repeated (default: all that are there)",
    )
    registryoptions.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Pull the image, and print the folder, or as JSON what was pulled."""
    name = ImageName.parse(options.name)
    folder = options.out or Path(name.repository.rpartition("/")[2] + ".oci")
    platforms = [Platform("linux", architecture) for architecture in options.arch or ()]
    with _layout(folder) as layout:
        pulled = pull_image(name, layout, platforms, access=registryoptions.registry_access(options))
        layout.write_index([_entry(name, entry) for entry in pulled.entries])
    if options.json:
        print(terminal.as_json(as_json(name, folder, pulled)))
    else:
        print(terminal.block(f"digest     {pulled.root.digest}\nlayout     {folder}"))
    return 0


@contextmanager
def _layout(folder: Path) -> Iterator[OciLayout]:
    """Open or make the layout. A new one is removed if the block fails before a blob is complete.

    With blobs it stays, so that the next pull need not fetch them again.

    Raises:
        UsageError: the folder has something else in it.
        HostError: the folder cannot be made.
    """
    is_new = not lookup.exists(folder, HostError)
    layout = _opened(folder)
    try:
        yield layout
    except BaseException:
        if is_new and not any(path.is_file() for path in (folder / "blobs").rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _opened(folder: Path) -> OciLayout:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / "oci-layout").is_file():
                raise UsageError(f"{folder}: is not empty, and not an OCI image layout", hint="choose another --out")
            return OciLayout.open(folder)
        return OciLayout.create(folder)
    except OSError as cause:
        raise HostError(f"{folder}: cannot be written ({cause.strerror})") from cause


def _entry(name: ImageName, entry: Descriptor) -> Descriptor:
    """Return an entry of the layout's index. An image without a platform has its tag as its name, as elsewhere."""
    if entry.platform is not None or not name.tag:
        return replace(entry, annotations={})
    return replace(entry, annotations={REF_NAME: name.tag})


def as_json(name: ImageName, folder: Path, pulled: PulledImage) -> dict[str, Any]:
    """Return the result as an object."""
    return {
        "name": str(name),
        "layout": str(folder),
        "digest": pulled.root.digest,
        "mediaType": pulled.root.media_type,
        "images": [entry.to_json() for entry in pulled.entries],
        "bytes": {"fetched": pulled.bytes_fetched, "kept": pulled.bytes_kept},
    }
