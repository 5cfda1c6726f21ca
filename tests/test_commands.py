"""What the commands ask for and print, with stand-ins for the work that they would do."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.api import applianceoptions, building, inspecting, verifying
from imgkit.api.inspecting import DiskContents, ListedPackage
from imgkit.api.verifying import VerifiedImage
from imgkit.cli import hostchecks, main, several
from imgkit.cli.command import Invocation
from imgkit.cli.commandlist import COMMANDS, command
from imgkit.cli.commands import build as build_command
from imgkit.cli.commands import inspect, lock, verify
from imgkit.cli.commands.doctor import table
from imgkit.cli.hostchecks import HostCheck
from imgkit.cli.options import environmentoptions, machineoptions, readoptions, repeatedoptions
from imgkit.cli.parser import parse, parsers
from imgkit.cli.reports import buildreport
from imgkit.cli.reports.buildreport import BuildReport, StepReport, parse_report, report_of
from imgkit.engines.engineerrors import EngineStartError, LimitError
from imgkit.engines.guestfs import bindings
from imgkit.engines.guestfs import engine as guestfs
from imgkit.engines.guestfs.bindings import Interpreter
from imgkit.engines.reading import FilesystemUsage
from imgkit.errors import GuestError, HostError, InputError, RecipeError, UsageError
from imgkit.host import statusline
from imgkit.host.process import MissingProgramError
from imgkit.host.progress import Step, Steps
from imgkit.image import assemble
from imgkit.image.assemble import BuildRequest, BuildResult
from imgkit.planning import lockfile
from imgkit.recipe import Recipe
from imgkit.rootfs.npm import npmrunner
from imgkit.vm.qemu import firmware, probe
from imgkit.vm.sandbox import confinement, identity, supervisor
from tests.commandline import ROOT

MIB, GIB = 1 << 20, 1 << 30
CORE = str(ROOT / "recipes" / "core.py")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that commands read."""
    names = ["SOURCE_DATE_EPOCH", "OUT_DIR", "WORK_DIR", "ARCHS", "SUPERMIN_KERNEL", "IMGKIT_LAUNCH_TIMEOUT"]
    for name in [*names, *build_command.VARIABLES]:
        monkeypatch.delenv(name, raising=False)


# ---- build -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Return what builds were asked for; a stand-in makes nothing."""
    requests: list[BuildRequest] = []

    def build(request: BuildRequest) -> BuildResult:
        requests.append(request)
        if request.arch == "arm64" and cast(object, request.locked) == "failing":
            raise InputError("what")
        out, steps = request.out, Steps([Step("plan", 0.0001, 1.23456)], _origin=0.0)
        return BuildResult(
            out / "i", out / "k", out / "r", out / "m", build_id=f"id-{request.arch}", size=5_400_000, steps=steps
        )

    monkeypatch.setattr(assemble, "build", build)
    monkeypatch.setattr(build_command, "ENGINES", {"guestfs": lambda: "engine"})
    monkeypatch.setattr(several, "at_once", lambda: 1)
    monkeypatch.setattr(build_command, "host_arch", lambda: "arm64")
    monkeypatch.setattr("time.monotonic", lambda: 12.3456)
    monkeypatch.setenv("IMGKIT_CACHE", "/cache")
    return requests


def test_what_a_build_asks_for_by_default(requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["build", CORE]) == 0
    (request,) = requests
    assert (request.arch, request.out, request.work, request.locked) == ("arm64", Path("out"), None, None)
    assert (request.allow_stale, request.epoch, cast(object, request.engine)) == (False, None, "engine")
    assert (request.cache.folder, request.cache.offline) == (Path("/cache"), False)
    out, err = capsys.readouterr()
    assert out == "out/i\n"
    assert err.splitlines() == ["out/i: 5 MB, build id-arm64"]


def test_the_times_of_a_build_are_shown_with_v(
    requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["build", CORE, "-v"]) == 0
    assert len(requests) == 1
    table = ["plan      1.2 s", "total    12.3 s", "out/i: 5 MB, build id-arm64"]
    assert capsys.readouterr().err.splitlines()[-3:] == table


