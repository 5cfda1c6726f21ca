"""Options of the commands that read an image with an appliance."""

from __future__ import annotations

import argparse

from imgkit.errors import UsageError
from imgkit.recipe import parse_size


def limit_arguments(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Add the options that raise the limits of reading an image.

    Args:
        size: for the help, the default of ``--limit``.
    """
    parser.add_argument("--limit", metavar="SIZE", help=f"read so much of the image at most (default: {size})")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds to read it in (default: 900)")


def given_limits(options: argparse.Namespace) -> tuple[int | None, float | None]:
    """Return the values of the options of :func:`limit_arguments`: bytes and seconds, None for a default.

    Raises:
        UsageError: a value is not a size, or not a number of seconds.
    """
    if options.timeout is not None and not 0 < options.timeout < float("inf"):
        raise UsageError(f"--timeout {options.timeout:g}: not a number of seconds to wait")
    try:
        return parse_size(options.limit) if options.limit is not None else None, options.timeout
    except ValueError as cause:
        raise UsageError(f"--limit: {cause}") from cause
