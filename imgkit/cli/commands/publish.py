"""Publish images in the layout that the host application downloads from, as a folder TARGET/VERSION.

An image must have been proved by imgkit boot. Options take precedence over environment variables (INPUT_DIR,
OUTPUT_BASE, COWORK_SANDBOX_IMAGE_VERSION, COWORK_SANDBOX_BASE_URL).
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from imgkit.cli.command import Invocation
from imgkit.errors import UsageError
from imgkit.host import terminal
from imgkit.host.sourcedate import source_date
from imgkit.publish import publication, sources
from imgkit.publish.folder import PublishRequest, publish

NAME = "publish"
HELP = "publish images for the host application"
log = logging.getLogger("imgkit")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "version", nargs="?", metavar="VERSION", help="such as v0.1.5 (default: COWORK_SANDBOX_IMAGE_VERSION)"
    )
    parser.add_argument("--to", metavar="TARGET", help="folder of the versions (default: OUTPUT_BASE, or publish)")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="folder of the images (default: INPUT_DIR, OUT_DIR, or out)",
    )
    parser.add_argument("--name", default="linux", help="name of the recipe that was built (default: linux)")
    parser.add_argument(
        "--arch",
        action="append",
        choices=publication.ARCHES,
        help="architecture; may be repeated (default: those that are there)",
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="address of TARGET on the web (default: COWORK_SANDBOX_BASE_URL, or the one published before)",
    )
    parser.add_argument("--unproved", action="store_true", help="publish images that imgkit boot has not proved")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Publish the images, and print the folder of the version, or as JSON its index."""
    request = _request(options, os.environ)
    result = publish(request)
    for published in result.publication.architectures:
        proof = f"proved with {', '.join(published.firmwares)}" if published.firmwares else "not proved"
        image = published.image
        log.info("%s: %.0f MB, build %s, %s", image.name, image.size / 1e6, published.build_id, proof)
    if result.publication.base_url is None:
        log.warning("the addresses in %s are incomplete without --base-url", result.folder)
    if not result.changed:
        log.info("%s: was published already, nothing has changed", result.folder)
    if options.json:
        outcome = {"folder": str(result.folder), "changed": result.changed}
        print(terminal.as_json({**outcome, **publication.index(result.publication)}))
    else:
        terminal.say_path(result.folder)
    return 0


def _request(options: argparse.Namespace, environ: Mapping[str, str]) -> PublishRequest:
    """Return what the options and the environment ask for.

    Raises:
        UsageError: an option or a variable is wrong, or there is no version.
        InputError: there is nothing to publish.
    """
    version = options.version if options.version is not None else environ.get("COWORK_SANDBOX_IMAGE_VERSION")
    if not version:
        raise UsageError("no version to publish", hint="imgkit publish VERSION, or COWORK_SANDBOX_IMAGE_VERSION")
    publication.check_version(version)
    base_url = options.base_url if options.base_url is not None else environ.get("COWORK_SANDBOX_BASE_URL")
    folder = options.source or Path(environ.get("INPUT_DIR") or environ.get("OUT_DIR") or "out")
    generated_at = _generated_at(source_date(environ))
    target = _target(options.to, environ)
    return PublishRequest(
        images=sources.images(folder, options.name, options.arch or ()),
        base=target,
        version=version,
        base_url=publication.check_base_url(base_url) if base_url else None,
        generated_at=generated_at,
        unproved=options.unproved,
    )


def _target(given: str | None, environ: Mapping[str, str]) -> Path:
    """Return the folder to publish to. A name with a scheme (``s3://…``) is reserved for other kinds of targets.

    Raises:
        UsageError: the target is not the name of a folder.
    """
    text = given if given is not None else environ.get("OUTPUT_BASE") or "publish"
    if not text or _SCHEME.match(text):
        raise UsageError(f"--to {text}: not a folder", hint="publish to a folder, and upload that")
    return Path(text)


def _generated_at(epoch: int | None) -> str:
    """Return a time as JavaScript's ``Date.toISOString`` writes it: now, or ``epoch`` in seconds since 1970."""
    time = datetime.now(timezone.utc) if epoch is None else datetime.fromtimestamp(epoch, timezone.utc)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"
