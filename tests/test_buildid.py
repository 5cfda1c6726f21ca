"""Build ids: two images that differ in anything have two ids, and everything of a recipe counts or says why not."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout, make_layout, sized_partitions
from imgkit.image import buildid
from imgkit.image.buildid import Facts, container_facts, disk_facts, identify, recipe_facts
from imgkit.recipe import Architecture, Recipe, Shape, load, parse_size
from imgkit.rootfs import digest
from imgkit.rootfs.scripts.effects import Pending
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.test_lockfile import plan_of

CHANGED: dict[str, Any] = {
    "name": "other",
    "mirror": "http://other.test/alpine",
    "guest_mirror": "http://other.test/alpine",
    "outputs": ("oci",),
    "base": "oci:alpine@sha256:" + "0" * 64,
    "base_setuid": "drop",
    "branch": "edge",
    "version": "3.23.5",
    "repositories": ("main",),
    "release_key": Path("/other.asc"),
    "size": "256M",
    "format": "raw",
    "compression": "zlib",
    "packages": ("bash",),
    "disk_packages": ("linux-lts",),
    "container": {"user": "agent"},
    "kernel": "lts",
    "initramfs_features": ("base",),
    "kernel_arguments": ("debug",),
    "read_only_root": True,
    "hostname": "other",
    "network": "none",
    "services": {"boot": ("sysctl",)},
    "users": ({"name": "other", "uid": 7},),
    "timezone": "Europe/Berlin",
    "overlay": {"path": Path("/other"), "modes": "git"},
    "overlays": ({"path": Path("/other")},),
    "files": ({"path": "/etc/a", "content": b"a"},),
    "agent": {"command": ("other",)},
    "agent_runner": Path("/other"),
    "agent_runner_build": "0",
    "npm_scripts": True,
    "npm_git": True,
    "payload_binaries": "prune",
    "skip_scripts": ("a",),
    "architectures": {},
}
"""Another value for every field of a recipe. A new field needs one here, and a thought whether it decides images."""
PATHS = ("agent_runner", "release_key")
SHAPES: tuple[Shape, ...] = ("disk", "container")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/alpine/"})


def with_fields(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values, which are written as in a file."""
    return Recipe.model_validate({**dict(recipe), **values})


def layout_of(recipe: Recipe, seed: int = 1) -> Layout:
    spec = sized_partitions(recipe.architecture("amd64"))
    return make_layout(spec, parse_size(recipe.size), uuid.UUID(int=seed))


def facts(recipe: Recipe, **changes: Any) -> Facts:
    given: dict[str, Any] = {
        "recipe": recipe,
        "arch": "amd64",
        "plan": plan_of(recipe, "amd64"),
        "epoch": 7,
        "layout": layout_of(recipe),
        "boot": BootFiles(b"code", b"core", {"EFI/x": b"efi"}),
        **changes,
    }
    return disk_facts(**given)


def id_of(facts: Facts, text: str = "a") -> str:
    tree = Tree()
    tree.write("etc/x", text)
    identity = identify(tree, "linux", "amd64", facts, epoch=7)
    assert tree.text("etc/imgkit-release") == (
        f"IMGKIT_IMAGE=linux\nIMGKIT_ARCH=amd64\nIMGKIT_BUILD_ID={identity.build_id}\n"
    )
    assert tree["etc/imgkit-release"].mtime == 7
    assert identity.records == digest.records(tree), "the release file is in the records, too"
    assert identity.facts is facts
    assert len(identity.build_id) == 16
    return identity.build_id


def test_every_field_of_a_recipe_has_been_considered() -> None:
    assert CHANGED.keys() == Recipe.model_fields.keys(), "say here and in imgkit.image.buildid what the new field means"
    known = set(Recipe.model_fields)
    assert buildid.NEVER_DECISIVE.keys() < known
    for shape in SHAPES:
        assert buildid.UNDECISIVE[shape].keys() < known


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_recipe_that_differs_in_one_field(recipe: Recipe, name: str, shape: Shape) -> None:
    changed = with_fields(recipe, {name: CHANGED[name]})
    assert getattr(changed, name) != getattr(recipe, name)
    if name == "architectures":
        return  # the next test
    plan = plan_of(recipe, "amd64")

    def made(recipe: Recipe) -> str:
        if shape == "disk":
            return id_of(facts(recipe, plan=plan, layout=layout_of(load(ROOT / "recipes" / "core.py"))))
        return id_of(container_facts(recipe, "amd64", plan, 7))

    decides = name not in (*PATHS, *buildid.NEVER_DECISIVE, *buildid.UNDECISIVE[shape])
    assert (made(changed) != made(recipe)) is decides


