"""The steps of a build that need no appliance: early checks, and putting the results into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.apk.index import Package
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.engines.interface import Engine, ImageTarget, TreeFacts
from imgkit.errors import HostError, RecipeError
from imgkit.fetch.cache import Cache
from imgkit.host.progress import Steps
from imgkit.host.room import MAKE_ROOM
from imgkit.image import assemble, gathering
from imgkit.image.assemble import BuildRequest
from imgkit.image.buildid import ImageIdentity
from imgkit.image.workspace import workspace
from imgkit.planning.plan import Artefact, PlannedPackage
from imgkit.recipe import load, parse_size
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.test_lockfile import plan_of

FILES = {"vmlinuz": b"k", "initramfs": b"i", "manifest.json": b"m", "image": b"q"}


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
    result = assemble._place(build_request, work_of(tmp_path / "work"), "abc", steps)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "linux-amd64.qcow2": b"q",
        "linux-amd64.manifest.json": b"m",
        "vmlinuz-virt-amd64": b"k",
        "initramfs-virt-amd64": b"i",
    }
    assert (result.image, result.manifest) == (out / "linux-amd64.qcow2", out / "linux-amd64.manifest.json")
    assert (result.kernel, result.initramfs) == (out / "vmlinuz-virt-amd64", out / "initramfs-virt-amd64")
    assert (result.build_id, result.size, result.steps) == ("abc", 1, steps)
    assert result.allocated == result.image.stat().st_blocks * 512
    assert not any((tmp_path / "work").iterdir())


def test_nothing_is_put_into_place_when_a_result_is_missing(build_request: BuildRequest, tmp_path: Path) -> None:
    build_request.out.mkdir()
    work = work_of(tmp_path / "work")
    (work / "image").unlink()
    with pytest.raises(FileNotFoundError):
        assemble._place(build_request, work, "abc", Steps())
    assert list(build_request.out.iterdir()) == []


def test_packages_of_twice_the_size_are_refused_before_they_are_downloaded(build_request: BuildRequest) -> None:
    plan = plan_of(build_request.recipe, "amd64")
    half = PlannedPackage(Package(name="a", version="1-r0", installed_size=1 << 20), "u")
    assemble._check_size(replace(plan, packages=(half, half)), 1 << 20)
    more = replace(half, package=replace(half.package, installed_size=(1 << 20) + 1))
    with pytest.raises(RecipeError, match="image of 1 MiB is too small for its content"):
        assemble._check_size(replace(plan, packages=(half, more)), 1 << 20)


def test_older_images_of_other_formats_stay_and_are_named(
    build_request: BuildRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest beside both is about the new one."""
    out = build_request.out
    out.mkdir()
    (out / "linux-amd64.qcow2").write_bytes(b"of an earlier build")
    (out / "linux-amd64.txt").write_bytes(b"something else")
    recipe = load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/", "format": "raw"})
    result = assemble._place(replace(build_request, recipe=recipe), work_of(tmp_path / "work"), "abc", Steps())
    assert (result.image.name, result.image.read_bytes()) == ("linux-amd64.raw", b"q")
    assert (out / "linux-amd64.qcow2").read_bytes() == b"of an earlier build"
    message = f"{out}/linux-amd64.qcow2: is of an earlier build; linux-amd64.manifest.json is about linux-amd64.raw now"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [message]


@pytest.mark.parametrize(
    ("output", "file_format", "engine", "needed"),
    [
        ("disk", "qcow2", "guestfs", True),
        ("disk", "qcow2", "native", False),
        ("disk", "raw", "guestfs", False),
        ("disk", "vmdk", "native", True),
        ("disk", "vhd", "guestfs", True),
        ("rootfs", "vhd", "guestfs", False),
    ],
)
def test_a_program_that_is_needed_late_is_looked_for_early(
    output: Any,
    file_format: str,
    engine: Any,
    needed: bool,
    build_request: BuildRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = build_request.recipe.model_copy(update={"format": file_format})
    request = replace(build_request, recipe=recipe, output=output)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assemble._check_programs(request, engine)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "qemu-img" else f"/usr/bin/{name}")
    if not needed:
        assemble._check_programs(request, engine)
        return
    with pytest.raises(HostError, match="qemu-img"):
        assemble._check_programs(request, engine)


