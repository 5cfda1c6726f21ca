"""The steps of a build that need no appliance: early checks, and putting the results into place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.apk.index import Package
from imgkit.engines.interface import Engine
from imgkit.errors import HostError, RecipeError
from imgkit.fetch.cache import Cache
from imgkit.host.progress import Steps
from imgkit.image import assemble
from imgkit.image.assemble import BuildRequest
from imgkit.planning.plan import PlannedPackage
from imgkit.recipe import load
from tests.commandline import ROOT
from tests.test_lockfile import plan_of

FILES = {"vmlinuz": b"k", "initramfs": b"i", "manifest.json": b"m", "image.qcow2": b"q"}


def no_engine(folder: Path, size: int) -> AbstractContextManager[Engine]:
    raise AssertionError("no engine is needed here")


@pytest.fixture
def build_request(tmp_path: Path) -> BuildRequest:
    recipe = load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/"})
    return BuildRequest(recipe, "amd64", tmp_path / "out", Cache(tmp_path / "cache"), no_engine)


def work_of(folder: Path) -> Path:
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def test_results_are_put_into_place_together(build_request: BuildRequest, tmp_path: Path) -> None:
    out, steps = build_request.out, Steps()
    out.mkdir()
    (out / "linux-amd64.qcow2").write_bytes(b"of an earlier build")
    result = assemble._place(build_request, work_of(tmp_path / "work"), "abc", 7, steps)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "linux-amd64.qcow2": b"q",
        "linux-amd64.manifest.json": b"m",
        "vmlinuz-virt-amd64": b"k",
        "initramfs-virt-amd64": b"i",
    }
    assert (result.image, result.manifest) == (out / "linux-amd64.qcow2", out / "linux-amd64.manifest.json")
    assert (result.kernel, result.initramfs) == (out / "vmlinuz-virt-amd64", out / "initramfs-virt-amd64")
    assert (result.build_id, result.size, result.steps) == ("abc", 7, steps)
    assert not any((tmp_path / "work").iterdir())


def test_nothing_is_put_into_place_when_a_result_is_missing(build_request: BuildRequest, tmp_path: Path) -> None:
    build_request.out.mkdir()
    work = work_of(tmp_path / "work")
    (work / "image.qcow2").unlink()
    with pytest.raises(FileNotFoundError):
        assemble._place(build_request, work, "abc", 7, Steps())
    assert list(build_request.out.iterdir()) == []


def test_packages_of_twice_the_size_are_refused_before_they_are_downloaded(build_request: BuildRequest) -> None:
    plan = plan_of(build_request.recipe, "amd64")
    half = PlannedPackage(Package(name="a", version="1-r0", installed_size=1 << 20), "u")
    assemble._check_size(replace(plan, packages=(half, half)), 1 << 20)
    more = replace(half, package=replace(half.package, installed_size=(1 << 20) + 1))
    with pytest.raises(RecipeError, match="image of 1 MiB is too small for its content"):
        assemble._check_size(replace(plan, packages=(half, more)), 1 << 20)


@pytest.mark.parametrize("program", ["grub-mkimage", "qemu-img"])
def test_programs_that_are_needed_late_are_looked_for_early(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}")
    with pytest.raises(HostError, match=program):
        assemble._check_programs()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assemble._check_programs()


def failing(number: int, path: Path | None) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number), *([] if path is None else [str(path)]))

    return fail


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "File too large"),
        (errno.EIO, "Input/output error"),
        (errno.EROFS, "Read-only file system"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_disk_that_is_full_or_broken_is_the_host_s_fault(
    number: int, reason: str, named: bool, build_request: BuildRequest
) -> None:
    file = build_request.out / "x" if named else None
    with (
        pytest.raises(HostError, match=f"^{file or build_request.out}: {reason}$") as caught,
        assemble._workspace(build_request),
    ):
        failing(number, file)()
    assert caught.value.hint == "make room, or choose another folder with --out"
    assert not build_request.out.exists(), "it was made for the build"


def test_other_faults_of_a_file_are_no_fault_of_the_disk(build_request: BuildRequest) -> None:
    with pytest.raises(PermissionError), assemble._workspace(build_request):
        failing(errno.EACCES, None)()


@pytest.mark.parametrize(("work", "hint"), [(False, "--out"), (True, "WORK_DIR")])
def test_a_folder_that_cannot_be_made_is_named(
    work: bool, hint: str, build_request: BuildRequest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    bad = tmp_path / "file" / "folder"
    request = replace(build_request, work=bad) if work else replace(build_request, out=bad)
    with pytest.raises(HostError, match=f"^{bad}: Not a directory$") as caught, assemble._workspace(request):
        raise AssertionError("there is no folder")
    assert caught.value.hint == f"choose another with {hint}"


def test_scratch_files_are_in_the_folder_for_them(build_request: BuildRequest, tmp_path: Path) -> None:
    for request, parent in (
        (build_request, build_request.out),
        (replace(build_request, work=tmp_path / "work"), tmp_path / "work"),
    ):
        with assemble._workspace(request) as folder:
            assert folder.parent == parent
            assert folder.name.startswith(".imgkit-")
            assert request.out.is_dir()
        assert not parent.exists()


def test_identifiers_of_the_disk_follow_from_recipe_and_plan(build_request: BuildRequest) -> None:
    recipe = build_request.recipe
    plan = plan_of(recipe, "amd64")
    first = assemble._layout(recipe, "amd64", plan, 1 << 30)
    assert assemble._layout(recipe, "amd64", plan, 1 << 30) == first
    other = replace(plan, minirootfs=replace(plan.minirootfs, sha256="00" * 32))
    renamed = recipe.model_copy(update={"name": "other"})
    guids = {
        first.disk_guid,
        assemble._layout(recipe, "amd64", other, 1 << 30).disk_guid,
        assemble._layout(renamed, "amd64", plan, 1 << 30).disk_guid,
    }
    assert len(guids) == 3
    assert first.disk_guid == "A9B268DC-04BF-536C-A1C6-54C4801D366A", "images that were built before have it, too"
