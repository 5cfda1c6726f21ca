"""Compose a root filesystem: this module decides what is written into the Tree, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgkit.apk.index import Package
from imgkit.apk.package import PackageFile
from imgkit.disk.grub import grub_cfg, kernel_arguments
from imgkit.errors import InputError, RecipeError
from imgkit.recipe import Architecture, Recipe
from imgkit.rootfs import digest, systemfiles
from imgkit.rootfs.accounts import AccountError
from imgkit.rootfs.binaries.examine import BinaryFindings, examine, prune
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.initramfs.make import install_initramfs
from imgkit.rootfs.install import ScriptReport, install
from imgkit.rootfs.kernel import Kernel, kernels
from imgkit.rootfs.openrc.deptree import install_cache as install_dependency_cache
from imgkit.rootfs.payload import PAYLOAD, add_directory, replace_payload
from imgkit.rootfs.scripts.effects import Hooks, Pending
from imgkit.tree import Tree, TreeError

_MKINITFS_CONF = "etc/mkinitfs/mkinitfs.conf"


@dataclass(frozen=True)
class PackageSet:
    """The verified packages of an image.

    Attributes:
        packages: all packages, in install order.
        open_file: returns the verified file of one of them.
        world: the dependencies that the image's own apk finds in ``etc/apk/world``.
    """

    packages: tuple[Package, ...]
    open_file: Callable[[Package], PackageFile]
    world: tuple[str, ...]


@dataclass(frozen=True)
class Composition:
    """A finished root filesystem.

    Attributes:
        tree: the whole root filesystem.
        kernel: the kernel that boots.
        scripts: the results of the packages' scripts.
        records: a record for every path (:func:`imgkit.rootfs.digest.records`).
        build_id: identifier that is equal for equal root filesystems.
        binaries: binaries of the payload that are for another platform, or that lack a library.
    """

    tree: Tree
    kernel: Kernel
    scripts: ScriptReport
    records: Mapping[str, digest.NodeRecord]
    build_id: str
    binaries: BinaryFindings


def compose(
    tree: Tree,
    selection: PackageSet,
    recipe: Recipe,
    arch: str,
    *,
    payload: Path | None,
    can_run: bool,
    root_uuid: str,
    epoch: int,
) -> Composition:
    """Turn the Tree of a minirootfs into the root filesystem of an image.

    Args:
        tree: the Tree of the minirootfs; it is changed.
        arch: imgkit's name of the architecture, such as ``amd64``.
        payload: the prepared folder that replaces /opt/agent-runner; None keeps the one of the overlay.
        can_run: whether the caller can run scripts that cannot be computed in the image. Otherwise they are refused.
        root_uuid: UUID of the filesystem that the Tree will be written to.
        epoch: seconds since 1970 for the times of all generated files.

    Raises:
        RecipeError: two packages have the same file, a service or a kernel is missing, a user cannot be added, or a
            script can neither be computed nor run.
        InputError: a file outside the payload is for another architecture, or a file that is needed is missing.
    """
    facts = recipe.architecture(arch)
    scripts = _install(tree, selection, recipe, facts, epoch)
    if scripts.pending and not can_run:
        raise _not_computed(scripts.pending, arch)
    with _setup_errors():
        systemfiles.configure(tree, recipe, root_uuid=root_uuid, epoch=epoch)
    payload_paths = _add_folders(tree, recipe, payload, epoch)
    systemfiles.enable_services(tree, recipe)
    install_dependency_cache(tree, epoch=epoch)
    kernel = _boot(tree, recipe, facts, root_uuid, epoch)
    _check(tree, facts, payload_paths)
    binaries = examine(tree, facts.alpine, payload_paths)
    if recipe.payload_binaries == "prune":
        prune(tree, binaries.foreign, payload_paths)
    records = digest.records(tree)
    build_id = digest.fingerprint(records)[:16]
    systemfiles.write_release(tree, image=recipe.name, arch=arch, build_id=build_id, epoch=epoch)
    for path in ("etc", systemfiles.RELEASE):
        records["/" + path] = digest.record(tree, tree[path])
    return Composition(tree, kernel, scripts, records, build_id, binaries)


@contextmanager
def _setup_errors() -> Iterator[None]:
    """Turn errors of the Tree or its accounts into a RecipeError: the recipe asks for it or lacks a package."""
    try:
        yield
    except (TreeError, AccountError) as cause:
        raise RecipeError(f"the image cannot be set up as the recipe says: {cause}") from cause


def _add_folders(tree: Tree, recipe: Recipe, payload: Path | None, epoch: int) -> frozenset[str]:
    """Copy the overlay and the payload into the Tree; return the paths below the payload's folder that they wrote."""
    written: list[str] = []
    if recipe.overlay is not None:
        written += add_directory(tree, recipe.overlay, "", epoch=epoch)
    if payload is not None:
        written += replace_payload(tree, payload, epoch=epoch)
    top = tree.resolve(PAYLOAD) + "/"
    return frozenset(path for path in written if path.startswith(top) and path in tree)


def _install(tree: Tree, selection: PackageSet, recipe: Recipe, facts: Architecture, epoch: int) -> ScriptReport:
    return install(
        tree,
        selection.packages,
        selection.open_file,
        world=selection.world,
        arch=facts.alpine,
        epoch=epoch,
        hooks=Hooks(mkinitfs=_initramfs_is_made_later),
        skip=recipe.skip_scripts,
    )


def _not_computed(pending: Sequence[Pending], arch: str) -> RecipeError:
    """Return the error for scripts that would have to run on another architecture than this host's."""
    reasons = "; ".join(script.reason for script in pending)  # with package, script and line
    packages = sorted({script.package for script in pending})
    return RecipeError(
        f"{arch}: scripts that can neither be computed nor run on this host: {reasons}",
        hint=f"build on {arch}, or state that they need not run: skip_scripts = {packages}",
    )


def _initramfs_is_made_later(_tree: Tree, _release: str, _path: str) -> None:
    """Do nothing: the initramfs is made once, when everything that belongs in it is in the Tree."""


def _boot(tree: Tree, recipe: Recipe, facts: Architecture, root_uuid: str, epoch: int) -> Kernel:
    """Make the initramfs of every kernel, and GRUB's configuration for the newest one of the recipe's flavour."""
    _set_features(tree, recipe.initramfs_features, epoch)
    for kernel in kernels(tree):
        install_initramfs(tree, kernel.release, epoch=epoch)
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


def _check(tree: Tree, facts: Architecture, payload_paths: Collection[str]) -> None:
    """Refuse programs and modules outside the payload that cannot run on this architecture."""
    problems = check_architecture(tree, facts.alpine, without=payload_paths)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{problems[0]}{more}", hint="programs and modules must be built for musl on the image's machine"
        )
