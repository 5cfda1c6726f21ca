"""The kernel of a container image that is run as a machine: Alpine's, verified as in every build.

kernel = fetch_kernel(DEFAULT_RECIPE, "amd64", cache, scratch, epoch…)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.apk.package import PackageFile
from imgkit.errors import InputError, RecipeError
from imgkit.fetch.cache import Cache
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.resolve import make_plan
from imgkit.recipe import Architecture, Recipe
from imgkit.recipe.spec import PartitionSpec
from imgkit.rootfs.initramfs.machineinit import machine_initramfs
from imgkit.rootfs.kernel import Kernel, direct_boot_image, kernels
from imgkit.tree import Tree, parent

_ROOT = (PartitionSpec(kind="root"),)
DEFAULT_RECIPE = Recipe(
    name="machine",
    branch="v3.23",
    packages=(),
    architectures={
        "amd64": Architecture(alpine="x86_64", partitions=_ROOT, grub_platforms=(), consoles=("ttyS0",)),
        "arm64": Architecture(alpine="aarch64", partitions=_ROOT, grub_platforms=(), consoles=("ttyAMA0",)),
    },
)
"""Where the kernel comes from unless a recipe says otherwise."""


@dataclass(frozen=True)
class GuestKernel:
    """A kernel, and what boots with it.

    Attributes:
        tree: the files of its package.
        kernel: where its parts are in ``tree``.
        image: the kernel as QEMU starts it.
        initramfs: the initramfs that starts a container image.
        epoch: when the package was built, in seconds since 1970.
    """

    tree: Tree
    kernel: Kernel
    image: bytes
    initramfs: bytes
    epoch: int


def fetch_kernel(recipe: Recipe, arch: str, cache: Cache, scratch: Path, *, allow_stale: bool = False) -> GuestKernel:
    """Download and verify the newest kernel that the recipe's mirror has.

    Args:
        recipe: decides the mirror, the branch, the trusted key, and the flavour of the kernel.
        scratch: a folder for the contents of the files, to which the Trees refer.
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.

    Raises:
        InputError: a file is missing or cannot be trusted.
        RecipeError: there is no such kernel.
        UsageError: the recipe has no such architecture.
    """
    package = f"linux-{recipe.kernel}"
    alone = kernel_recipe(recipe, arch, package)
    base = fetch_base(alone, arch, cache, scratch / "minirootfs", allow_stale=allow_stale)
    plan = make_plan(alone, arch, base, cache, allow_stale=allow_stale)
    plan = replace(plan, packages=tuple(planned for planned in plan.packages if planned.package.name == package))
    if not plan.packages:
        raise RecipeError(f"{package}: no package of this name, but another one provides it")
    plan, files = fetch_packages(plan, base, cache)
    (planned,) = plan.packages
    tree = _tree_of(open_planned(files, base, scratch / "kernel", planned.package))
    bootable = kernels(tree)
    if not bootable:
        raise InputError(f"{planned.file_name}: has no kernel with modules")
    kernel, epoch = bootable[-1], planned.package.build_time
    alpine = recipe.architecture(arch).alpine
    initramfs = machine_initramfs(base.tree, tree, kernel, arch=alpine, epoch=epoch)
    return GuestKernel(tree, kernel, direct_boot_image(tree, kernel), initramfs, epoch)


def _tree_of(file: PackageFile) -> Tree:
    """Return what a package installs, as a Tree of its own."""
    tree = Tree()
    for entry in file.entries:
        tree.mkdir(parent(entry.path))
        tree.add(entry.path, entry.node)
    return tree


def kernel_recipe(recipe: Recipe, arch: str, package: str) -> Recipe:
    """Return a recipe of nothing but a kernel's package, from where ``recipe`` takes its packages."""
    bare = recipe.architecture(arch).model_copy(update={"packages": ()})
    fields = {"packages": (package,), "disk_packages": (), "architectures": {arch: bare}, "base": None}
    return recipe.model_copy(update=fields)
