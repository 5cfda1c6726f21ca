"""A program of somebody who uses imgkit from Python. mypy checks its types (``assert_type``); nobody runs it.

A name that imgkit does not have is an error: otherwise the ``type: ignore`` would be one that is not needed.
"""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_type

import imgkit
from imgkit import VM, BootSpec, ImgkitError, Recipe


def program(folder: Path) -> None:
    recipe = imgkit.load_recipe("recipes/core.py", size="8G")
    assert_type(recipe, Recipe)
    plan = imgkit.plan(recipe, "amd64", shape="container", offline=True)
    assert_type(plan, imgkit.Plan)
    assert_type(plan.packages[0].package.name, str)
    disk = imgkit.build(recipe, out=folder, lock=folder / "core.lock")
    assert_type(disk, imgkit.BuildResult)
    assert_type(disk.image, Path)
    assert_type(disk.build_id, str)
    container = imgkit.build_container(recipe, ["amd64"], outputs=["oci", "docker-archive"])
    assert_type(container.digest, str)
    contents = imgkit.inspect(disk.image, timeout=60)
    assert_type(contents, imgkit.DiskContents)
    assert_type(contents.packages[0].size, int)
    assert_type(imgkit.inspect_container(folder / "linux.oci")[0].labels["a"], str)
    verified = imgkit.verify(disk.image)
    assert_type(verified, imgkit.VerifiedImage)
    assert_type(verified.faults, tuple[str, ...])
    comparison = imgkit.diff(disk.manifest, "old.manifest.json", arch="amd64")
    assert_type(comparison, imgkit.Comparison)
    assert_type(comparison.pairs[0].packages_changed[0].after, str)
    try:
        with VM.boot(BootSpec(disk.image, quotas=imgkit.Quotas()), timeout=60) as vm:
            assert_type(vm, VM)
            assert_type(vm.run("id").text, str)
    except ImgkitError as error:
        assert_type(error.hint, "str | None")
    imgkit.nonsense()  # type: ignore[attr-defined]
    imgkit.load_recipe(5)  # type: ignore[arg-type]
