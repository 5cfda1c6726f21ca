"""Show what is in an image: partitions, file systems, packages. Boots nothing of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from imgkit.apk.database import parse_installed
from imgkit.cli import readoptions
from imgkit.cli.command import Invocation
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.limits import DEFAULT_SECONDS, DEFAULT_SIZE, Limits
from imgkit.errors import InputError
from imgkit.host import scratch, terminal

NAME = "inspect"
HELP = "what is in an image: partitions, packages, sizes"

_FILE_LINES = re.compile(r"^(?:[FMRaZ]:.*\n)+", re.MULTILINE)
_MOST_LINES = 1 << 20  # all packages of a branch of Alpine together have about half as many


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="qcow2 or raw image; it is not changed")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    readoptions.limit_arguments(parser, size="64M of its package database")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    size, seconds = readoptions.given_limits(options)
    limits = Limits(size or DEFAULT_SIZE, seconds or DEFAULT_SECONDS)
    with (
        scratch.folder() as folder,
        open_image(options.image, folder, readoptions.appliance_options(), limits) as reader,
    ):
        found = reader.describe()
    records = parse_installed(_heads(options.image, found.pop("apk_installed")))
    found["packages"] = [
        {"name": one.package.name, "version": one.package.version, "size": one.package.installed_size}
        for one in records
    ]
    print(terminal.as_json(found) if options.json else terminal.block(text(options.image, found)))
    return 0


def _heads(image: Path, database: str) -> str:
    """A package database without its lists of files, which are most of it.

    Raises:
        InputError: what is left is more than the packages of any image.
    """
    heads = _FILE_LINES.sub("", database)
    if heads.count("\n") > _MOST_LINES:
        raise InputError(f"{image}: its package database has more than {_MOST_LINES} lines besides lists of files")
    return heads


def text(image: Path, found: dict[str, Any]) -> str:
    """The findings as tables."""
    system, root = found["os_release"], found["root"]
    lines = [
        f"{image}: {found['format']}, {_mib(found['virtual_size'])} MiB, {_mib(found['file_size'])} MiB on disk",
        f"system     {system.get('PRETTY_NAME', 'unknown')}",
        f"kernel     {', '.join(found['kernels']) or 'none'}",
        f"root       {_mib(root['used'])} MiB of {_mib(root['size'])} MiB used, {root['inodes_used']} inodes",
        "",
        f"{'nr':>3}  {'name':<12} {'filesystem':<10} {'start':>9}  {'size':>9}  uuid",
    ]
    for part in found["partitions"]:
        lines.append(
            f"{part['number']:>3}  {part['name']:<12} {part['filesystem'] or '-':<10} {_mib(part['start']):>5} MiB"
            f"  {_mib(part['size']):>5} MiB  {part['fs_uuid'] or part['uuid']}"
        )
    lines += ["", f"{len(found['packages'])} packages, the largest first"]
    for one in sorted(found["packages"], key=lambda one: (-one["size"], one["name"])):
        lines.append(f"{one['size'] / 1e6:9.1f} MB  {one['name']}-{one['version']}")
    return "\n".join(lines)


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
