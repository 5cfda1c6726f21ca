"""What the commands share that look into an image."""

from __future__ import annotations

from typing import Literal

from imgkit.engines.channel import Options
from imgkit.fetch.cache import default_folder
from imgkit.vm.machines import host_arch
from imgkit.vm.probe import probe


def appliance_options() -> Options:
    """How an appliance runs on this host: accelerated if the probe says so, from the cache of quick appliances."""
    accelerator: Literal["kvm", "tcg"] = "kvm" if probe(host_arch()).accelerator == "kvm" else "tcg"
    return Options(accelerator=accelerator, cache=default_folder() / "appliance")
