"""Show what is in an image: partitions, filesystems, packages; or platforms, layers, packages. Boots nothing of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from imgkit.api import inspecting
from imgkit.api.inspecting import DiskContents
from imgkit.cli.command import Invocation
from imgkit.cli.options import readoptions
from imgkit.cli.reports import layoutreport
from imgkit.disk.size import show_file_size
from imgkit.engines.limits import DEFAULT_SECONDS, DEFAULT_SIZE
from imgkit.host import terminal
from imgkit.host.jsonkeys import jsonable
from imgkit.image.imagepaths import is_container_image

NAME = "inspect"
HELP = "what is in an image: partitions, packages, sizes"

_ALIGNMENT = 1 << 20  # bytes: some programs leave the rest of the last MiB unused


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
        images = inspecting.inspect_container(options.image)
        as_text = layoutreport.text(options.image, images)
        print(terminal.as_json(jsonable(images)) if options.json else terminal.block(as_text))
        return 0
    size, seconds = readoptions.given_limits(options)
    disk = inspecting.inspect(options.image, limit=size or DEFAULT_SIZE, timeout=seconds or DEFAULT_SECONDS)
    print(terminal.as_json(jsonable(disk)) if options.json else terminal.block(text(options.image, disk)))
    return 0


def text(path: Path, disk: DiskContents) -> str:
    """Return the description as tables."""
    root = disk.root
    lines = [
        f"{path}: {disk.format}, {_mib(disk.virtual_size)} MiB, {show_file_size(disk.file_size)} on disk",
        f"system     {disk.os_release.get('PRETTY_NAME', 'unknown')}",
        f"kernel     {', '.join(disk.kernels) or 'none'}",
        f"root       {_mib(root.used)} MiB of {_mib(root.size)} MiB used, {root.inodes_used} inodes",
        *_growth(disk),
        "",
        f"{'nr':>3}  {'name':<12} {'filesystem':<10} {'start':>9}  {'size':>9}  uuid",
    ]
    for partition in disk.partitions:
        lines.append(
            f"{partition.number:>3}  {partition.name:<12} {partition.filesystem or '-':<10}"
            f" {_mib(partition.start):>5} MiB  {_mib(partition.size):>5} MiB  {partition.fs_uuid or partition.uuid}"
        )
    lines += ["", f"{len(disk.packages)} packages, the largest first"]
    for package in sorted(disk.packages, key=lambda package: (-package.size, package.name)):
        lines.append(f"{package.size / 1e6:9.1f} MB  {package.name}-{package.version}")
    return "\n".join(lines)


def _growth(disk: DiskContents) -> list[str]:
    """Return a line about a disk that was enlarged, if it was."""
    if not 0 < disk.partitioned_size < disk.virtual_size - _ALIGNMENT:
        return []
    table = f"its partition table was made for {_mib(disk.partitioned_size)} MiB"
    return [f"enlarged   {table}; the root of an image of imgkit grows at its next boot"]


def _mib(size: int) -> int:
    """Return a number of bytes in MiB, rounded up."""
    return -(-size // (1 << 20))
