"""Composing a root filesystem: the one place that says what is written into the Tree, and in which order."""

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
    """The packages of an image, verified.

    Attributes:
        packages: in install order.
        open_file: gives the verified file of one of them.
        world: what the image's own apk shall take as wanted.
    """

    packages: tuple[Package, ...]
    open_file: Callable[[Package], PackageFile]
    world: tuple[str, ...]


@dataclass(frozen=True)
class Composition:
    """A finished root filesystem.

    Attributes:
        tree: all of it.
        kernel: the one that boots.
        scripts: what became of the packages' scripts.
        records: every path with what is there (:func:`imgkit.rootfs.digest.records`).
        build_id: equal for equal root filesystems.
        binaries: what of the payload is for another platform, or lacks something.
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
        tree: of the minirootfs; it is changed.
        arch: imgkit's name of the architecture, ``amd64``.
        payload: prepared folder that replaces /opt/agent-runner; None keeps the overlay's.
        can_run: scripts that cannot be computed will be run in the image; else they are refused.
        root_uuid: of the filesystem that the Tree will be on.
        epoch: seconds since 1970 for the times of all that is generated.

    Raises:
        RecipeError: packages clash, a service or a kernel is missing, a script can neither be computed nor run.
        InputError: something outside the payload is not for this architecture, or a file that is needed is missing.
    """
    facts = recipe.architecture(arch)
    scripts = _install(tree, selection, recipe, facts, epoch)
    if scripts.pending and not can_run:
        raise _not_computed(scripts.pending, arch)
    with _possible():
        systemfiles.configure(tree, recipe, root_uuid=root_uuid, epoch=epoch)
    carried = _carried(tree, recipe, payload, epoch)
    systemfiles.enable_services(tree, recipe)
    install_dependency_cache(tree, epoch=epoch)
    kernel = _boot(tree, recipe, facts, root_uuid, epoch)
    _check(tree, facts, carried)
    binaries = examine(tree, facts.alpine, carried)
    if recipe.payload_binaries == "prune":
        prune(tree, binaries.foreign, carried)
    found = digest.records(tree)
    build_id = digest.fingerprint(found)[:16]
    systemfiles.write_release(tree, image=recipe.name, arch=arch, build_id=build_id, epoch=epoch)
    for path in ("etc", systemfiles.RELEASE):
        found["/" + path] = digest.record(tree, tree[path])
    return Composition(tree, kernel, scripts, found, build_id, binaries)


@contextmanager
def _possible() -> Iterator[None]:
    """What the Tree or its accounts refuse, the recipe must not ask for (or lacks the package that makes it right)."""
    try:
        yield
    except (TreeError, AccountError) as cause:
        raise RecipeError(f"the image cannot be set up as the recipe says: {cause}") from cause


def _carried(tree: Tree, recipe: Recipe, payload: Path | None, epoch: int) -> frozenset[str]:
    """Copy the overlay and the payload; the paths of what they put where the payload is."""
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
        hooks=Hooks(mkinitfs=_later),
        skip=recipe.skip_scripts,
    )


def _not_computed(pending: Sequence[Pending], arch: str) -> RecipeError:
    """The refusal of scripts that would have to run on a machine that is none of theirs."""
    reasons = "; ".join(each.reason for each in pending)  # with package, script and line
    packages = sorted({each.package for each in pending})
    return RecipeError(
        f"{arch}: scripts that can neither be computed nor run on this host: {reasons}",
        hint=f"build on {arch}, or state that they need not run: skip_scripts = {packages}",
    )


def _later(_tree: Tree, _release: str, _path: str) -> None:
    """The initramfs is made once, when all that belongs into it is there."""


def _boot(tree: Tree, recipe: Recipe, facts: Architecture, root_uuid: str, epoch: int) -> Kernel:
    """The initramfs of every kernel, and GRUB's configuration for the newest one of the recipe's flavour."""
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
    """State the features where the image's own mkinitfs finds them when it makes the next initramfs."""
    old = tree.text(_MKINITFS_CONF).splitlines() if _MKINITFS_CONF in tree else []
    kept = [line for line in old if not line.lstrip().startswith("features=")]
    tree.write(_MKINITFS_CONF, "\n".join([f'features="{" ".join(features)}"', *kept]) + "\n", mtime=epoch)


def _check(tree: Tree, facts: Architecture, carried: Collection[str]) -> None:
    problems = check_architecture(tree, facts.alpine, without=carried)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{problems[0]}{more}", hint="programs and modules must be built for musl on the image's machine"
        )
