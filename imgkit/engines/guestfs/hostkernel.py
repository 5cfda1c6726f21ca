"""Choose the kernel of this host that the appliance is made from.

Ubuntu, and newer kernels of other distributions, make ``/boot/vmlinuz-*`` readable for root only, and supermin takes
the newest kernel whether it can read it or not. This module is imported in the process that holds libguestfs, so it and
what it imports need the standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from imgkit.host.kernelrelease import release_key

BOOT = Path("/boot")
MODULES = Path("/lib/modules")


class NoKernelError(Exception):
    """There is no kernel with modules, or none that this user can read."""


def choice(environment: Mapping[str, str], boot: Path = BOOT, modules: Path = MODULES) -> dict[str, str]:
    """Return the environment variables that make supermin take a kernel that this user can read.

    Args:
        environment: SUPERMIN_KERNEL in it is respected.
        boot, modules: folders of the kernels and of their modules.

    Returns:
        The variables; none if supermin takes such a kernel by itself.

    Raises:
        NoKernelError: no kernel has modules, or none of those is readable.
    """
    named = environment.get("SUPERMIN_KERNEL")
    if named:
        if not os.access(named, os.R_OK):
            raise NoKernelError(f"{named} (SUPERMIN_KERNEL) is not readable")
        return {}
    kernels = _kernels(boot, modules)
    if not kernels:
        raise NoKernelError(f"no kernel in {boot} that has modules in {modules}")
    readable = [kernel for kernel in kernels if os.access(kernel[0], os.R_OK)]
    if not readable:
        raise NoKernelError(f"{kernels[-1][0]} is not readable")
    if readable[-1] == kernels[-1]:
        return {}
    kernel, folder = readable[-1]
    return {"SUPERMIN_KERNEL": str(kernel), "SUPERMIN_MODULES": str(folder)}


def _kernels(boot: Path, modules: Path) -> Sequence[tuple[Path, Path]]:
    """Return the kernels with the folders of their modules, the oldest version first."""
    kernels = [(path, modules / path.name.partition("-")[2]) for path in boot.glob("vmlinu[xz]-*")]
    kernels += [(path, path.parent) for path in modules.glob("*/vmlinuz")]
    return sorted((pair for pair in kernels if pair[1].is_dir()), key=lambda pair: release_key(pair[1].name))
