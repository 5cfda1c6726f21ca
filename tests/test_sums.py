"""Sums of builds on several hosts are compared, and the workflow that makes them asks for what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from imgkit.cli.parser import parsers
from script import sums
from tests.pythons import VERSIONS

WORKFLOW = Path(__file__).parents[1] / ".github/workflows/reproducible.yml"
EQUAL = "a1  linux-amd64.json\nb2  linux-amd64.qcow2\n"
OTHER = "a1  linux-amd64.json\nb3  linux-amd64.qcow2\n"


def write(folder: Path, *texts: str | None) -> Path:
    """Write the sums of hosts; None stands for a host that has none."""
    for number, text in enumerate(texts):
        (folder / f"host-{number}").mkdir()
        (folder / f"host-{number}/linux-amd64.json").write_text("{}")
        if text is not None:
            (folder / f"host-{number}/sums.txt").write_text(text)
    return folder


def test_equal_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sums.main([str(write(tmp_path, EQUAL, EQUAL, EQUAL)), "3"]) == 0
    assert capsys.readouterr().out == "3 hosts have built the same bytes\n"


def test_a_difference_is_shown_against_what_most_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sums.main([str(write(tmp_path, OTHER, EQUAL, EQUAL)), "3"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "--- host-1",
        "+++ host-0",
        "@@ -2 +2 @@",
        "-b2  linux-amd64.qcow2",
        "+b3  linux-amd64.qcow2",
    ]


def test_a_file_that_one_host_did_not_write(tmp_path: Path) -> None:
    found = list(sums.faults(write(tmp_path, EQUAL, EQUAL, EQUAL.partition("\n")[0] + "\n"), 3))
    assert found[-1] == "-b2  linux-amd64.qcow2"


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ((EQUAL, None, EQUAL), "2 hosts have sums, and there should be 3: host-0, host-2"),
        ((EQUAL, EQUAL), "2 hosts have sums, and there should be 3: host-0, host-1"),
        ((EQUAL, EQUAL, EQUAL, EQUAL), "4 hosts have sums, and there should be 3: host-0, host-1, host-2, host-3"),
        ((), "0 hosts have sums, and there should be 3: none"),
    ],
)
def test_missing_sums(texts: tuple[str | None, ...], fault: str, tmp_path: Path) -> None:
    assert list(sums.faults(write(tmp_path, *texts), 3)) == [fault]


def test_nothing_is_never_a_success(tmp_path: Path) -> None:
    assert list(sums.faults(tmp_path, 0)) == ["0 hosts have sums, and there should be 0: none"]
    assert list(sums.faults(write(tmp_path, "", "\n"), 2))[:2] == [
        "host-0: its sums are empty",
        "host-1: its sums are empty",
    ]


def test_the_program_needs_the_standard_library_only(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-m", "script.sums", str(write(tmp_path, EQUAL)), "1"]
    done = subprocess.run(argv, cwd=WORKFLOW.parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 hosts have built the same bytes\n"), done.stderr


def jobs() -> Any:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


def test_every_python_builds_and_every_system() -> None:
    hosts = jobs()["build"]["strategy"]["matrix"]["include"]
    assert {host["python"] for host in hosts} == {f"3.{minor}" for minor in VERSIONS}
    assert {host["os"].partition("-")[0] for host in hosts} == {"ubuntu", "macos"}
    names = {f"{host['os']}-{host['python']}" for host in hosts}
    assert len(names) == len(hosts)
    [command] = (step["run"] for step in jobs()["compare"]["steps"] if "run" in step)
    assert command == f"python3 -m script.sums built {len(hosts)}"


def test_the_commands_of_the_workflow_are_those_of_imgkit() -> None:
    lines = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    commands = [line.split()[1:] for line in lines if line.startswith("imgkit ")]
    assert [words[0] for words in commands] == ["lock", "build"]
    parser, _ = parsers()
    lock, build = (parser.parse_args(words) for words in commands)
    assert (lock.recipe, lock.arch) == (build.recipe, None)
    assert (build.engine, build.locked, build.arch) == ("native", True, ["all"])
    assert not any(word in line for line in lines for word in ("apt-get", "brew", "sudo"))


def test_the_libraries_that_compress_are_pinned() -> None:
    [line] = (line for step in jobs()["build"]["steps"] for line in step.get("run", "").splitlines() if "grep" in line)
    match = re.search(r"grep -oE '(.*)' (\S+) >constraints.txt", line)
    assert match is not None
    lock = (WORKFLOW.parents[2] / match[2]).read_text()
    found = [found[0] for found in re.finditer(match[1], lock, re.MULTILINE)]
    assert [name.partition("==")[0] for name in found] == ["zlib-ng", "zstandard"]
