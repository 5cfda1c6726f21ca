"""Options of the commands that start an appliance, and of those that read an image with it."""

from __future__ import annotations

import argparse
import os
from typing import Literal

from imgkit.engines.guestfs.channel import Options
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder
from imgkit.recipe import parse_size
from imgkit.vm.qemu.machines import host_arch
from imgkit.vm.qemu.probe import probe


def appliance_options() -> Options:
    """Return the options of an appliance on this host: accelerated where that works, and the quick appliance.

    Raises:
        UsageError: ``IMGKIT_LAUNCH_TIMEOUT`` is not a number of seconds.
    """
    accelerator: Literal["kvm", "tcg"] = "kvm" if probe(host_arch()).name == "kvm" else "tcg"
    return Options(accelerator=accelerator, cache=default_folder() / "appliance", launch_timeout=_launch_timeout())


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


def _launch_timeout() -> float:
    """Return the seconds that an appliance may take to start; ``IMGKIT_LAUNCH_TIMEOUT`` sets them for slow hosts."""
    given = os.environ.get("IMGKIT_LAUNCH_TIMEOUT")
    if not given:
        return Options.launch_timeout
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"IMGKIT_LAUNCH_TIMEOUT={given}: not a number of seconds")
    return seconds
