"""The recipes of the repository: what alpine.py adds to core.py, and that an index of Alpine has all of it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from imgkit.apk.index import Package
from imgkit.apk.solver import UnknownPackageError, solve
from imgkit.recipe import OverlaySpec, Recipe, Shape, load
from tests.realdata import lacking
from tests.test_solver import faults, superfluous
from tests.test_solver_oracle import Apk

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

RECIPES = Path(__file__).parents[1] / "recipes"

TOOLS = """
    ripgrep git python3 py3-pip coreutils findutils grep sed gawk curl jq file less tree tar gzip unzip openssh-client
    util-linux
"""
"""What the image of the first seed has beside what core.py has."""

UNWANTED = {"!mount", "!umount"}
"""What util-linux must not bring along."""

MINIROOTFS = ["alpine-baselayout", "apk-tools", "busybox"]
"""The world of a minirootfs of 3.17, as far as it decides anything here."""

ELSEWHERE = {
    "npm": "in community",
    "py3-pip": "in community",
    "ripgrep": "in community",
    "tini": "in community",
}
"""Packages of the recipe that 3.17's main repository does not have, and why not."""


def recipe(name: str) -> Recipe:
    return load(RECIPES / f"{name}.py")


# ---- the two recipes ------------------------------------------------------------------------------------------------


def test_alpine_is_core_with_the_tools() -> None:
    core, alpine = recipe("core"), recipe("alpine")
    assert alpine.packages[: len(core.packages)] == core.packages
    assert sorted(alpine.packages[len(core.packages) :]) == sorted([*TOOLS.split(), *UNWANTED])
    assert alpine.model_copy(update={"packages": core.packages}) == core


@pytest.mark.parametrize("shape", get_args(Shape))
@pytest.mark.parametrize("name", ["core", "alpine", "sandbox_image"])
def test_no_package_is_named_twice(name: str, shape: Shape) -> None:
    made = recipe(name)
    for arch in made.architectures:
        packages = made.wanted(arch, shape)
        assert len(set(packages)) == len(packages)


def test_the_sandbox_image_is_a_container_and_a_machine() -> None:
    core, made = recipe("core"), recipe("sandbox_image")
    assert made.outputs == ("disk", "oci")
    assert made.packages == (*core.packages, "curl", "git", "openssh-client", "python3")
    assert made.wanted("arm64", "container") == (*made.packages, "setpriv", "tini")
    assert set(core.disk_packages) < set(made.wanted("arm64", "disk"))
    assert not set(core.disk_packages) & set(made.wanted("arm64", "container"))
    assert made.container.entrypoint == ("/usr/local/bin/entrypoint",)
    assert made.container.workdir == "/workspace"
    (agent,) = made.users
    assert (agent.name, agent.uid, agent.home, agent.owns) == (
        "agent",
        1000,
        "/home/agent",
        ("/home/agent", "/workspace"),
    )


@pytest.mark.parametrize("name", ["core", "alpine"])
def test_both_make_the_same_outputs(name: str) -> None:
    made = recipe(name)
    assert made.name == "linux"
    assert set(made.architectures) == {"amd64", "arm64"}
    assert made.overlay_folders == (OverlaySpec(path=RECIPES.parent / "overlay", modes="git"),)


# ---- the real index of Alpine 3.17 ----------------------------------------------------------------------------------


def wanted() -> list[str]:
    return [*recipe("alpine").wanted("arm64", "disk")]


def test_the_index_has_everything_but_what_is_elsewhere(real: tuple[Package, ...]) -> None:
    assert lacking(wanted(), real) == {*ELSEWHERE} & set(wanted())


def test_a_package_that_disappears_or_appears_is_noticed(real: tuple[Package, ...]) -> None:
    without = [package for package in real if package.name != "tree"]
    assert lacking(wanted(), without) == {*ELSEWHERE} & set(wanted()) | {"tree"}
    assert lacking(wanted(), [*real, Package(name="npm", version="1")]) == {*ELSEWHERE} & set(wanted()) - {"npm"}


@pytest.mark.slow
def test_everything_that_is_there_is_installed_together(real: tuple[Package, ...]) -> None:
    world = [*MINIROOTFS, *(name for name in wanted() if name not in ELSEWHERE)]
    packages = solve(world, real, arch="aarch64")
    names = {package.name for package in packages}
    assert faults(world, packages) == []
    assert superfluous(world, packages) == []
    assert {"openssh-client-default", "util-linux-misc", "lsblk"} <= names, "a chosen provider, parts by install_if"
    assert not {"openssh-client-krb5", "util-linux-login", "util-linux-doc"} & names
    assert not {"mount", "umount"} & names
    willing = solve([name for name in world if name not in UNWANTED], real, arch="aarch64")
    assert {package.name for package in willing} - names == {"mount", "umount"}
    with pytest.raises(UnknownPackageError, match="ripgrep"):
        solve([*world, "ripgrep"], real, arch="aarch64")


@pytest.mark.slow
@pytest.mark.parametrize("shape", get_args(Shape))
def test_the_sandbox_image_can_be_installed(real: tuple[Package, ...], shape: Shape) -> None:
    packages = [name for name in recipe("sandbox_image").wanted("arm64", shape) if name not in ELSEWHERE]
    assert lacking(packages, real) == set()
    world = [*MINIROOTFS, *packages]
    solution = solve(world, real, arch="aarch64")
    assert faults(world, solution) == []
    names = {package.name for package in solution}
    assert {"git", "openssh-client-default", "python3", "nodejs"} <= names
    assert ("setpriv" in names) == (shape == "container")
    assert ("linux-virt" in names) == ("openrc" in names) == (shape == "disk")


@pytest.mark.mirror
def test_the_real_apk_chooses_the_same(real: tuple[Package, ...], mirror: Mirror, tmp_path: Path) -> None:
    """The same packages in the same order."""
    machine = platform.machine()
    if machine not in mirror.oracle:
        pytest.skip(f"the mirror has no apk that runs on {machine}")
    packages = [package for package in real if not package.fault]
    world = [*MINIROOTFS, *(name for name in wanted() if name not in ELSEWHERE)]
    apk = Apk(mirror, tmp_path, machine=machine, arch="aarch64")
    apk.publish(packages)
    assert apk.order([*world, "ripgrep"]) is None, "the oracle can say no"
    assert apk.order(world) == [str(package) for package in solve(world, packages, arch="aarch64")]
