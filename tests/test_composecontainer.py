"""The root filesystem of a container: its stages, and what belongs to machines only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import RecipeError
from imgkit.recipe import UserSpec
from imgkit.rootfs.composecontainer import PACKAGES, PAYLOAD, SETUP, ContainerComposition, compose_container
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Directory, Tree
from tests.test_compose import EPOCH, base, recipe
from tests.test_install import Built, built, file


def make(*packages: Built, payload: Path | None = None, **changes: Any) -> ContainerComposition:
    files = {package.identity: verified for package, verified in packages}
    selection = PackageSet(tuple(package for package, _ in packages), lambda package: files[package.identity], ("a",))
    tree = base()
    tree.mkdir("etc/apk")
    return compose_container(tree, selection, recipe(**changes), "amd64", payload=payload, epoch=EPOCH)


def test_machine_files_stay_out() -> None:
    composition = make(built("a", file("usr/a", "a")))
    tree = composition.stages[-1].tree
    for path in ("etc/hostname", "etc/hosts", "etc/fstab", "etc/network/interfaces", "etc/runlevels/boot/sysctl"):
        assert path not in tree, path
    assert "var/cache/rc/deptree" not in tree
    assert tree.text("etc/apk/repositories").startswith("https://")
    assert tree.text("etc/apk/world") == "a\n"
    assert tree.text("etc/shadow").startswith("root:*:")
    assert "etc/imgkit-release" not in tree, "that is written when everything that decides the image is known"


def test_a_base_without_apk_gets_no_repositories() -> None:
    selection = PackageSet((), lambda package: pytest.fail("nothing is installed"), ())
    tree = Tree()
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    tree.write("etc/shadow", "root::0:::::\n")
    composition = compose_container(tree, selection, recipe(), "amd64", payload=None, epoch=EPOCH)
    assert "etc/apk" not in composition.stages[-1].tree
    assert "lib/apk" not in composition.stages[-1].tree


def test_each_stage_has_what_belongs_to_it(tmp_path: Path) -> None:
    overlay, payload = tmp_path / "overlay", tmp_path / "payload"
    (overlay / "opt/agent-runner").mkdir(parents=True)
    (overlay / "opt/agent-runner/old.js").write_text("old")
    payload.mkdir()
    (payload / "index.js").write_text("new")
    user = UserSpec(name="agent", uid=1000, owns=("/workspace",))
    stages = make(built("a", file("usr/a", "a")), payload=payload, overlay=overlay, users=(user,)).stages
    assert [stage.reason for stage in stages] == [PACKAGES, SETUP, PAYLOAD]
    packages, setup, whole = (stage.tree for stage in stages)
    assert "usr/a" in packages
    assert "workspace" not in packages
    assert setup["workspace"] == Directory(uid=1000, gid=1000, mtime=EPOCH)
    assert setup.text("opt/agent-runner/old.js") == "old"
    assert "etc/imgkit-release" not in setup
    assert whole.text("opt/agent-runner/index.js") == "new"
    assert "opt/agent-runner/old.js" not in whole


def test_without_a_payload_there_are_two_stages(tmp_path: Path) -> None:
    stages = make(built("a", file("usr/a", "a"))).stages
    assert [stage.reason for stage in stages] == [PACKAGES, SETUP]
    assert "usr/a" in stages[-1].tree


def test_a_script_that_cannot_be_computed_is_refused() -> None:
    with pytest.raises(RecipeError, match="can neither be computed nor run") as caught:
        make(built("a", scripts={"post-install": "frobnicate"}))
    assert caught.value.hint == "build a disk on amd64, or state that they need not run: skip_scripts = ['a']"
    assert make(built("a", scripts={"post-install": "frobnicate"}), skip_scripts=("a",)).scripts.skipped


def test_a_user_that_cannot_be_added() -> None:
    users = (UserSpec(name="root", uid=1000),)
    with pytest.raises(RecipeError, match="user root"):
        make(users=users)


def test_a_base_without_root() -> None:
    tree = Tree()
    tree.write("etc/passwd", "")
    selection = PackageSet((), lambda package: pytest.fail("nothing is installed"), ())
    with pytest.raises(RecipeError, match="cannot be set up as the recipe says"):
        compose_container(tree, selection, recipe(), "amd64", payload=None, epoch=EPOCH)


def test_a_base_without_accounts() -> None:
    selection = PackageSet((), lambda package: pytest.fail("nothing is installed"), ())
    tree = Tree()
    tree.write("program", "x", mode=0o755)
    composition = compose_container(tree, selection, recipe(), "amd64", payload=None, epoch=EPOCH)
    assert list(composition.stages[-1].tree) == ["", "program"]
