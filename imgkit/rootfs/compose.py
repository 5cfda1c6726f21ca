"""Compose the root filesystem of a machine: what is written into the Tree, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imgkit.disk.grub import grub_cfg, kernel_arguments
from imgkit.errors import RecipeError
from imgkit.recipe import Architecture, Recipe
from imgkit.rootfs import agentsettings, steps, systemfiles
from imgkit.rootfs.agent import add_agent
from imgkit.rootfs.binaries.examine import BinaryFindings, examine, prune
from imgkit.rootfs.initramfs.make import install_initramfs
from imgkit.rootfs.install import ScriptReport
from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.kernel import Kernel, kernels
from imgkit.rootfs.openrc.deptree import install_cache as install_dependency_cache
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Tree

_MKINITFS_CONF = "etc/mkinitfs/mkinitfs.conf"


@dataclass(frozen=True)
class Composition:
    """A finished root filesystem, except for the file with the build id (:mod:`imgkit.image.buildid`).

    Attributes:
        tree: the whole root filesystem.
        kernel: the kernel that boots.
        scripts: the results of the packages' scripts.
        binaries: binaries of the payload that are for another platform, or that lack a library.
    """

    tree: Tree
    kernel: Kernel
    scripts: ScriptReport
    binaries: BinaryFindings


def compose(
    tree: Tree,
    selection: PackageSet,
    recipe: Recipe,
    arch: str,
    *,
    payload: Path | None,
    agent: Path | None = None,
    can_run: bool,
    root_uuid: str,
    epoch: int,
    elsewhere: str | None = None,
) -> Composition:
    """Turn the Tree of a minirootfs into the root filesystem of an image.

    Args:
        tree: the Tree of the minirootfs; it is changed.
        arch: imgkit's name of the architecture, such as ``amd64``.
        payload: the prepared folder that replaces /opt/agent-runner; None keeps the one of the overlay.
        agent: the prepared folder of the recipe's agent, if that has a payload.
        can_run: whether the caller can run scripts that cannot be computed in the image. Otherwise they are refused.
        root_uuid: UUID of the filesystem that the Tree will be written to.
        epoch: seconds since 1970 for the times of all generated files.
        elsewhere: what could run the scripts that are refused, for a hint; None is a host of the architecture.

    Raises:
        RecipeError: two packages have the same file, a service or a kernel is missing, a user cannot be added, the
            agent's user is root, a file of the recipe cannot be put into place, or a script can neither be computed nor
            run.
        InputError: a file outside the payload is for another architecture, or a file that is needed is missing.
    """
    facts = recipe.architecture(arch)
    scripts = steps.install_packages(tree, selection, recipe, arch, can_run=can_run, epoch=epoch, elsewhere=elsewhere)
    with steps.setup_errors():
        systemfiles.configure_machine(tree, recipe, root_uuid=root_uuid, epoch=epoch)
        systemfiles.lock_root(tree, epoch=epoch)
        systemfiles.configure(tree, recipe, epoch=epoch)
    written = [*steps.add_host_files(tree, recipe, epoch=epoch), *steps.add_payload(tree, payload, epoch=epoch)]
    written += add_agent(tree, recipe.agent, agent, epoch=epoch)
    agentsettings.refuse_root(tree)
    payload_paths = steps.payload_paths(tree, written)
    systemfiles.enable_services(tree, recipe)
    install_dependency_cache(tree, epoch=epoch, kept=selection.kept)
    kernel = _boot(tree, recipe, facts, root_uuid, epoch, selection.kept)
    steps.refuse_foreign(tree, facts.alpine, payload_paths, selection.kept)
    binaries = examine(tree, facts.alpine, payload_paths)
    if recipe.payload_binaries == "prune":
        prune(tree, binaries.foreign, payload_paths)
    return Composition(tree, kernel, scripts, binaries)


def _boot(tree: Tree, recipe: Recipe, facts: Architecture, root_uuid: str, epoch: int, kept: KeptSteps) -> Kernel:
    """Make the initramfs of every kernel, and GRUB's configuration for the newest one of the recipe's flavour."""
    _set_features(tree, recipe.initramfs_features, epoch)
    for kernel in kernels(tree):
        install_initramfs(tree, kernel.release, epoch=epoch, kept=kept)
    fitting = [kernel for kernel in kernels(tree) if kernel.flavour == recipe.kernel]
    if not fitting:
        raise RecipeError(
            f"no kernel linux-{recipe.kernel} in the image", hint=f"add linux-{recipe.kernel} to packages"
        )
    newest = fitting[-1]
    extra = (*facts.kernel_arguments, *recipe.kernel_arguments)
    arguments = kernel_arguments(root_uuid, facts.consoles, extra, read_only=recipe.read_only_root)
    tree.write(
        "boot/grub/grub.cfg", grub_cfg(root_uuid, arguments, kernel=newest.image.rpartition("/")[2]), mtime=epoch
    )
    return newest


def _set_features(tree: Tree, features: Iterable[str], epoch: int) -> None:
    """Write the features where the image's own mkinitfs finds them when it makes the next initramfs."""
    old = tree.text(_MKINITFS_CONF).splitlines() if _MKINITFS_CONF in tree else []
    kept = [line for line in old if not line.lstrip().startswith("features=")]
    tree.write(_MKINITFS_CONF, "\n".join([f'features="{" ".join(features)}"', *kept]) + "\n", mtime=epoch)
