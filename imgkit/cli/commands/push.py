"""Push a container image to registries: every architecture in it, under one or several tags.

LAYOUT is what imgkit build --output oci or oci-archive wrote, or another OCI image layout. What a registry has already
is not sent. The tags are written last, when everything else is there. Credentials are those of docker login and podman
login.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgkit.cli.command import Invocation
from imgkit.cli.options import registryoptions
from imgkit.errors import UsageError
from imgkit.host import terminal
from imgkit.oci.imagename import ImageName
from imgkit.oci.unpacking import opened_layout
from imgkit.registry.gittags import AUTO, automatic_tags
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pushing import MOUNTED, SENT, SKIPPED, PartResult, PushResult, TargetResult, push, push_targets

NAME = "push"
HELP = "push a container image to registries"
log = logging.getLogger("imgkit")
_MAX_CHUNK = 1024  # MiB


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("layout", type=Path, metavar="LAYOUT", help="folder or archive of an OCI image layout")
    parser.add_argument(
        "names", nargs="+", metavar="REF", help="REGISTRY/NAME[:TAG], such as registry.example/team/app:1.0"
    )
    parser.add_argument(
        "--tags",
        metavar="TAGS",
        help="tags for all REFs, which have none then: auto (branch and commit of git), or a list as 1.0,latest",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        default=Path(),
        help="folder in whose git --tags auto looks (default: the current folder)",
    )
    parser.add_argument("--image", default="", metavar="NAME", help="which image of a layout that has several")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help="push this architecture only; may be repeated (default: all that are there)",
    )
    parser.add_argument(
        "--mount-from",
        action="append",
        default=[],
        metavar="REPOSITORY",
        help="another repository of the registry that may have blobs of the image; may be repeated",
    )
    parser.add_argument(
        "--chunk-size",
        type=int,
        default=64,
        metavar="MIB",
        help="larger blobs are sent in chunks of this size (default: 64)",
    )
    parser.add_argument("--dry-run", action="store_true", help="ask what the registries have, and send nothing")
    registryoptions.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Push the image, and print what was sent where."""
    if not 1 <= options.chunk_size <= _MAX_CHUNK:
        raise UsageError(f"--chunk-size {options.chunk_size}: is not between 1 and {_MAX_CHUNK}")
    names = [ImageName.parse(text) for text in options.names]
    mounts = [ImageName.parse(f"{names[0].registry}/{text}").repository for text in options.mount_from]
    tags = _tags(options)
    access = replace(registryoptions.registry_access(options), chunk_size=options.chunk_size << 20)
    with opened_layout(options.layout) as layout:
        parts = read_parts(layout, image=options.image, architectures=options.arch or (), name=options.layout)
        targets = push_targets(names, parts.root, tags)
        result = push(layout, parts, targets, access=access, mount_from=mounts, dry_run=options.dry_run)
    print(terminal.as_json(as_json(result)) if options.json else terminal.block(as_text(result)))
    return 0


def _tags(options: argparse.Namespace) -> Sequence[str]:
    """Return the tags for all names.

    Raises:
        UsageError: a word of the list is not a tag, or git has nothing to say.
    """
    if options.tags is None:
        return ()
    if options.tags == AUTO:
        return automatic_tags(options.source)
    probe = ImageName("registry.example", "a")
    return [probe.with_tag(word.strip()).tag for word in options.tags.split(",")]


def as_text(result: PushResult) -> str:
    """Return the result as lines: one for each repository, and one for each tag."""
    lines = [f"digest     {result.root.digest}"]
    for target in result.targets:
        lines.append(f"repository {target.target.name.full_repository}: {_summary(target, result.dry_run)}")
        lines += [f"  {part.result:<8} {part.descriptor.size:>13,} {part.descriptor.digest}" for part in target.blobs]
        written = "would be written" if result.dry_run else "written"
        lines += [f"tag        {target.target.name.with_tag(tag)} ({written})" for tag in target.target.tags]
    return "\n".join(lines)


def _summary(target: TargetResult, dry_run: bool) -> str:  # noqa: FBT001 - the result of a push has it
    words = [f"{target.bytes_of(result):,} bytes {result}" for result in (SENT, MOUNTED, SKIPPED)]
    return ("would be: " if dry_run else "") + ", ".join(words)


def as_json(result: PushResult) -> dict[str, Any]:
    """Return the result as an object."""
    return {
        "digest": result.root.digest,
        "mediaType": result.root.media_type,
        "dryRun": result.dry_run,
        "targets": [_target(target) for target in result.targets],
    }


def _target(target: TargetResult) -> dict[str, Any]:
    return {
        "repository": target.target.name.full_repository,
        "tags": list(target.target.tags),
        "bytes": {result: target.bytes_of(result) for result in (SENT, MOUNTED, SKIPPED)},
        "blobs": [_part(part) for part in target.blobs],
        "documents": [_part(part) for part in target.documents],
    }


def _part(part: PartResult) -> dict[str, Any]:
    described = {
        "digest": part.descriptor.digest,
        "mediaType": part.descriptor.media_type,
        "size": part.descriptor.size,
        "result": part.result,
        "bytesSent": part.bytes_sent,
    }
    return {**described, "from": part.source} if part.source else described
