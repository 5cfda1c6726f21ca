"""What build and lock ask for and print, with stand-ins for the work that they would do."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.api import building
from imgkit.cli import main, several
from imgkit.cli.commands import build as build_command
from imgkit.cli.commands import lock
from imgkit.cli.reports import buildreport
from imgkit.cli.reports.buildreport import BuildReport, StepReport, parse_report, report_of
from imgkit.errors import GuestError, HostError, InputError, RecipeError, UsageError
from imgkit.host import statusline
from imgkit.host.progress import Step, Steps
from imgkit.image import assemble
from imgkit.image.assemble import BuildRequest, BuildResult
from imgkit.planning import lockfile
from imgkit.recipe import Recipe
from tests.commandline import ROOT
from tests.commandvariables import no_variables  # noqa: F401 - an autouse fixture

CORE = str(ROOT / "recipes" / "core.py")


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
            out / "i",
            out / "k",
            out / "r",
            out / "m",
            build_id=f"id-{request.arch}",
            size=5_400_000,
            allocated=5_402_624,
            steps=steps,
        )

    monkeypatch.setattr(assemble, "build", build)
    monkeypatch.setattr(building, "engine_for", lambda choice: f"engine {choice}")
    monkeypatch.setattr(build_command, "engine_for", lambda choice: choice)
    monkeypatch.setattr(several, "at_once", lambda: 1)
    monkeypatch.setattr(build_command, "host_arch", lambda: "arm64")
    monkeypatch.setattr("time.monotonic", lambda: 12.3456)
    monkeypatch.setenv("IMGKIT_CACHE", "/cache")
    return requests


def test_what_a_build_asks_for_by_default(requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["build", CORE]) == 0
    (request,) = requests
    assert (request.arch, request.out, request.work, request.locked) == ("arm64", Path("out"), None, None)
    assert (request.allow_stale, request.epoch, cast(object, request.engine)) == (False, None, "engine None")
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
        "allocated": 5_402_624,
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

    def build_all(words: object, arches: list[str], jobs: int, output: str) -> Iterator[BuildReport]:
        calls.append((words, arches, jobs))
        for arch in reversed(arches):
            yield BuildReport(arch, f"/{arch}", "k", "i", "m", "b", 1, 1, 2.0, 3)

    monkeypatch.setattr(several, "at_once", lambda: at_once)
    monkeypatch.setattr(several, "build_all", build_all)
    given = ["build", CORE, *words]
    assert main.main(given) == 0
    assert calls == ([] if jobs is None else [(given, ["amd64", "arm64"], jobs)])
    if jobs:
        assert capsys.readouterr().out == "/arm64\n/amd64\n"
        main.main([*given, "--json"])
        assert [report["arch"] for report in json.loads(capsys.readouterr().out)] == ["amd64", "arm64"]


def test_a_root_filesystem_is_built_besides_the_disk(requests: list[BuildRequest]) -> None:
    assert main.main(["build", CORE, "--output", "rootfs", "--output", "disk", "--format", "vmdk"]) == 0
    assert [(request.output, request.format) for request in requests] == [("disk", "vmdk"), ("rootfs", "raw")]


def test_a_format_of_nothing(requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["build", CORE, "--output", "rootfs", "--format", "vmdk"]) == 2
    assert "--format vmdk: is the format of a disk, and none is built" in capsys.readouterr().err
    assert not requests


def test_the_engine_the_format_and_the_compression(requests: list[BuildRequest]) -> None:
    words = ["--engine", "auto", "--format", "vhdx", "--compression", "zlib"]
    assert main.main(["build", CORE, *words]) == 0
    (request,) = requests
    assert cast(object, request.engine) == "engine auto"
    assert (request.recipe.format, request.recipe.compression) == ("vhdx", "zlib")


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_the_compression_is_no_format_any_more(compression: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["build", CORE, "--format", compression]) == 2
    assert capsys.readouterr().err.splitlines()[1] == f"hint: --compression {compression}"


def test_an_image_with_holes_has_two_sizes() -> None:
    report = replace(REPORT, size=4_294_967_296, allocated=231_000_000)
    assert build_command._sizes(report) == "4295 MB (231 MB of them on the disk)"
    assert build_command._sizes(replace(report, allocated=report.size * 9 // 10)) == "4295 MB"


# ---- reports ---------------------------------------------------------------------------------------------------------

REPORT = BuildReport("amd64", "i", "k", "r", "m", "b", 1, 4096, 2.5, 3, (StepReport("plan", 0.5, 1.5),))


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
    result = BuildResult(Path("i"), Path("k"), Path("r"), Path("m"), "b", 5, 4096, steps)
    assert report_of("amd64", result) == BuildReport(
        "amd64", "i", "k", "r", "m", "b", 5, 4096, 100.13, 7, (StepReport("a", 0.123, 0.988),)
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
