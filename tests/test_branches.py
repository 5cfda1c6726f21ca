"""Branches other than the recipe's: one that is newer than anything here, and the link to the latest one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.pins import BRANCH, RELEASE
from fixtures.server import Site, serve
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.recipe import OFFICIAL_MIRROR, Recipe, load
from imgkit.rootfs.compose import compose
from imgkit.rootfs.steps import PackageSet
from imgkit.rootfs.systemfiles import guest_branch
from imgkit.tree import Tree
from tests.commandline import Place
from tests.mirrors import RECIPE, Small

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

CORE = Path(__file__).parents[1] / "recipes" / "core.py"
NEWER = "v3.24"
LINK = "latest-stable"


@pytest.mark.parametrize(
    ("branch", "release", "expected"),
    [
        ("v3.24", "3.24.1\n", "v3.24"),
        ("latest-stable", "3.24.1\n", "v3.24"),
        ("latest-stable", "3.100.0_rc2\n", "v3.100"),
        ("latest-stable", "20261121\n", "latest-stable"),
        ("latest-stable", None, "latest-stable"),
        ("edge", "3.25.0_alpha20260601\n", "edge"),
        ("v3.23", "3.24.1\n", "v3.23"),
    ],
)
def test_where_the_image_itself_takes_packages_from(branch: str, release: str | None, expected: str) -> None:
    tree = Tree()
    tree.mkdir("etc")
    if release is not None:
        tree.write("etc/alpine-release", release)
    assert guest_branch(tree, branch) == expected


@pytest.mark.slow
@pytest.mark.parametrize("branch", [NEWER, LINK])
def test_a_branch_by_variable(branch: str, here: Place, small: Small, site: Site) -> None:
    """The mirror has only that branch, and all of its addresses are below it."""
    if branch == NEWER:
        small.index([apk.record for apk in small.packages], description=f"{NEWER}.1-5-g0123456789a")
    (small.root / BRANCH).rename(small.root / "moved")
    (small.root / branch).symlink_to("moved")
    here.recipe.write_text(RECIPE)
    here.environment["ALPINE_BRANCH"] = branch
    ran = here.run("lock", here.recipe, "--mirror", site.url, "--release-key", small.release_key)
    assert (ran.status, ran.err) == (0, "")
    assert {path.split("/")[1] for path in site.requests} == {branch}
    locked = json.loads((here.base / "recipe.lock").read_text())["architectures"]["amd64"]
    assert (locked["branch"], locked["version"]) == (branch, RELEASE)
    files = [locked["minirootfs"], *locked["indexes"], *locked["install"]]
    assert {file["path"].split("/")[0] for file in files} == {branch}


# ---- the offline mirror under other names ---------------------------------------------------------------------------


def plan(recipe: Recipe, arch: str, folder: Path, *, allow_stale: bool = False) -> Plan:
    cache = Cache(folder / "cache")
    base = fetch_base(recipe, arch, cache, folder / arch, allow_stale=allow_stale)
    return make_plan(recipe, arch, base, cache, allow_stale=allow_stale)


@pytest.mark.mirror
@pytest.mark.parametrize("branch", [NEWER, LINK])
def test_another_branch_with_the_same_packages_is_planned_alike(
    branch: str, mirror: Mirror, mirror_url: str, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / branch).symlink_to(mirror.root / BRANCH)
    with serve(tmp_path / "site") as site:
        for arch in ("amd64", "arm64"):
            usual = plan(load(CORE, {"mirror": mirror_url, "release_key": mirror.release_key}), arch, tmp_path / "a")
            fields = {"mirror": site.url, "release_key": mirror.release_key, "branch": branch}
            if branch == NEWER:
                with pytest.raises(InputError, match=f"is of branch {BRANCH}, not of {NEWER}"):
                    plan(load(CORE, fields), arch, tmp_path / "c")
            other = plan(load(CORE, fields), arch, tmp_path / "b", allow_stale=branch == NEWER)
            assert (other.branch, other.version, other.digest) == (branch, RELEASE, usual.digest)
            # those that the minirootfs has are in no repository
            urls = [planned.url for planned in other.packages if planned.package.repository.url]
            assert urls
            assert all(url.startswith(f"{site.url}{branch}/") for url in urls)


@pytest.mark.mirror
def test_an_image_from_the_link_stays_with_its_release(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / LINK).symlink_to(mirror.root / BRANCH)
    with serve(tmp_path / "site") as site:
        recipe = load(CORE, {"mirror": site.url, "release_key": mirror.release_key, "branch": LINK})
        cache = Cache(tmp_path / "cache")
        base = fetch_base(recipe, "amd64", cache, tmp_path / "minirootfs")
        image_plan, files = fetch_packages(make_plan(recipe, "amd64", base, cache), base, cache)
    selection = PackageSet(
        tuple(planned.package for planned in image_plan.packages),
        partial(open_planned, files, base, tmp_path / "packages"),
        image_plan.world,
    )
    uuid = "00000000-0000-4000-8000-000000000000"
    image = compose(base.tree, selection, recipe, "amd64", payload=None, can_run=False, root_uuid=uuid, epoch=0).tree
    assert image.text("etc/apk/repositories").splitlines() == [
        f"{OFFICIAL_MIRROR}/{BRANCH}/main",
        f"{OFFICIAL_MIRROR}/{BRANCH}/community",
    ]
    assert f"VERSION_ID={RELEASE}\n" in image.text(image.resolve("etc/os-release"))
