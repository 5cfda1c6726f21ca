"""Options of the commands that talk to registries."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgkit.errors import UsageError
from imgkit.host import lookup
from imgkit.registry.access import RegistryAccess


def arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how registries are reached."""
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="certificates in PEM that are trusted for registries, not for mirrors, besides the usual ones",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="talk plain http to a registry that has no TLS; certificates are verified all the same",
    )


def registry_access(options: argparse.Namespace) -> RegistryAccess:
    """Return what the options and the environment say.

    Raises:
        UsageError: the file of certificates is missing. Its contents are read when a registry is talked to.
    """
    if options.ca is not None and (fault := lookup.file_fault(options.ca)):
        raise UsageError(f"--ca: {fault}")
    return RegistryAccess(insecure=options.insecure, ca=options.ca, environ=dict(os.environ))