def test_sizes_that_a_format_cannot_have() -> None:
    mib = 1 << 20
    assemble._check_format("raw", 300 * mib + 512)
    assemble._check_format("vhd", 2040 << 30)
    with pytest.raises(RecipeError, match="format vmdk: a disk of 314573312 bytes") as caught:
        assemble._check_format("vmdk", 300 * mib + 512)
    assert caught.value.hint == "choose a size in whole MiB"
    assemble._check_format("vhdx", (2040 << 30) + mib)
    with pytest.raises(RecipeError, match="format vhd: a disk has 2040 GiB at most") as caught:
        assemble._check_format("vhd", (2040 << 30) + mib)
    assert caught.value.hint == "choose vhdx, or a smaller size"


def failing(number: int, path: Path | None) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number), *([] if path is None else [str(path)]))

    return fail


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, r"no space left \(\d+ MiB free\)"),
        (errno.EDQUOT, r"no space left \(\d+ MiB free\)"),
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
        workspace(build_request.out, build_request.work),
    ):
        failing(number, file)()
    assert caught.value.hint == MAKE_ROOM
    assert not build_request.out.exists(), "it was made for the build"


def test_other_faults_of_a_file_are_no_fault_of_the_disk(build_request: BuildRequest) -> None:
    with pytest.raises(PermissionError), workspace(build_request.out, build_request.work):
        failing(errno.EACCES, None)()


