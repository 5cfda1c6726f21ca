"""Compose the root filesystem of a container image: what is written into the Tree, and in which order.

The order is by how often each part changes, since every stage becomes a layer: the packages, then what the recipe sets
up, then the payload. A new payload then leaves the layers below it as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgkit.recipe import Recipe
from imgkit.rootfs import steps, systemfiles
from imgkit.rootfs.agent import add_agent
from imgkit.rootfs.binaries.examine import BinaryFindings, examine, prune
from imgkit.rootfs.install import ScriptReport
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Tree

PACKAGES = "packages"
SETUP = "users, overlay and agentd"
PAYLOAD = "payload"


@dataclass(frozen=True)
class LayerStage:
    """The root filesystem after one part of it was added. ``reason`` says in words which part that is."""

    reason: str
    tree: Tree


@dataclass(frozen=True)
class ContainerComposition:
    """The finished root filesystem of a container image, except for the file with the build id.

    Attributes:
        stages: what the layers are made of, the lowest one first; the last one is the whole root filesystem.
        scripts: the results of the packages' scripts.
        binaries: binaries of the payload that are for another platform, or that lack a library.
    """

    stages: tuple[LayerStage, ...]
    scripts: ScriptReport
    binaries: BinaryFindings

    @property
    def tree(self) -> Tree:
        """The whole root filesystem."""
        return self.stages[-1].tree


def compose_container(
    tree: Tree,
    selection: PackageSet,
    recipe: Recipe,
    arch: str,
    *,
    payload: Path | None,
    agent: Path | None = None,
    epoch: int,
) -> ContainerComposition:
    """Turn the Tree of a base into the root filesystem of a container image. There are no services and no kernel.

    Args:
        tree: the Tree of the minirootfs or of the base image; it is changed.
        arch: imgkit's name of the architecture, such as ``amd64``.
        payload: the prepared folder that replaces /opt/agent-runner; None keeps the one of the overlay.
        agent: the prepared folder of the recipe's agent, if that has a payload.
        epoch: seconds since 1970 for the times of all generated files.

    Raises:
        RecipeError: two packages have the same file, a user cannot be added, a file of the recipe cannot be put into
            place, or a script cannot be computed.
        InputError: a file outside the payload is for another architecture, or a file that is needed is missing.
    """
    alpine = recipe.architecture(arch).alpine
    scripts = steps.install_packages(tree, selection, recipe, arch, can_run=False, epoch=epoch)
    stages = [LayerStage(PACKAGES, tree.copy())]
    with steps.setup_errors():
        if "etc/passwd" in tree:  # a base of a single program need not have accounts
            systemfiles.lock_root(tree, epoch=epoch)
        systemfiles.configure(tree, recipe, epoch=epoch)
    written = steps.add_host_files(tree, recipe, epoch=epoch)
    has_payload = payload is not None or recipe.agent is not None
    if has_payload:
        stages.append(LayerStage(SETUP, tree.copy()))
        written += steps.add_payload(tree, payload, epoch=epoch)
        written += add_agent(tree, recipe.agent, agent, epoch=epoch)
    payload_paths = steps.payload_paths(tree, written)
    steps.refuse_foreign(tree, alpine, payload_paths)
    binaries = examine(tree, alpine, payload_paths)
    if recipe.payload_binaries == "prune":
        prune(tree, binaries.foreign, payload_paths)
    stages.append(LayerStage(PAYLOAD if has_payload else SETUP, tree))
    return ContainerComposition(tuple(stages), scripts, binaries)