def test_what_a_build_asks_for(
    requests: list[BuildRequest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORK_DIR", "/work")
    monkeypatch.setenv("OUT_DIR", "/from environment")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "77")
    read: list[Any] = []

    def locked(*arguments: Any) -> str:
        read.append(arguments)
        return "plan"

    monkeypatch.setattr(lockfile, "read", locked)
    words = ["--arch", "amd64", "--arch", "arm64", "--arch", "amd64", "--locked", "--offline", "--allow-stale-mirror"]
    assert main.main(["build", CORE, *words, "-q", "--json"]) == 0
    assert [request.arch for request in requests] == ["amd64", "arm64"]
    for request in requests:
        assert (request.out, request.work, request.epoch) == (Path("/from environment"), Path("/work"), 77)
        assert (cast(object, request.locked), request.allow_stale, request.cache.offline) == ("plan", True, True)
    assert [(path.name, arch) for path, _, arch in read] == [("core.lock", "amd64"), ("core.lock", "arm64")]
    out, err = capsys.readouterr()
    assert err == ""
    first, second = json.loads(out)
    assert first == {
        "arch": "amd64",
        "image": "/from environment/i",
        "kernel": "/from environment/k",
        "initramfs": "/from environment/r",
        "manifest": "/from environment/m",
        "buildId": "id-amd64",
        "size": 5_400_000,
        "seconds": 12.35,
        "peakMemory": first["peakMemory"],
        "steps": [{"name": "plan", "start": 0.0, "seconds": 1.235}],
    }
    assert second["arch"] == "arm64"
    main.main(["build", CORE, "--out", "chosen"])
    assert requests[-1].out == Path("chosen")


def test_what_was_built_before_a_failure_is_reported(
    requests: list[BuildRequest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lockfile, "read", lambda *arguments: "failing")
    assert main.main(["build", CORE, "--arch", "all", "--locked", "--json", "-q"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert [report["arch"] for report in answer["done"]] == ["amd64"]
    assert answer["error"]["message"] == "what"


@pytest.mark.parametrize(
    ("at_once", "words", "jobs"), [(8, ["--arch", "all"], 2), (2, ["--arch", "amd64"], None), (1, [], None)]
)
def test_builds_run_side_by_side_where_there_are_processors(
    at_once: int,
    words: list[str],
    jobs: int | None,
    requests: list[BuildRequest],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []

    def build_all(words: object, arches: list[str], jobs: int) -> Iterator[BuildReport]:
        calls.append((words, arches, jobs))
        for arch in reversed(arches):
            yield BuildReport(arch, f"/{arch}", "k", "i", "m", "b", 1, 2.0, 3)

    monkeypatch.setattr(several, "at_once", lambda: at_once)
    monkeypatch.setattr(several, "build_all", build_all)
    given = ["build", CORE, *words]
    assert main.main(given) == 0
    assert calls == ([] if jobs is None else [(given, ["amd64", "arm64"], jobs)])
    if jobs:
        assert capsys.readouterr().out == "/arm64\n/amd64\n"
        main.main([*given, "--json"])
        assert [report["arch"] for report in json.loads(capsys.readouterr().out)] == ["amd64", "arm64"]


def test_the_engine_is_launched_with_the_options_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(building, "appliance_options", lambda: "options")
    monkeypatch.setattr(guestfs, "launch", lambda *words, **options: launched.append((words, options)))
    building.guestfs_engine()(Path("/scratch"), 5)
    assert launched == [((Path("/scratch"), 5), {"options": "options"})]


# ---- reports ---------------------------------------------------------------------------------------------------------

REPORT = BuildReport("amd64", "i", "k", "r", "m", "b", 1, 2.5, 3, (StepReport("plan", 0.5, 1.5),))


def test_a_report_survives_its_journey() -> None:
    assert parse_report(json.dumps([REPORT.to_json()]).encode()) == REPORT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"{}", "not enough values"),
        (b"[]", "not enough values"),
        (json.dumps([REPORT.to_json()] * 2).encode(), "too many values"),
        *((text, "^not the report of a build: .") for text in (
            b"[{}]", b"[1]", b'{"error": 1}', b'[{"steps": [{}]}]', b'[{"steps": 5}]', b'["a"]', b"null",
        )),
    ],
)  # fmt: skip
def test_what_is_no_report(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_report(text)


def test_a_report_rounds_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.126)
    monkeypatch.setattr(buildreport, "peak_memory", lambda: 7)
    steps = Steps([Step("a", 0.12349, 0.98765)], _origin=0.0)
    result = BuildResult(Path("i"), Path("k"), Path("r"), Path("m"), "b", 5, steps)
    assert report_of("amd64", result) == BuildReport(
        "amd64", "i", "k", "r", "m", "b", 5, 100.13, 7, (StepReport("a", 0.123, 0.988),)
    )


def test_the_most_memory_that_a_process_had(monkeypatch: pytest.MonkeyPatch) -> None:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    assert buildreport.peak_memory() >= int(line.split()[1]) * 1024

    def missing(_path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    monkeypatch.setattr(sys, "platform", "linux")
    assert buildreport.peak_memory() == 5 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert buildreport.peak_memory() == 5


# ---- builds in processes of their own --------------------------------------------------------------------------------


def ended(status: int, output: bytes) -> several._Build:
    """Return a build that has ended."""
    build = several._Build("amd64", cast("subprocess.Popen[bytes]", SimpleNamespace(returncode=status)))
    build.output += output
    return build


def failure(**changes: object) -> bytes:
    error = {"status": 4, "message": "what", "hint": "do", "problems": [], "console": "", **changes}
    return json.dumps({"error": error, "done": []}).encode()


@pytest.mark.parametrize(
    ("status", "output", "kind", "message", "hint"),
    [
        (4, failure(), InputError, "amd64: what", "do"),
        (2, failure(status=2, hint=None), UsageError, "amd64: what", None),
        (5, failure(status=5), HostError, "amd64: what", "do"),
        (6, failure(status=6, problems=["a"]), GuestError, "amd64: what", "do"),
        (3, failure(status=3), RecipeError, "amd64: what", "do"),
        (3, failure(status=3, problems=["a", "b"]), RecipeError, "amd64: what: a; b", "do"),
        (3, failure(status=3, problems=5), RecipeError, "amd64: what", "do"),
        (-9, b"", HostError, "amd64: its build was killed by SIGKILL", None),
        (7, b"{}", HostError, "amd64: its build failed with status 7", None),
        (7, b"[]", HostError, "amd64: its build failed with status 7", None),
        (0, b"", HostError, "amd64: its build ended without a report", None),
        (0, b"[]", HostError, "amd64: its build ended without a report", None),
    ],
)
def test_how_a_build_fails(status: int, output: bytes, kind: type[HostError], message: str, hint: str | None) -> None:
    with pytest.raises(kind) as caught:
        ended(status, output).report()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == (message, hint)
    if isinstance(caught.value, RecipeError):
        assert caught.value.problems == (("a", "b") if ": a; b" in message else ())


@pytest.mark.parametrize("status", [70, "4", None])
def test_a_bug_in_a_build_is_a_bug(status: object) -> None:
    with pytest.raises(RuntimeError, match=r"^amd64: what$"):
        ended(70, failure(status=status)).report()


def test_a_build_that_was_interrupted_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt):
        ended(130, failure(status=130)).report()


def passed_on(*pieces: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    waiting = [*pieces, b""]
    monkeypatch.setattr(os, "read", lambda _descriptor, size: waiting.pop(0))
    ended(0, b"")._pass_on(cast(Any, SimpleNamespace(fileno=lambda: 0)))
    return screen.getvalue()


def test_messages_are_passed_on_by_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said = passed_on(b"one\ntw", b"o\n\nthree\n", b"never ended", monkeypatch=monkeypatch)
    assert said == "amd64: one\namd64: two\namd64: three\n"


def test_messages_are_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    screen = SimpleNamespace(write=shown.append, flush=lambda: shown.append("flush"))
    monkeypatch.setattr(sys, "stderr", screen)
    waiting = [b"one\n", b"two\n", b""]
    monkeypatch.setattr(os, "read", lambda _descriptor, size: waiting.pop(0))
    ended(0, b"")._pass_on(cast(Any, SimpleNamespace(fileno=lambda: 0)))
    assert shown == ["amd64: one\n", "flush", "amd64: two\n", "flush"]


def test_nothing_is_passed_on_from_the_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said = passed_on(b"one\nerror: what\n", b"hint: do\n", monkeypatch=monkeypatch)
    assert said == "amd64: one\n"


def test_steps_are_in_the_status_line_and_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [b"plan \xe2\x80\xa6\nmessage\n", b"compose the root \xe2\x80\xa6\n", b""]
    assert passed_on(*waiting[:2], monkeypatch=monkeypatch).splitlines() == [
        "amd64: plan …",
        "amd64: message",
        "amd64: compose the root …",
    ]
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(os, "read", lambda _descriptor, size: waiting.pop(0))
    monkeypatch.setattr(statusline, "active", lambda: True)
    build = ended(0, b"")
    build._pass_on(cast(Any, SimpleNamespace(fileno=lambda: 0)))
    assert (build.step, screen.getvalue()) == ("compose the root", "amd64: message\n")


@pytest.mark.parametrize("status", [None, 0])
def test_a_build_is_asked_to_stop_only_while_it_runs(status: int | None) -> None:
    asked: list[object] = []
    child = SimpleNamespace(poll=lambda: status, terminate=lambda: asked.append("stop"), wait=asked.append)
    several._Build("amd64", cast(Any, child)).end()
    assert asked == (["stop", 15.0] if status is None else [])


def test_a_build_that_does_not_stop_is_left_to_the_end_of_its_group() -> None:
    def wait(timeout: float) -> None:
        raise subprocess.TimeoutExpired("x", timeout)

    child = SimpleNamespace(poll=lambda: None, terminate=lambda: None, wait=wait)
    several._Build("amd64", cast(Any, child)).end()


@pytest.mark.parametrize(("affinity", "count", "expected"), [({3, 5}, 8, 2), (None, 8, 8), (None, None, 1)])
def test_how_many_builds_run_at_a_time(
    affinity: set[int] | None, count: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if affinity is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert several.at_once() == expected


# ---- lock ------------------------------------------------------------------------------------------------------------


def test_what_a_lock_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    recipe_file = tmp_path / "core.py"
    recipe_file.write_text(Path(CORE).read_text())
    monkeypatch.setenv("IMGKIT_CACHE", "/cache")

    def fetch_base(recipe: Recipe, arch: str, cache: Any, spool: Path, *, allow_stale: bool, access: Any) -> str:
        assert access.insecure == ("--insecure" in words)
        assert spool.name == "minirootfs"
        assert (cache.folder, cache.offline) == (Path("/cache"), True)
        return f"base {arch} {allow_stale}"

    def make_plan(recipe: Recipe, arch: str, base: str, cache: Any, *, shape: str, allow_stale: bool) -> str:
        return f"{shape} of {base} {allow_stale}"

    monkeypatch.setattr(building, "fetch_base", fetch_base)
    monkeypatch.setattr(building, "make_plan", make_plan)
    monkeypatch.setattr(building, "fetch_packages", lambda plan, base, cache: (f"{plan} with hashes", "files"))
    monkeypatch.setattr(lock, "load_recipe", lambda options, environ: _recipe())
    monkeypatch.setattr(lockfile, "others", lambda path, recipe, requested: f"all but {requested}")
    monkeypatch.setattr(lockfile, "write", lambda path, recipe, plans, kept: calls.append((path, plans, kept)))
    path = tmp_path / "core.lock"
    words = ["lock", str(recipe_file), "--offline"]
    assert main.main(words) == 0
    assert calls.pop() == (
        path,
        [f"disk of base {arch} False False with hashes" for arch in ("amd64", "arm64")],
        "all but ['amd64', 'arm64']",
    )
    assert capsys.readouterr().out == f"{path}\n"
    words = ["lock", str(recipe_file), "--offline", "--arch", "arm64", "--allow-stale-mirror", "--insecure"]
    main.main(words)
    assert calls.pop()[1:] == (["disk of base arm64 True True with hashes"], "all but ['arm64']")
    words = ["lock", str(recipe_file), "--offline", "--arch", "amd64", "--output", "docker-archive", "--output", "all"]
    main.main(words)
    assert calls.pop()[1:] == (
        ["container of base amd64 False False with hashes", "disk of base amd64 False False with hashes"],
        "all but ['amd64/container', 'amd64']",
    )


def _recipe() -> Any:
    return SimpleNamespace(architectures={"arm64": 1, "amd64": 2}, architecture=lambda name: name, outputs=("disk",))


# ---- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    """Return a raw image, and the manifest beside it."""
    image = tmp_path / "linux-amd64.raw"
    image.write_bytes(bytes(510) + b"\x55\xaa")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    body = {"arch": "amd64", "image": {"sha256": digest, "size": 512}, "files": {}}
    (tmp_path / "linux-amd64.manifest.json").write_text(json.dumps(body))
    return image


def test_an_image_that_is_as_built(
    raw_image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verifying, "image_info", lambda image: "info")
    assert main.main(["verify", str(raw_image)]) == 0
    assert capsys.readouterr().out == f"{raw_image}: the very file that was built\n"
    other = raw_image.with_name("other.json")
    raw_image.with_name("linux-amd64.manifest.json").rename(other)
    assert main.main(["verify", str(raw_image), "--manifest", str(other)]) == 0
    assert main.main(["verify", str(raw_image)]) == 4
    assert sorted(path.name for path in raw_image.parent.iterdir()) == ["linux-amd64.raw", "other.json"]


@pytest.mark.parametrize(
    ("count", "last", "words"),
    [(1, "line 0", "1 difference"), (50, "line 49", "50 differences"), (51, "… and 1 more", "51 differences")],
)
def test_fifty_differences_are_listed(count: int, last: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    faults = tuple(f"line {number}" for number in range(count))
    error = verify._failure(VerifiedImage(Path("i"), Path("m"), ("not printed",), faults), listed=True)
    assert error.message == f"i: is not as m says: {words}"
    lines = capsys.readouterr().out.splitlines()
    assert (lines[-1], len(lines)) == (last, min(count, 51))


@pytest.mark.parametrize(("size", "status"), [(512, 0), (513, 4)])
def test_the_result_of_verify_as_json(
    size: int, status: int, raw_image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All differences are in it, and nothing else is printed to standard output."""
    (raw_image.parent / "kernel").write_bytes(b"k" * (size - 511))
    manifest = raw_image.with_name("linux-amd64.manifest.json")
    boot = {"kernel": {"name": "kernel", "sha256": hashlib.sha256(b"k").hexdigest(), "size": 1}}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "boot": boot}))
    monkeypatch.setattr(verifying, "image_info", lambda image: "info")
    assert main.main(["verify", str(raw_image), "--json"]) == status
    same = f"{raw_image}: the very file that was built"
    faults = ["kernel: is not the kernel that was built"] if status else []
    proved = [same] if status else [same, "kernel: the very file that was built"]
    report = {"image": str(raw_image), "manifest": str(manifest), "proved": proved, "faults": faults}
    printed = json.loads(capsys.readouterr().out)
    assert (printed["done"] if status else [printed]) == [report]
    assert ("error" in printed) is bool(status)


@pytest.mark.parametrize("writable", [True, False])
def test_how_the_disk_of_an_image_is_opened(
    writable: bool, raw_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scratch files beside it if possible, as a raw disk, whatever it begins with."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    opened = []

    @contextmanager
    def open_image(*arguments: Any, info: object) -> Iterator[str]:
        opened.append((*arguments, info))
        yield "reader"

    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: writable if path == tmp_path else access(path, mode))
    monkeypatch.setattr(verifying, "open_image", open_image)
    monkeypatch.setattr(verifying, "appliance_options", lambda: "options")
    with verifying.open_disk(raw_image, cast(Any, "limits")) as reader:
        assert cast(object, reader) == "reader"
    ((disk, folder, options, limits, info),) = opened
    assert (disk, options, limits) == (raw_image, "options", "limits")
    assert folder.parent == (tmp_path if writable else elsewhere)
    assert folder.name.startswith(".imgkit-")
    assert (info.format, info.virtual_size, info.file_size) == ("raw", 512, raw_image.stat().st_blocks * 512)


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_an_image_of_which_little_is_known() -> None:
    usage = FilesystemUsage(size=1, used=0, free=1, inodes=1, inodes_used=0)
    listed = tuple(ListedPackage(name, "1", size) for name, size in (("b", 150_000), ("a", 150_000), ("c", 10**7)))
    image = DiskContents("raw", MIB, MIB + 1, "G", 0, (), usage, {}, (), listed)
    assert inspect.text(Path("x"), image).splitlines() == [
        "x: raw, 1 MiB, 2 MiB on disk",
        "system     unknown",
        "kernel     none",
        "root       0 MiB of 1 MiB used, 0 inodes",
        "",
        " nr  name         filesystem     start       size  uuid",
        "",
        "3 packages, the largest first",
        "     10.0 MB  c-1",
        "      0.1 MB  a-1",
        "      0.1 MB  b-1",
    ]
    two = replace(image, kernels=("6.1", "6.2"))
    assert "kernel     6.1, 6.2" in inspect.text(Path("x"), two)


def test_lists_of_files_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "_MOST_LINES", 3)
    database = "P:a\nF:bin\nM:0:0:755\nR:sh\na:0:0:755\nZ:Q1\nV:1\n\nP:b"
    assert inspecting._without_files(Path("x"), database) == "P:a\nV:1\n\nP:b"
    with pytest.raises(LimitError, match="more than 3 lines besides lists of files"):
        inspecting._without_files(Path("x"), database + "\n")


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "timeout", "expected"), [(None, None, (None, None)), ("2M", 7.5, (2 * MIB, 7.5)), ("5", None, (5, None))]
)
def test_limits_that_are_given(limit: str | None, timeout: float | None, expected: tuple[object, object]) -> None:
    assert readoptions.given_limits(argparse.Namespace(limit=limit, timeout=timeout)) == expected


@pytest.mark.parametrize(
    ("limit", "timeout", "message"),
    [
        (None, 0.0, "--timeout 0: not a number of seconds to wait"),
        (None, -1.5, "--timeout -1.5: not a number of seconds to wait"),
        (None, float("inf"), "--timeout inf: not a number of seconds to wait"),
        (None, float("nan"), "--timeout nan: not a number of seconds to wait"),
        ("", None, "--limit: "),
    ],
)
def test_limits_that_are_none(limit: str | None, timeout: float | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        readoptions.given_limits(argparse.Namespace(limit=limit, timeout=timeout))
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(("found", "accelerator"), [("kvm", "kvm"), ("hvf", "tcg"), ("tcg", "tcg")])
def test_how_an_appliance_runs_on_this_host(found: str, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applianceoptions, "probe", lambda arch: SimpleNamespace(name=found))
    monkeypatch.setenv("IMGKIT_CACHE", "/cache")
    options = applianceoptions.appliance_options()
    assert (options.accelerator, options.cache) == (accelerator, Path("/cache/appliance"))
    assert (options.launch_timeout, options.memory, options.cpus) == (120.0, 1024, 1)
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", "7.5")
    assert applianceoptions.appliance_options().launch_timeout == 7.5


@pytest.mark.parametrize("given", ["0", "-1", "inf", "nan", "soon"])
def test_launch_timeouts_that_are_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", given)
    with pytest.raises(UsageError, match=rf"^IMGKIT_LAUNCH_TIMEOUT={given}: not a number of seconds$"):
        applianceoptions._launch_timeout()
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", "")
    assert applianceoptions._launch_timeout() == 120.0


def test_pairs_may_have_further_signs_of_equality() -> None:
    assert repeatedoptions.pairs(["A=b=c", "B="], "--env", "K=V") == {"A": "b=c", "B": ""}
    for word in ("A", "=b", ""):
        with pytest.raises(UsageError) as caught:
            repeatedoptions.pairs([word], "--env", "K=V")
        assert caught.value.message == f"--env {word}: not of the form K=V"


def test_a_share_is_named_once_and_exists(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert machineoptions._folders([f"a={folder}:ro", f"b={folder}:rw", f"c={folder}"], {"w": tmp_path}) == (
        {"w": tmp_path, "a": tmp_path, "b": tmp_path, "c": tmp_path},
        {"a"},
    )
    (tmp_path / "x:ro").mkdir()
    assert machineoptions._folders([f"a={folder}/x:ro:rw"], {}) == ({"a": tmp_path / "x:ro"}, set())
    for words, message in (
        ([f"a={folder}", f"a={folder}"], f"--share a={folder}: there is a share a already"),
        ([f"w={folder}"], f"--share w={folder}: there is a share w already"),
        ([f"a={folder}/none"], f"{folder}/none: no such folder"),
        (["a="], "--share a=: no folder given"),
        (["a"], "--share a: not of the form TAG=DIR[:ro]"),
    ):
        with pytest.raises(UsageError) as caught:
            machineoptions._folders(words, {"w": tmp_path})
        assert caught.value.message == message


def test_secrets_are_read_from_their_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"value\n")
    assert environmentoptions.secrets([f"A={path}"]) == {"A": b"value\n"}
    with pytest.raises(UsageError) as caught:
        environmentoptions.secrets([f"A={path}x"])
    assert caught.value.message == f"--secret A: {path}x: No such file or directory"


def test_words_of_a_guest_command_come_after_the_dashes() -> None:
    options = parse(["run", "x", "a", "--", "ls", "-l", "--", "b"])
    assert options.guest_command == ["a", "ls", "-l", "--", "b"]
    assert parse(["run", "x", "a"]).guest_command == ["a"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_keeps_the_lines_of_a_description(name: str) -> None:
    description = (command(name).__doc__ or "").strip()
    assert description
    assert f"\n\n{description}\n\n" in parsers()[1][name].format_help()


def test_the_options_that_all_commands_have(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("imgkit")
    before = logger.level, logger.handlers
    try:
        for words, level in (([], logging.INFO), (["-v"], logging.DEBUG), (["-q"], logging.ERROR)):
            main._configure_logging(parse(["doctor", *words]))
            assert logger.level == level
            assert len(logger.handlers) == 1
    finally:
        logger.level, logger.handlers = before


def test_an_invocation_has_no_results_at_first() -> None:
    first, second = Invocation(), Invocation()
    first.done.append({})
    assert (second.done, second.words) == ([], ())


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_the_table_of_the_doctor() -> None:
    checks = [
        HostCheck("python", True, "3.11", "build", "not shown"),
        HostCheck("a longer name", False, "not there", "boot", "apt-get"),
        HostCheck("b", False, "none", "boot by UEFI", "apt", required=False),
    ]
    assert table(checks).splitlines() == [
        "ok       python         3.11",
        "MISSING  a longer name  not there",
        "                        needed to boot; fix: apt-get",
        "missing  b              none",
        "                        needed to boot by UEFI; fix: apt",
    ]


@pytest.mark.parametrize(
    ("required", "ok", "status"), [(True, True, 0), (True, False, 5), (False, False, 0), (False, True, 0)]
)
def test_the_status_of_the_doctor(
    required: bool, ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def examine(out: Path) -> list[HostCheck]:
        asked.append(out)
        return [HostCheck("x", ok, "detail", "do", "fix", required=required)]

    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", examine)
    assert main.main(["doctor", "--json"]) == status
    assert json.loads(capsys.readouterr().out) == [
        {"name": "x", "ok": ok, "detail": "detail", "purpose": "do", "fix": "fix", "required": required, "advice": ""}
    ]
    main.main(["doctor", "--out", "elsewhere"])
    assert asked == [Path("out"), Path("elsewhere")]


def test_the_bindings_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Interpreter(sys.executable, "3.13"), Interpreter("/usr/bin/python3", "3.11", isolated=True)]
    monkeypatch.setattr(bindings, "choose", lambda environment: chosen.pop(0))
    check = hostchecks._bindings()
    assert (check.name, check.ok, check.detail, check.purpose) == ("libguestfs bindings", True, "importable", "build")
    assert hostchecks._bindings().detail == "importable by /usr/bin/python3 (Python 3.11)"

    def fails(environment: Mapping[str, str]) -> Interpreter:
        raise EngineStartError("nobody can import them", hint="apt-get")

    monkeypatch.setattr(bindings, "choose", fails)
    check = hostchecks._bindings()
    assert (check.name, check.ok, check.detail) == ("libguestfs bindings", False, "nobody can import them")
    assert (check.fix, check.purpose, check.required) == ("apt-get", "build", True)


def test_the_programs_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name.startswith("qemu-system") else f"/bin/{name}")
    monkeypatch.setattr(hostchecks, "_version", lambda name: f"version of {name}")
    found = [
        (check.name, check.ok, check.detail, check.purpose, check.fix, check.required)
        for check in hostchecks._programs()
    ]
    assert found == [
        ("supermin", True, "version of supermin", "build", "apt-get install supermin", True),
        ("qemu-img", True, "version of qemu-img", "build", "apt-get install qemu-utils", True),
        ("grub-mkimage", True, "version of grub-mkimage", "build", "apt-get install grub-common", True),
        ("qemu-system-x86_64", False, "not on PATH", "boot amd64", "apt-get install qemu-system-x86", True),
        ("qemu-system-aarch64", False, "not on PATH", "boot arm64", "apt-get install qemu-system-arm", False),
    ]


def test_the_version_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(argv: list[str], *, timeout: float) -> bytes:
        asked.append((argv, timeout))
        if argv[0] == "missing":
            raise MissingProgramError("missing")
        return b"x" * 61 + b"\xff\nsecond line\n"

    monkeypatch.setattr(hostchecks, "run", run)
    assert hostchecks._version("tool") == "x" * 60
    assert asked == [(["tool", "--version"], 10)]
    assert hostchecks._version("missing") == "missing: program not found"


def test_the_kernel_of_an_appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable: set[str] = set()
    kernels: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) in readable)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / name for name in kernels])

    def check() -> tuple[bool, str, str]:
        found = hostchecks._kernel()
        assert (found.name, found.purpose, found.required) == ("kernel", "build", True)
        return found.ok, found.detail, found.fix

    none = "apt-get install linux-image-amd64 (Ubuntu: linux-image-generic, arm64: linux-image-arm64)"
    assert check() == (False, "none in /boot", none)
    kernels += [Path("vmlinuz-6.2"), Path("vmlinuz-6.1")]
    newest = "/boot/vmlinuz-6.2"
    assert check() == (False, f"{newest} may not be read by this user", f"sudo chmod 0644 {newest}")
    readable |= {"/boot/vmlinuz-6.1"}
    assert check() == (True, "/boot/vmlinuz-6.1", "")
    readable |= {newest}
    assert check() == (True, newest, "")
    named = tmp_path / "kernel"
    monkeypatch.setenv("SUPERMIN_KERNEL", str(named))
    assert check() == (False, f"{named} (SUPERMIN_KERNEL) does not exist", "correct it")
    named.touch()
    assert check() == (False, f"{named} may not be read by this user", f"sudo chmod 0644 {named}")
    readable.add(str(named))
    assert check() == (True, str(named), "")


@pytest.mark.parametrize(
    ("free", "writable", "ok", "detail"),
    [
        (2 * GIB, True, True, "2.0 GiB free in {}"),
        (2 * GIB - 1, True, False, "2.0 GiB free in {}"),
        (5 * GIB // 2, False, False, "2.5 GiB free in {}, which is not writable"),
    ],
)
def test_the_space_for_a_build(
    free: int, writable: bool, ok: bool, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the nearest folder that exists."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    assert hostchecks._space(tmp_path / "a" / "b") == HostCheck(
        "space", ok, detail.format(tmp_path), "build", "choose another folder with --out"
    )
    assert str(tmp_path) in hostchecks._space(tmp_path).detail


def test_the_firmware_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(arch: str) -> SimpleNamespace:
        if arch == "arm64":
            raise HostError("no firmware", hint="apt-get")
        return SimpleNamespace(code=Path("/code"))

    monkeypatch.setattr(firmware, "find", find)
    assert list(hostchecks._firmware()) == [
        HostCheck("UEFI amd64", True, "/code", "boot amd64 by UEFI"),
        HostCheck("UEFI arm64", False, "no firmware", "boot arm64 by UEFI", "apt-get", required=False),
    ]


def test_the_accelerators_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def allowed(found: str, arch: str, wanted: str, user: str) -> SimpleNamespace:
        asked.append((found, arch, wanted, user))
        if arch == "arm64":
            raise HostError("none")
        return SimpleNamespace(name="kvm", reason="it works")

    monkeypatch.setattr(identity, "choose_user", lambda user, *, device: f"user of {device}")
    monkeypatch.setattr(probe, "probe", lambda arch: f"probe of {arch}")
    monkeypatch.setattr(probe, "allowed", allowed)
    assert list(hostchecks._accelerators()) == [
        HostCheck("accelerator amd64", True, "kvm: it works", "boot amd64"),
        HostCheck("accelerator arm64", False, "none", "boot arm64", "", required=False),
    ]
    assert asked[0] == ("probe of amd64", "amd64", "auto", f"user of {probe.KVM}")


@pytest.mark.parametrize(
    ("landlock", "filters", "obstacle", "root", "user", "ok", "detail"),
    [
        (5, True, None, False, None, True, "files: Landlock 5; set-user-id, devices: refused"),
        (0, True, None, False, None, False,
         "files: all that its user may open; set-user-id, devices: refused"),
        (5, False, "why", False, None, False, "files: Landlock 5; set-user-id, devices: removed afterwards"),
        (5, True, "it is old", True, "nobody", True,
         "files: Landlock 5; set-user-id, devices: refused; set-group-id for folders: refused, as it is old;"
         " as nobody, or a folder's owner"),
        (5, True, None, True, None, True,
         "files: Landlock 5; set-user-id, devices: refused; as this root, which may not switch users"),
    ],
)  # fmt: skip
def test_what_confines_a_guest(
    landlock: int,
    filters: bool,
    obstacle: str | None,
    root: bool,
    user: str | None,
    ok: bool,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(confinement, "landlock_version", lambda: landlock)
    monkeypatch.setattr(confinement, "filters_system_calls", lambda: filters)
    monkeypatch.setattr(supervisor, "obstacle", lambda: obstacle)
    monkeypatch.setattr(identity, "is_root", lambda: root)
    monkeypatch.setattr(identity, "choose_user", lambda wanted: user)
    check = hostchecks._confinement()
    assert (check.name, check.ok, check.detail) == ("sandbox of QEMU", ok, detail)
    assert (check.purpose, check.required) == ("boot safely", False)
    assert check.fix.startswith("a kernel of version 5.19 or newer with Landlock and seccomp")


def test_what_isolates_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(problem: str | None) -> HostCheck:
        monkeypatch.setattr(npmrunner, "sandbox_problem", lambda: problem)
        return hostchecks._sandbox()

    missing = npmrunner.MISSING
    purpose = "keep npm from the host's files"
    assert check(None).ok
    assert check(None).detail == "npm runs inside it"
    assert check(missing) == HostCheck(
        "bubblewrap", False, f"{missing}; npm runs with your rights", purpose, "apt-get install bubblewrap",
        required=False,
    )  # fmt: skip
    assert check("refused").fix == (
        "allow user namespaces (sysctl user.max_user_namespaces; Ubuntu: an AppArmor profile)"
    )


# ---- the end of a command --------------------------------------------------------------------------------------------


class _FullOutput(io.StringIO):
    """Standard output on a disk that is full, which shows when it is written out."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device"), 5, "error: output: no space left\n"),
        (OSError(122, "Disk quota exceeded", "x"), 5, "error: x: no space left\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_output_that_cannot_be_written_in_the_end(
    error: OSError, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", lambda out: [HostCheck("x", True, "y", "z")])
    monkeypatch.setattr(sys, "stdout", _FullOutput(error))
    assert main.main(["doctor"]) == status
    assert capsys.readouterr().err == said


def test_the_folder_of_a_console_must_exist(
    raw_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machineoptions, "image_info", lambda image: None)
    console = tmp_path / "none" / "log"
    assert main.main(["boot", str(raw_image), "--console", str(console)]) == 2
    assert capsys.readouterr().err == f"error: --console {console}: {console.parent} is not a folder\n"
    for timeout in ("0", "-1", "inf", "nan"):
        assert main.main(["boot", str(raw_image), "--timeout", timeout]) == 2
        assert capsys.readouterr().err == f"error: --timeout {timeout}: not a number of seconds to wait\n"


@pytest.mark.parametrize("missing", ["kernel", "initramfs", "both"])
def test_a_direct_boot_needs_both_files(missing: str, tmp_path: Path) -> None:
    image = tmp_path / "linux-amd64.qcow2"
    names = {"kernel": "vmlinuz", "initramfs": "initramfs"}
    for role, name in names.items():
        if missing not in (role, "both"):
            (tmp_path / f"{name}-virt-amd64").touch()
    with pytest.raises(InputError) as caught:
        machineoptions._beside(image, "amd64")
    first = names["initramfs" if missing == "initramfs" else "kernel"]
    assert caught.value.message == f"{tmp_path}/{first}-*-amd64: not there"
    assert caught.value.hint == "a build puts it beside the image"
