"""What the commands share that look into an image."""

from __future__ import annotations

import os
from typing import Literal

from imgkit.engines.channel import Options
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder
from imgkit.vm.machines import host_arch
from imgkit.vm.probe import probe


def appliance_options() -> Options:
    """How an appliance runs on this host: accelerated if the probe says so, from the cache of quick appliances."""
    accelerator: Literal["kvm", "tcg"] = "kvm" if probe(host_arch()).accelerator == "kvm" else "tcg"
    return Options(accelerator=accelerator, cache=default_folder() / "appliance", launch_timeout=_launch_timeout())


def _launch_timeout() -> float:
    """Seconds that an appliance may take to start: ``IMGKIT_LAUNCH_TIMEOUT``, for hosts that are slower than most."""
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
