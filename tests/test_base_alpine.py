"""Packages of the offline mirror, added to an image of Alpine: the result is that of adding them to the minirootfs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imgkit.fetch.cache import Cache
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.baseimage import PLATFORMS
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.recipe import Recipe, load
from imgkit.rootfs.digest import differences, records
from imgkit.rootfs.steps import PackageSet, install_packages
from imgkit.tree import Tree
from tests.images import ROOT

pytestmark = pytest.mark.mirror


@dataclass
class Alpine:
    """Root filesystems from the offline mirror."""

    mirror: Any
    url: str
    folder: Path

    def recipe(self, base: Path | None, *packages: str) -> Recipe:
        fields = {"mirror": self.url, "release_key": self.mirror.release_key, "packages": packages}
        return load(ROOT / "recipes/core.py", {**fields, "base": base and f"oci:{base}", "container": {}})

    def install(self, recipe: Recipe, arch: str) -> tuple[Base, Plan]:
        """Return the base with the recipe's packages in it."""
        cache, name = Cache(self.folder / "cache"), f"{len(list(self.folder.iterdir()))}"
        base = fetch_base(recipe, arch, cache, self.folder / f"{name}-spool")
        plan = make_plan(recipe, arch, base, cache, shape="container")
        plan, files = fetch_packages(plan, base, cache)
        open_file = partial(open_planned, files, base, self.folder / f"{name}-packages")
        selection = PackageSet(tuple(planned.package for planned in plan.packages), open_file, plan.world)
        install_packages(base.tree, selection, recipe, arch, can_run=False, epoch=plan.epoch)
        return base, plan

    def image(self, arch: str, recipe: Recipe, tree: Tree, before: Tree | None = None) -> Path:
        """Write an image of one or two layers."""
        layout = OciLayout.create(self.folder / f"image-{arch}")
        trees = [tree] if before is None else [before, tree]
        lower = [None, *trees[:-1]]
        made = [changes(old, new) for old, new in zip(lower, trees, strict=True)]
        layers = [LayerWriter(layout).write(layer, reason="x", created=0) for layer in made]
        facts = ImageFacts(platform=PLATFORMS[recipe.architecture(arch).alpine], created=0)
        layout.write_index([write_image(layout, layers, facts)])
        return layout.folder


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_packages_are_added_to_an_image_as_to_the_minirootfs(
    mirror: Any, mirror_url: str, tmp_path: Path, arch: str
) -> None:
    alpine = Alpine(mirror, mirror_url, tmp_path)
    bare, _ = alpine.install(alpine.recipe(None, "bash"), arch)
    whole, plan = alpine.install(alpine.recipe(None, "bash", "curl"), arch)
    minirootfs = fetch_base(alpine.recipe(None), arch, Cache(tmp_path / "cache"), tmp_path / "spool").tree
    image = alpine.image(arch, alpine.recipe(None), bare.tree, minirootfs)
    as_it_is, _ = alpine.install(alpine.recipe(image), arch)
    assert as_it_is.image is not None
    assert changes(as_it_is.image.tree, as_it_is.tree).entries == ()
    assert differences(records(bare.tree), records(as_it_is.tree)) == []
    added, on_image = alpine.install(alpine.recipe(image, "curl"), arch)
    assert on_image.version == plan.version
    assert sorted(on_image.world) == sorted(plan.world)
    assert {planned.package.identity for planned in on_image.packages} == {
        planned.package.identity for planned in plan.packages
    }
    assert differences(records(whole.tree), records(added.tree)) == []
