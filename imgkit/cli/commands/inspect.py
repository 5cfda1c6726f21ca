"""Show what is in an image: partitions, filesystems, packages; or platforms, layers, packages. Boots nothing of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from imgkit.apk.database import parse_installed
from imgkit.cli import layoutreport, readoptions
from imgkit.cli.command import Invocation
from imgkit.cli.imagepaths import is_container_image
from imgkit.engines.engineerrors import LimitError
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.limits import DEFAULT_SECONDS, DEFAULT_SIZE, Limits
from imgkit.engines.reading import ImageDescription
from imgkit.host import scratch, terminal

NAME = "inspect"
HELP = "what is in an image: partitions, packages, sizes"

_FILE_LINES = re.compile(r"^(?:[FMRaZ]:.*\n)+", re.MULTILINE)
_MOST_LINES = 1 << 20  # all packages of a branch of Alpine together have about half as many


@dataclass(frozen=True)
class ListedPackage:
    """A package of the image; ``size`` is that of its files, in bytes."""

    name: str
    version: str
    size: int


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help="qcow2 or raw image, or an OCI image layout or archive; it is not changed",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    readoptions.limit_arguments(parser, size="64M of its package database")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print what is in the image, as tables or as JSON."""
    if is_container_image(options.image):
        images = layoutreport.read_images(options.image)
        as_text = layoutreport.text(options.image, images)
        print(terminal.as_json([image.to_json() for image in images]) if options.json else terminal.block(as_text))
        return 0
    size, seconds = readoptions.given_limits(options)
    limits = Limits(size or DEFAULT_SIZE, seconds or DEFAULT_SECONDS)
    with (
        scratch.folder() as folder,
        open_image(options.image, folder, readoptions.appliance_options(), limits) as reader,
    ):
        image = reader.describe()
    packages = [
        ListedPackage(record.package.name, record.package.version, record.package.installed_size)
        for record in parse_installed(_without_files(options.image, image.apk_installed))
    ]
    if options.json:
        print(terminal.as_json(as_json(image, packages)))
    else:
        print(terminal.block(text(options.image, image, packages)))
    return 0


def _without_files(image: Path, database: str) -> str:
    """Return a package database without its lists of files, which are most of it.

    Raises:
        LimitError: the rest has more lines than the packages of any image.
    """
    records = _FILE_LINES.sub("", database)
    if records.count("\n") > _MOST_LINES:
        raise LimitError(f"{image}: its package database has more than {_MOST_LINES} lines besides lists of files")
    return records


def as_json(image: ImageDescription, packages: Sequence[ListedPackage]) -> dict[str, object]:
    """Return what ``--json`` prints: the description, with the packages in place of the text of their database."""
    value: dict[str, object] = asdict(image)
    del value["apk_installed"]
    return {**value, "packages": [asdict(package) for package in packages]}


def text(path: Path, image: ImageDescription, packages: Sequence[ListedPackage]) -> str:
    """Return the description as tables."""
    root = image.root
    lines = [
        f"{path}: {image.format}, {_mib(image.virtual_size)} MiB, {_mib(image.file_size)} MiB on disk",
        f"system     {image.os_release.get('PRETTY_NAME', 'unknown')}",
        f"kernel     {', '.join(image.kernels) or 'none'}",
        f"root       {_mib(root.used)} MiB of {_mib(root.size)} MiB used, {root.inodes_used} inodes",
        "",
        f"{'nr':>3}  {'name':<12} {'filesystem':<10} {'start':>9}  {'size':>9}  uuid",
    ]
    for partition in image.partitions:
        lines.append(
            f"{partition.number:>3}  {partition.name:<12} {partition.filesystem or '-':<10}"
            f" {_mib(partition.start):>5} MiB  {_mib(partition.size):>5} MiB  {partition.fs_uuid or partition.uuid}"
        )
    lines += ["", f"{len(packages)} packages, the largest first"]
    for package in sorted(packages, key=lambda package: (-package.size, package.name)):
        lines.append(f"{package.size / 1e6:9.1f} MB  {package.name}-{package.version}")
    return "\n".join(lines)


def _mib(size: int) -> int:
    """Return a number of bytes in MiB, rounded up."""
    return -(-size // (1 << 20))
