"""Options of the commands that talk to registries."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgkit.registry.access import RegistryAccess


def arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how registries are reached."""
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="certificates in PEM that are trusted in addition to the usual ones",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="talk plain http to a registry that has no TLS; certificates are verified all the same",
    )


def registry_access(options: argparse.Namespace) -> RegistryAccess:
    """Return what the options and the environment say."""
    return RegistryAccess(insecure=options.insecure, ca=options.ca, environ=dict(os.environ))
