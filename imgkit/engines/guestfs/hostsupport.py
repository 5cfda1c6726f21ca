"""Find out whether this host can run the appliance, without starting it: for ``--engine auto`` and ``imgkit doctor``.

What is missing is listed; that nothing is missing does not prove that the appliance starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgkit.engines.guestfs import bindings, hostkernel
from imgkit.engines.guestfs.appliancestart import KERNEL_FIX
from imgkit.errors import HostError
from imgkit.host import process

_FIXED = "README.fixed"  # guestfs-building(1), "fixed appliance": by this file libguestfs knows one


@dataclass(frozen=True)
class HostLack:
    """Something that the appliance needs and this host does not have: what it is, and what to do about it."""

    what: str
    fix: str


def lacks(environment: Mapping[str, str]) -> Iterator[HostLack]:
    """Yield what this host lacks to run libguestfs' appliance.

    Args:
        environment: the variables of imgkit, supermin and libguestfs are read from it.
    """
    if sys.platform == "darwin":
        yield HostLack("Linux, as libguestfs exists there only", "a container or a virtual machine of Linux")
    else:
        yield from _lacks_on_linux(environment)


def _lacks_on_linux(environment: Mapping[str, str]) -> Iterator[HostLack]:
    try:
        bindings.choose(environment)
    except HostError as cause:
        yield HostLack(cause.message, cause.hint or "")
    programs = [f"qemu-system-{os.uname().machine.replace('arm64', 'aarch64')}"]
    if not _has_fixed_appliance(environment):
        programs.append("supermin")
        try:
            hostkernel.choice(environment)
        except hostkernel.NoKernelError as cause:
            yield HostLack(f"kernel: {cause}", KERNEL_FIX)
    for program in programs:
        if shutil.which(program, path=environment.get("PATH")) is None:
            missing = process.missing(program)
            yield HostLack(missing.message, missing.hint or "")


def _has_fixed_appliance(environment: Mapping[str, str]) -> bool:
    folders = (Path(folder) for folder in environment.get("LIBGUESTFS_PATH", "").split(os.pathsep) if folder)
    return any(os.access(folder / _FIXED, os.F_OK) for folder in folders)