@pytest.mark.parametrize(("work", "hint"), [(False, "--out"), (True, "WORK_DIR")])
def test_a_folder_that_cannot_be_made_is_named(
    work: bool, hint: str, build_request: BuildRequest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    bad = tmp_path / "file" / "folder"
    request = replace(build_request, work=bad) if work else replace(build_request, out=bad)
    with pytest.raises(HostError, match=f"^{bad}: Not a directory$") as caught, workspace(request.out, request.work):
        raise AssertionError("there is no folder")
    assert caught.value.hint == f"choose another with {hint}"


def test_scratch_files_are_in_the_folder_for_them(build_request: BuildRequest, tmp_path: Path) -> None:
    for request, parent in (
        (build_request, build_request.out),
        (replace(build_request, work=tmp_path / "work"), tmp_path / "work"),
    ):
        with workspace(request.out, request.work) as folder:
            assert folder.parent == parent
            assert folder.name.startswith(".imgkit-")
            assert request.out.is_dir()
        assert not parent.exists()


def test_identifiers_of_the_disk_follow_from_recipe_and_plan(build_request: BuildRequest) -> None:
    recipe = build_request.recipe
    plan = plan_of(recipe, "amd64")
    first = assemble._layout(build_request, plan, 1 << 30)
    assert assemble._layout(build_request, plan, 1 << 30) == first
    other = replace(plan, base=Artefact("http://elsewhere.test/x", 1, "00" * 32, "key"))
    renamed = replace(build_request, recipe=recipe.model_copy(update={"name": "other"}))
    guids = {
        first.disk_guid,
        assemble._layout(build_request, other, 1 << 30).disk_guid,
        assemble._layout(renamed, plan, 1 << 30).disk_guid,
    }
    assert len(guids) == 3
    assert first.disk_guid == "A9B268DC-04BF-536C-A1C6-54C4801D366A", "images that were built before have it, too"


# ---- the whole build, with stand-ins for the work --------------------------------------------------------------------


class _Recorder:
    """Stands for every function that a build calls: keeps the calls in order, and answers with ``answers``."""

    tree: Tree

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name, answer in answers.items():
            module = assemble if hasattr(assemble, name) else gathering
            monkeypatch.setattr(module, name, self._stand_in(name, answer))

    def _stand_in(self, name: str, answer: Any) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            return answer(*arguments, **options) if callable(answer) else answer

        return called

    def of(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the only call of ``name``."""
        ((arguments, options),) = [(arguments, options) for called, arguments, options in self.calls if called == name]
        return arguments, options

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


@pytest.fixture
def recorder(build_request: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> _Recorder:
    plan = plan_of(build_request.recipe, "amd64")
    tree = Tree()
    tree.write("boot/initramfs-virt", b"initramfs")
    composition = SimpleNamespace(
        tree=tree,
        scripts=SimpleNamespace(pending=("pending",)),
        kernel=SimpleNamespace(initramfs="boot/initramfs-virt"),
        binaries="binaries",
    )

    recorder = _Recorder(
        monkeypatch,
        {
            "_check_programs": None,
            "fetch_base": SimpleNamespace(tree="base tree", image="base image"),
            "make_plan": plan,
            "missing_packages": [],
            "fetch_packages": lambda plan, *_, **__: (replace(plan, world=("fetched",)), {}),
            "check_locked": None,
            "prepare_payload": Path("/payload"),
            "compose": lambda *_, **__: composition,
            "apply_policy": None,
            "make_boot_files": lambda *_: BootFiles(b"", b"", {"EFI/x": b"efi"}),
            "disk_facts": {"facts": 1},
            "identify": ImageIdentity(
                "id", {}, {"/boot/initramfs-virt": {"sha256": "ab" * 32}}, {"/etc/motd": "baselayout"}
            ),
            "direct_boot_image": lambda *_: b"kernel",
            "uncompressed_image": lambda *_: b"elf",
            "describe": lambda *_: {"manifest": 1},
            "host_arch": lambda: "amd64",
        },
    )
    recorder.tree = tree
    return recorder


class _Engine:
    """Keeps what is asked of it."""

    name = "native"
    runs_scripts = True

    def __init__(self) -> None:
        self.asked: list[Any] = []

    @contextmanager
    def __call__(self, folder: Path, size: int) -> Iterator[Engine]:
        assert list(folder.iterdir()) == []
        self.asked.append(("launch", folder.name, size))
        yield cast(Engine, self)
        self.asked.append("ended")

    def prepare(self, layout: Layout) -> None:
        self.asked.append(("prepare", layout.size_bytes))

    def check(self) -> None:
        self.asked.append("check")

    def write(self, *arguments: Any) -> Any:
        self.asked.append(("write", *arguments))
        return SimpleNamespace(save=self.save)

    def save(self, target: ImageTarget, steps: Steps) -> Any:
        self.asked.append(("save", target, steps))
        target.path.write_bytes(b"image")
        return "map"


def test_a_build_from_beginning_to_end(build_request: BuildRequest, recorder: _Recorder) -> None:
    engine = _Engine()
    result = assemble.build(replace(build_request, engine=engine))
    recipe, out = build_request.recipe, build_request.out
    size = parse_size(recipe.size)
    assert (result.image.read_bytes(), result.kernel.read_bytes()) == (b"image", b"kernel")
    assert result.initramfs.read_bytes() == b"initramfs"
    file = {"name": "linux-amd64.qcow2", "sha256": hashlib.sha256(b"image").hexdigest(), "size": 5}
    assert json.loads(result.manifest.read_text()) == {
        "manifest": 1, "image": {**file, "format": "qcow2", "virtualSize": size},
    }  # fmt: skip
    assert len(list(out.iterdir())) == 4
    assert (result.build_id, result.size) == ("id", 5)
    assert [step.name for step in result.steps.finished] == [
        "plan", "fetch packages", "prepare the payload", "compose the root filesystem", "make the boot loader",
        "hash the files", "put into place",
    ]  # fmt: skip
    launch, prepare, *checks, write, save, ended = engine.asked
    assert (launch, prepare, checks, ended) == (
        ("launch", "disk", size), ("prepare", size), ["check", "check"], "ended",
    )  # fmt: skip
    _, tree, layout, boot, steps, pending, facts = write
    assert (boot.esp, steps, pending) == ({"EFI/x": b"efi"}, result.steps, ("pending",))
    assert facts == TreeFacts({"boot/initramfs-virt": b"\xab" * 32}, {"etc/motd": "baselayout"}, 0)
    assert save[1] == ImageTarget(save[1].path, "qcow2", recipe.compression)
    assert save[2] is steps
    assert recorder.names == [
        "_check_programs", "fetch_base", "make_plan", "missing_packages", "fetch_packages", "host_arch", "compose",
        "apply_policy", "make_boot_files", "disk_facts", "identify", "direct_boot_image", "describe",
    ]  # fmt: skip
    (*given, image_of), options = recorder.of("make_boot_files")
    assert (given, options) == ([tree, ("i386-pc", "x86_64-efi"), layout], {})
    assert callable(image_of)
    described = recorder.of("describe")[0]
    assert (described[0], described[1].world, described[4]) == (recipe, ("fetched",), layout)
    assert described[3].build_id == "id"
    assert (described[5].disk, described[5].esp) == ("map", {"EFI/x": b"efi"})
    assert described[6] == "base image"
    assert [path.name for path in (described[5].image, described[5].kernel, described[5].initramfs)] == [
        "image", "vmlinuz", "initramfs",
    ]  # fmt: skip


def test_a_root_filesystem_has_no_boot_loader(
    build_request: BuildRequest, recorder: _Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _Engine()
    monkeypatch.setattr(assemble, "_facts", lambda *_: TreeFacts())
    recorder.tree.write("boot/grub/grub.cfg", "linux /boot/x root=UUID=1 console=tty0\n")
    result = assemble.build(replace(build_request, engine=engine, output="rootfs"))
    assert "make_boot_files" not in recorder.names
    assert "direct_boot_image" not in recorder.names
    assert {path.name for path in build_request.out.iterdir()} == {
        "linux-amd64.ext4", "linux-amd64.rootfs.manifest.json", "linux-amd64.firecracker.json", "vmlinux-virt-amd64",
        "initramfs-virt-amd64",
    }  # fmt: skip
    assert (result.image.name, result.kernel.read_bytes()) == ("linux-amd64.ext4", b"elf")
    assert result.firecracker is not None
    assert json.loads(result.firecracker.read_text())["boot-source"]["boot_args"].startswith(
        "root=UUID=1 console=ttyS0"
    )
    _, _, _, _, write, save, _ = engine.asked
    assert (write[2].is_bare, write[3]) == (True, BootFiles())
    assert save[1].format == "raw"


def test_what_a_build_fetches_and_composes(build_request: BuildRequest, recorder: _Recorder) -> None:
    request = replace(build_request, engine=_Engine())
    assemble.build(request)
    recipe, cache = request.recipe, request.cache
    arguments, options = recorder.of("fetch_base")
    assert (arguments[:3], arguments[3].name) == ((recipe, "amd64", cache), "minirootfs")
    assert options == {"locked": None, "allow_stale": False, "access": None}
    arguments, options = recorder.of("make_plan")
    assert (arguments[:2], arguments[3], options) == ((recipe, "amd64"), cache, {"shape": "disk", "allow_stale": False})
    arguments, options = recorder.of("fetch_packages")
    assert (arguments[2], options) == (cache, {"locked": False, "known": {}})
    arguments, options = recorder.of("compose")
    assert (arguments[0], arguments[2:]) == ("base tree", (recipe, "amd64"))
    assert arguments[1].packages == tuple(planned.package for planned in plan_of(recipe, "amd64").packages)
    assert arguments[1].world == ("fetched",)
    assert (options["payload"], options["can_run"], options["epoch"]) == (None, True, 0)
    policy, options = recorder.of("apply_policy")
    assert policy[:3] == ("binaries", recipe.payload_binaries, "x86_64")
    assert options == {"copied": False}


@pytest.mark.parametrize(
    ("arch", "runs", "can_run", "elsewhere"),
    [
        ("amd64", True, True, "--engine guestfs runs them"),
        ("amd64", False, False, "--engine guestfs runs them"),
        ("arm64", True, False, None),
    ],
)
def test_scripts_run_where_the_engine_and_the_host_can(
    arch: str, runs: bool, can_run: bool, elsewhere: str | None, build_request: BuildRequest, recorder: _Recorder
) -> None:
    engine = _Engine()
    engine.runs_scripts = runs
    assemble.build(replace(build_request, engine=engine, arch=arch))
    options = recorder.of("compose")[1]
    assert (options["can_run"], options["elsewhere"]) == (can_run, elsewhere)


def test_what_the_build_id_is_computed_from(build_request: BuildRequest, recorder: _Recorder) -> None:
    request = replace(build_request, engine=_Engine(), epoch=77)
    assemble.build(request)
    (recipe, arch, plan, epoch, layout, boot, pending), _ = recorder.of("disk_facts")
    assert (recipe, arch, plan.world, epoch) == (request.recipe, "amd64", ("fetched",), 77)
    assert (layout.size_bytes, boot.esp, pending) == (parse_size(recipe.size), {"EFI/x": b"efi"}, ("pending",))
    (tree, *facts), options = recorder.of("identify")
    assert (tree.text("boot/initramfs-virt"), facts) == ("initramfs", ["linux", "amd64", {"facts": 1}])
    assert options == {"epoch": 77} == {"epoch": recorder.of("compose")[1]["epoch"]}


def test_a_locked_build_makes_no_plan(build_request: BuildRequest, recorder: _Recorder) -> None:
    plan = plan_of(build_request.recipe, "arm64")
    request = replace(
        build_request, arch="arm64", engine=_Engine(), locked=plan, allow_stale=True, epoch=77, work=build_request.out
    )
    assemble.build(request)
    assert "make_plan" not in recorder.names
    assert recorder.of("fetch_base")[1] == {"locked": plan, "allow_stale": True, "access": None}
    assert recorder.of("fetch_packages")[1] == {"locked": True, "known": {}}
    checked, _ = recorder.of("check_locked")
    assert (checked[0].world, checked[2], checked[3]) == (("fetched",), request.cache, {})
    options = recorder.of("compose")[1]
    assert (options["can_run"], options["epoch"]) == (False, 77)
    assert recorder.of("make_boot_files")[0][1] == ("arm64-efi",)


@pytest.mark.parametrize(("how", "copied"), [("0", True), ("1", False)])
def test_a_payload_is_prepared(
    how: str, copied: bool, build_request: BuildRequest, recorder: _Recorder, tmp_path: Path
) -> None:
    payload = {"agent_runner": tmp_path, "agent_runner_build": how, "npm_scripts": True, "npm_git": True}
    recipe = build_request.recipe.model_copy(update=payload)
    assemble.build(replace(build_request, recipe=recipe, engine=_Engine()))
    arguments, options = recorder.of("prepare_payload")
    assert (arguments[0], arguments[1].name) == (tmp_path, "payload")
    assert options == {
        "build": how,
        "architecture": "x86_64",
        "allow_scripts": True,
        "allow_git": True,
        "offline": False,
        "cache": build_request.cache.folder / "npm",
    }
    assert recorder.of("compose")[1]["payload"] == Path("/payload")
    assert recorder.of("apply_policy")[1] == {"copied": copied}


def test_a_folder_for_scratch_files_may_be_elsewhere(
    build_request: BuildRequest, recorder: _Recorder, tmp_path: Path
) -> None:
    engine = _Engine()
    result = assemble.build(replace(build_request, engine=engine, work=tmp_path / "work"))
    assert engine.asked[-2][1].path.parent.parent == tmp_path / "work"
    assert result.image.is_file()
    assert not (tmp_path / "work").exists()
