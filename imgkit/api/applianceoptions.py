"""How libguestfs' appliance is run on this host, by every function that starts one."""

from __future__ import annotations

import os
from typing import Literal

from imgkit.engines.guestfs.channel import Options
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder
from imgkit.vm.qemu.machines import host_arch
from imgkit.vm.qemu.probe import probe


def appliance_options() -> Options:
    """Return the options of an appliance on this host: accelerated where that works, and the quick appliance.

    Raises:
        UsageError: ``IMGKIT_LAUNCH_TIMEOUT`` is not a number of seconds.
    """
    accelerator: Literal["kvm", "tcg"] = "kvm" if probe(host_arch()).name == "kvm" else "tcg"
    return Options(accelerator=accelerator, cache=default_folder() / "appliance", launch_timeout=_launch_timeout())


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
