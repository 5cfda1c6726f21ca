"""The steps that a root filesystem of any shape goes through; ``compose`` and ``composecontainer`` order them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imgkit.apk.index import Package
from imgkit.apk.package import PackageFile
from imgkit.errors import InputError, RecipeError
from imgkit.recipe import Recipe
from imgkit.rootfs.accounts import AccountError
from imgkit.rootfs.agent import FOLDER as AGENT_FOLDER
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.install import ScriptReport, installed_in, world_in
from imgkit.rootfs.keptinstallation import install_or_take
from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.overlays import add_overlay_folder
from imgkit.rootfs.ownedfiles import add_files
from imgkit.rootfs.payload import PAYLOAD, replace_payload
from imgkit.rootfs.scripts.effects import Hooks, Pending
from imgkit.rootfs.timezone import set_timezone
from imgkit.tree import Tree, TreeError


@dataclass(frozen=True)
class PackageSet:
    """The verified packages of an image.

    Attributes:
        packages: all packages, in install order.
        open_file: returns the verified file of one of them.
        world: the dependencies that the image's own apk finds in ``etc/apk/world``.
        kept: the results of steps of earlier builds.
    """

    packages: tuple[Package, ...]
    open_file: Callable[[Package], PackageFile]
    world: tuple[str, ...]
    kept: KeptSteps = field(default_factory=KeptSteps)


def install_packages(
    tree: Tree,
    selection: PackageSet,
    recipe: Recipe,
    arch: str,
    *,
    can_run: bool,
    epoch: int,
    elsewhere: str | None = None,
) -> ScriptReport:
    """Install the packages and compute their scripts. A base that has exactly these packages stays as it is.

    Args:
        can_run: whether the caller can run scripts that cannot be computed in the image. Otherwise they are refused.
        elsewhere: what could run them, for the hint of that error; None is a host of the architecture.

    Raises:
        RecipeError: two packages have the same file, or a script can neither be computed nor run.
    """
    if _is_installed(tree, selection):
        return ScriptReport((), (), ())
    scripts = install_or_take(
        tree,
        selection.packages,
        selection.open_file,
        selection.kept,
        world=selection.world,
        arch=recipe.architecture(arch).alpine,
        epoch=epoch,
        hooks=Hooks(mkinitfs=_initramfs_is_made_later),
        skip=recipe.skip_scripts,
    )
    if scripts.pending and not can_run:
        raise _not_computed(scripts.pending, arch, elsewhere or f"build a disk on {arch}")
    return scripts


def _is_installed(tree: Tree, selection: PackageSet) -> bool:
    """Return whether the Tree has exactly these packages and this world, as one without apk and packages has."""
    installed = {record.package.identity for record in installed_in(tree)}
    wanted = {package.identity for package in selection.packages}
    return installed == wanted and set(world_in(tree)) == set(selection.world)


def _not_computed(pending: Sequence[Pending], arch: str, elsewhere: str) -> RecipeError:
    """Return the error for scripts that would have to run, where they cannot."""
    reasons = "; ".join(script.reason for script in pending)  # with package, script and line
    packages = sorted({script.package for script in pending})
    return RecipeError(
        f"{arch}: scripts that can neither be computed nor run here: {reasons}",
        hint=f"{elsewhere}, or state that they need not run: skip_scripts = {packages}",
    )


def _initramfs_is_made_later(_tree: Tree, _release: str, _path: str) -> None:
    """Do nothing: the initramfs is made once, when everything that belongs in it is in the Tree."""


@contextmanager
def setup_errors() -> Iterator[None]:
    """Turn errors of the Tree or its accounts into a RecipeError: the recipe asks for it or lacks a package."""
    try:
        yield
    except (TreeError, AccountError) as cause:
        raise RecipeError(f"the image cannot be set up as the recipe says: {cause}") from cause


def add_host_files(tree: Tree, recipe: Recipe, *, epoch: int) -> list[str]:
    """Put the recipe's overlays, its time zone and its files into the Tree; return the paths that were written.

    Raises:
        RecipeError: the image lacks an account or the time zone, or a file cannot be where the recipe wants it.
        InputError: a folder or file of the host cannot be in an image.
    """
    written = []
    for overlay in recipe.overlay_folders:
        written += add_overlay_folder(tree, overlay, epoch=epoch)
    with setup_errors():
        set_timezone(tree, recipe, epoch=epoch)
    return written + add_files(tree, recipe, epoch=epoch)


def add_payload(tree: Tree, payload: Path | None, *, epoch: int) -> list[str]:
    """Put the prepared payload in place of the overlay's, if there is one; return the paths that were written."""
    return [] if payload is None else replace_payload(tree, payload, epoch=epoch)


def payload_paths(tree: Tree, written: Sequence[str]) -> frozenset[str]:
    """Return those of the paths ``written`` that are in a payload's folder and still exist."""
    tops = tuple(tree.resolve(folder) + "/" for folder in (PAYLOAD, AGENT_FOLDER))
    return frozenset(path for path in written if path.startswith(tops) and path in tree)


def refuse_foreign(tree: Tree, alpine: str, payload: Collection[str], kept: KeptSteps | None = None) -> None:
    """Refuse programs and modules that cannot run on this architecture.

    Args:
        alpine: Alpine's name of the architecture.
        payload: paths of the payload, which has a policy of its own.
        kept: the results of earlier builds; None computes everything.

    Raises:
        InputError: a file is for another architecture, or a file that is needed is missing.
    """
    problems = check_architecture(tree, alpine, without=payload, kept=kept)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{problems[0]}{more}", hint="programs and modules must be built for musl on the image's machine"
        )
