"""Choose the engine that writes disks: by its name, by the variable ``IMGKIT_ENGINE``, or by what this host can run.

launch = engine_for("auto")         # → a LaunchEngine
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Literal, TypeAlias, get_args

from imgkit.engines.interface import EngineName, LaunchEngine
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder

log = logging.getLogger("imgkit")

EngineChoice: TypeAlias = Literal["guestfs", "native", "auto"]
"""An engine, or "auto": libguestfs where this host can use it, and otherwise the native one."""
VARIABLE = "IMGKIT_ENGINE"
"""The variable that chooses the engine where nothing else does."""


def engine_for(choice: str | None = None) -> LaunchEngine:
    """Return the engine that was chosen, ready for this host.

    Args:
        choice: an :data:`EngineChoice`; None takes that of :data:`VARIABLE`, or else libguestfs.

    Raises:
        UsageError: there is no such engine, or a variable that is about the appliance has a wrong value.
    """
    return guestfs_engine() if engine_name(choice) == "guestfs" else native_engine()


def engine_name(choice: str | None = None) -> EngineName:
    """Return the engine that a choice amounts to on this host.

    Raises:
        UsageError: there is no such engine.
    """
    given = choice or os.environ.get(VARIABLE) or "guestfs"
    if given not in get_args(EngineChoice):
        origin = "" if choice else f"{VARIABLE}="
        known = ", ".join(get_args(EngineChoice))
        raise UsageError(f"{origin}{given}: unknown engine", hint=f"known are {known}")
    if given == "auto":
        from imgkit.engines.guestfs import hostsupport

        lack = next(hostsupport.lacks(os.environ), None)
        if lack is None:
            log.debug("engine auto: guestfs can be used")
            return "guestfs"
        log.info("engine auto: native, as this host lacks for guestfs: %s", lack.what)
        return "native"
    return "guestfs" if given == "guestfs" else "native"


def native_engine() -> LaunchEngine:
    """Return the engine that computes disks, which needs no program of the host."""
    from imgkit.engines.native import nativeengine as native

    return partial(native.launch, cache=default_folder())


def guestfs_engine() -> LaunchEngine:
    """Return the engine that makes disks with libguestfs on this host."""
    from imgkit.api.applianceoptions import appliance_options
    from imgkit.engines.guestfs import guestfsengine as guestfs

    return partial(guestfs.launch, options=appliance_options())