ARCHITECTURE: dict[str, Any] = {
    "alpine": "aarch64",
    "packages": ("other",),
    "partitions": ({"kind": "root"},),
    "grub_platforms": (),
    "consoles": ("tty9",),
    "kernel_arguments": ("debug",),
}


def test_an_architecture_that_differs_in_one_field(recipe: Recipe) -> None:
    assert ARCHITECTURE.keys() == Architecture.model_fields.keys()
    for name, value in ARCHITECTURE.items():
        other = {**dict(recipe.architecture("amd64")), name: value}
        changed = with_fields(recipe, {"architectures": {**recipe.architectures, "amd64": other}})
        assert recipe_facts(changed, "amd64", "disk") != recipe_facts(recipe, "amd64", "disk"), name
        assert recipe_facts(changed, "arm64", "disk") == recipe_facts(recipe, "arm64", "disk"), name


def test_two_sizes_of_one_recipe_have_two_ids(recipe: Recipe) -> None:
    small = recipe.model_copy(update={"size": "256M"})
    assert id_of(facts(small)) != id_of(facts(recipe)) == id_of(facts(recipe))


def test_all_else_that_decides_a_disk(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(recipe, "amd64")
    pending = Pending("busybox", "post-install", "echo 1\n", ("1",), "a reason")
    others = [
        facts(recipe, arch="arm64"),
        facts(recipe, plan=replace(plan, packages=plan.packages[:1])),
        facts(recipe, epoch=8),
        facts(recipe, layout=layout_of(recipe, 2)),
        facts(recipe, boot=BootFiles(b"Code", b"core", {"EFI/x": b"efi"})),
        facts(recipe, boot=BootFiles(b"code", b"Core", {"EFI/x": b"efi"})),
        facts(recipe, boot=BootFiles(b"code", b"core", {"EFI/x": b"Efi"})),
        facts(recipe, boot=BootFiles(b"code", b"core", {"EFI/y": b"efi"})),
        facts(recipe, pending=(pending,)),
        facts(recipe, pending=(replace(pending, text="echo 2\n"),)),
        facts(recipe, pending=(replace(pending, args=("2",)),)),
        container_facts(recipe, "amd64", plan, 7),
    ]
    monkeypatch.setattr(buildid, "__version__", "0.0.9")
    others.append(facts(recipe))
    monkeypatch.undo()
    ids = [id_of(other) for other in (facts(recipe), *others)]
    ids.append(id_of(facts(recipe), "b"))
    assert len(set(ids)) == len(ids)


def test_what_lies_at_a_path_counts_and_not_the_path(recipe: Recipe, tmp_path: Path) -> None:
    moved = with_fields(
        recipe,
        {
            "agent_runner": tmp_path / "agent",
            "release_key": tmp_path / "key",
            "base": f"oci:{tmp_path}/x",
            "mirror": tmp_path.as_uri(),
            "overlay": {"path": tmp_path / "overlay"},
            "overlays": ({"path": tmp_path / "overlay"},),
            "files": ({"path": "/etc/x", "source": tmp_path / "x"},),
            "repositories": ("main", {"url": str(tmp_path / "packages"), "key": tmp_path / "k.pub", "tag": "own"}),
        },
    )
    for shape in SHAPES:
        text = json.dumps(recipe_facts(moved, "amd64", shape))
        assert str(tmp_path) not in text
        assert str(ROOT) not in text


def test_values_that_nobody_has_considered_are_refused(recipe: Recipe) -> None:
    with pytest.raises(TypeError, match=r"^bytes in a recipe$"):
        recipe_facts(recipe.model_copy(update={"hostname": b"x"}), "amd64", "disk")


def test_long_texts_are_stated_by_their_hash(recipe: Recipe) -> None:
    texts = ("x" * 200, "x" * 201)
    other = recipe.model_copy(update={"kernel_arguments": texts})
    as_it_is, long = recipe_facts(other, "amd64", "disk")["kernel_arguments"]
    assert as_it_is == texts[0]
    assert long == "sha256:" + hashlib.sha256(texts[1].encode()).hexdigest()
