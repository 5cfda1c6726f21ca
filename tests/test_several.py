"""Builds side by side: with a stand-in for the program that builds one architecture."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from imgkit.cli import several
from imgkit.cli.reports.buildreport import BuildReport, StepReport
from imgkit.errors import HostError, InputError, RecipeError

# $0 is sys.executable; the last word is the architecture, whose script says what becomes of it.
PROGRAM = """#!/bin/sh
for arch; do :; done
cd "$(dirname "$0")" && echo "$*" >words-$arch && . ./$arch
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def good(arch: str, before: str = "") -> str:
    told = json.dumps([report(arch).to_json()])
    return f"{before}\necho 'plan …' >&2\necho 'total  1.0 s' >&2\necho '{told}'\n"


def report(arch: str) -> BuildReport:
    """Return what a build of ``arch`` reports."""
    steps = (StepReport("plan", 0.0, 1.0), StepReport("write", 1.0, 0.5))
    return BuildReport(
        arch=arch,
        image=f"out/linux-{arch}.qcow2",
        kernel=f"out/vmlinuz-{arch}",
        initramfs=f"out/initramfs-{arch}",
        manifest=f"out/linux-{arch}.manifest.json",
        buildId="id",
        size=3,
        allocated=4096,
        seconds=1.5,
        peakMemory=4096,
        steps=steps,
    )


@pytest.mark.slow
def test_the_results_come_with_messages_that_say_whose_they_are(
    scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arch in ("amd64", "arm64"):
        (scripts / arch).write_text(good(arch, before="sleep 2" if arch == "amd64" else ""))
    words = ["build", "recipe.py", "--arch", "all", "--out", "x"]
    assert list(several.build_all(words, ["amd64", "arm64"], 2)) == [report("arm64"), report("amd64")]
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [f"{arch}: {text}" for arch in ("amd64", "arm64") for text in ("plan …", "total  1.0 s")]
    assert (
        scripts / "words-arm64"
    ).read_text() == "-m imgkit build recipe.py --out x --json --output disk --arch arm64\n"


@pytest.mark.slow
def test_no_more_run_at_once_than_asked_for(scripts: Path) -> None:
    for arch in ("a", "b", "c"):
        (scripts / arch).write_text(good(arch, before="mkdir alone || exit 9\nsleep 0.1\nrmdir alone"))
    assert [built.arch for built in several.build_all(["build"], ["a", "b", "c"], 1)] == ["a", "b", "c"]
    for arch in ("a", "b", "c"):
        (scripts / arch).write_text(good(arch, before="mkdir alone || exit 9\nsleep 20\nrmdir alone"))
    with pytest.raises(HostError, match=r"its build failed with status 9"):
        list(several.build_all(["build"], ["a", "b", "c"], 3))


def failing(status: int, problems: str = "[]") -> str:
    error = f'{{"status": {status}, "message": "it is bad", "hint": "mend it", "problems": {problems}}}'
    return f"""echo 'plan …' >&2; echo 'error: it is bad' >&2; echo 'hint: mend it' >&2
echo '{{"error": {error}, "done": []}}'; exit {status}
"""


def test_the_first_failure_ends_the_others(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scripts / "bad").write_text("until [ -e started ]; do sleep 0.05; done\n" + failing(4))
    (scripts / "good").write_text("trap 'echo >cleaned; exit 130' TERM; echo >started; while :; do sleep 0.05; done")
    with pytest.raises(InputError, match=r"^bad: it is bad$") as caught:
        list(several.build_all(["build"], ["good", "bad"], 2))
    assert caught.value.hint == "mend it"
    assert (scripts / "cleaned").exists(), "it was asked, not killed"
    assert capsys.readouterr().err == "bad: plan …\n", "what went wrong is told once, by whoever catches the error"


def test_every_fault_of_a_recipe_is_kept(scripts: Path) -> None:
    (scripts / "bad").write_text(failing(3, '["one", "two"]'))
    with pytest.raises(RecipeError) as caught:
        list(several.build_all(["build"], ["bad"], 1))
    assert caught.value.problems == ("one", "two")
    assert caught.value.message == "bad: it is bad: one; two"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("kill -9 $$", HostError, "bad: its build was killed by SIGKILL"),
        ("exit 130", KeyboardInterrupt, "^$"),
        (failing(70), RuntimeError, "^bad: it is bad$"),
        ("echo '[]'", HostError, "^bad: its build ended without a report$"),
        ("echo '{}'; exit 4", HostError, "^bad: its build failed with status 4$"),
    ],
)
def test_other_endings(scripts: Path, script: str, kind: type[BaseException], message: str) -> None:
    (scripts / "bad").write_text(script)
    with pytest.raises(kind, match=message):
        list(several.build_all(["build"], ["bad"], 1))


@pytest.mark.slow
def test_whoever_stops_listening_leaves_nothing_behind(scripts: Path) -> None:
    (scripts / "slow").write_text("echo $$ >pid; sleep 60")
    (scripts / "quick").write_text(good("quick", before="until [ -s pid ]; do sleep 0.05; done"))
    builds = several.build_all(["build"], ["slow", "quick"], 2)
    assert next(iter(builds)) == report("quick")
    del builds
    pid = int((scripts / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["build", "r", "--arch=all"], ["build", "r", "--json", "--output", "disk", "--arch", "x"]),
        (
            ["build", "--arch", "a", "r", "--arch", "b", "--json"],
            ["build", "r", "--json", "--output", "disk", "--arch", "x"],
        ),
        (
            ["build", "--output", "all", "r", "--output=oci"],
            ["build", "r", "--json", "--output", "disk", "--arch", "x"],
        ),
        (["build", "r", "-v"], ["build", "r", "-v", "--json", "--output", "disk", "--arch", "x"]),
    ],
)
def test_the_command_line_of_one(words: list[str], expected: list[str]) -> None:
    assert several.words_for(words, "x") == expected


def test_the_command_line_of_a_root_filesystem() -> None:
    """The format is that of the disk, which another build makes."""
    words = ["build", "r", "--output", "rootfs", "--format", "raw", "--output=disk"]
    assert several.words_for(words, "x", "rootfs") == ["build", "r", "--json", "--output", "rootfs", "--arch", "x"]


def test_as_many_as_cores() -> None:
    assert several.at_once() >= 1
