"""Which of this host's kernels the appliance can be made from.

Ubuntu, and newer kernels elsewhere, make ``/boot/vmlinuz-*`` readable for root only, and supermin takes the newest
kernel whether it can read it or not. Standard library only: imported in the process that holds libguestfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

BOOT = Path("/boot")
MODULES = Path("/lib/modules")


class NoKernelError(Exception):
    """There is none that this user can read."""


def choice(environment: Mapping[str, str], boot: Path = BOOT, modules: Path = MODULES) -> dict[str, str]:
    """Variables for supermin that make it take a kernel it can read; none where it will do so by itself.

    Raises:
        NoKernelError: no kernel with modules, or none that is readable.
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
    """Kernels with their module folders, oldest version first."""
    found = [(path, modules / path.name.partition("-")[2]) for path in boot.glob("vmlinu[xz]-*")]
    found += [(path, path.parent) for path in modules.glob("*/vmlinuz")]
    return sorted((pair for pair in found if pair[1].is_dir()), key=lambda pair: _version(pair[1].name))


def _version(release: str) -> tuple[tuple[int, str], ...]:
    """For sorting: 6.1.0-9 before 6.1.0-10."""
    return tuple((int(word), "") if word.isdigit() else (-1, word) for word in re.findall(r"[0-9]+|[a-z]+", release))
