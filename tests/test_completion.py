"""``imgkit completion``: real shells read the scripts, and complete commands, options, choices and paths with them."""

from __future__ import annotations

import argparse
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from imgkit.cli.commands import completion
from imgkit.cli.main import main
from imgkit.cli.parser import parsers
from tests.conftest import need_program

CASES = [
    ("imgkit insp", "inspect"),
    ("imgkit build --offl", "--offline"),
    ("imgkit boot --firmware ue", "uefi"),
    ("imgkit cache pr", "prune"),
    ("imgkit boot ima", "image.qcow2"),
    ("imgkit build --out fol", "folder"),
    ("imgkit build --release-key ima", "image.qcow2"),
]
"""What somebody types, and what becomes of its last word."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a program called imgkit on PATH, an image and a folder."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "imgkit"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "image.qcow2").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


def script(shell: str, path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path.write_text(capsys.readouterr().out)
    return path


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


BASH = """
source "$1"
read -ra COMP_WORDS <<<"$2"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMP_LINE=$2 COMP_POINT=${#2}
spec=$(complete -p imgkit)
function=${spec##*-F }
"${function%% *}" imgkit "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_bash(typed: str, completed: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [need_program("bash"), "-c", BASH, "bash", str(script("bash", place / "c.bash", capsys)), typed]
    done = subprocess.run(argv, env=environment(place), cwd=place, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.split()) == ("", [completed])


@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_fish(typed: str, completed: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"source {script('fish', place / 'c.fish', capsys)}; complete -C '{typed}'"
    argv = [need_program("fish"), "--no-config", "-c", words]
    done = subprocess.run(argv, env=environment(place), cwd=place, capture_output=True, text=True, check=False)
    offered = [line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()]
    assert (done.stderr, offered) == ("", [completed])


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_zsh(typed: str, completed: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It completes in its line editor only, so it gets a terminal, on which a tab is typed."""
    zsh = need_program("zsh")
    (place / "functions").mkdir()
    script("zsh", place / "functions" / "_imgkit", capsys)
    (place / ".zshrc").write_text("fpath=(~/functions $fpath); autoload -Uz compinit; compinit -u -D; PS1='ready>'\n")
    shown = on_terminal([zsh, "-o", "nobeep", "-i"], place, typed)
    assert f"{typed.rpartition(' ')[0]} {completed}" in shown


def on_terminal(argv: list[str], place: Path, typed: str) -> str:
    """Run a shell on a terminal, type the words and a tab when it is ready, and return what it shows."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(place), cwd=place, start_new_session=True
    )
    os.close(theirs)
    try:
        read_until(ours, "ready>")
        os.write(ours, f"{typed}\t".encode())
        os.write(ours, b" DONE")
        return read_until(ours, "DONE")
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def read_until(descriptor: int, words: str, seconds: float = 60) -> str:
    deadline, text = time.monotonic() + seconds, ""
    while words not in text:
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, text
        text += os.read(descriptor, 4096).decode(errors="replace")
    return text


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_is_in_the_script(shell: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, place / "c", capsys).read_text()
    _, commands = parsers()
    for name in commands:
        assert name in text
    assert str(place) not in text


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_every_value_that_is_a_path_is_completed_as_one() -> None:
    _, commands = parsers()
    completion.mark_paths(commands, {"a": "file"}, {"a": "folder"})
    marked = {
        (name, action.metavar): action.complete["a"]
        for name, command in commands.items()
        for action in command._actions
        if hasattr(action, "complete")
    }
    assert marked["build", "RECIPE"] == marked["boot", "IMAGE"] == marked["run", "FILE"] == "file"
    assert marked["build", "DIR"] == marked["run", "DIR"] == "folder"
    assert ("build", "URL") not in marked
    paths = [
        (name, action.metavar)
        for name, command in commands.items()
        for action in command._actions
        if action.type is Path and not isinstance(action, argparse._HelpAction)
    ]
    assert set(paths) <= set(marked)
