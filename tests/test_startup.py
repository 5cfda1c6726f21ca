"""What the program imports before it knows what is asked for. benchmarks/startup.py measures the time that it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from imgkit.cli.commandlist import COMMANDS, command
from tests.commandline import ROOT

HEAVY = {"asyncio", "cryptography", "pycdlib", "pydantic", "pysequoia", "requests", "resolvelib", "tqdm", "urllib3"} | {
    "filelock",
    "platformdirs",
    "yaml",
    "zlib_ng",
    "zstandard",
}
"""Libraries that are imported when something needs them."""

# Runs imgkit and prints the modules that this imported as the last line of standard error.
LISTED = """
import atexit, json, runpy, sys
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr))
runpy.run_module("imgkit", run_name="__main__", alter_sys=True)
"""


def imported(program: str, *words: str) -> set[str]:
    """Return the modules that a program imports, which prints them as the last line of its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    """Return the names of the packages that the modules are from."""
    return {name.partition(".")[0] for name in modules}


def commands(modules: set[str]) -> set[str]:
    """Return the commands among the modules."""
    return {name.rpartition(".")[2] for name in modules if name.startswith("imgkit.cli.commands.")}


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["buidl"], ["doctr", "--json"]])
def test_no_command_is_imported_before_one_is_asked_for(words: list[str]) -> None:
    modules = imported(LISTED, *words)
    assert "imgkit.cli.parser" in modules
    assert commands(modules) == set()
    assert packages(modules) & HEAVY == set()


@pytest.mark.slow
def test_the_help_of_a_command_imports_that_command() -> None:
    modules = imported(LISTED, "build", "--help")
    assert commands(modules) == {"build"}
    assert packages(modules) >= {"pydantic", "requests"}  # so that the names in HEAVY are those that a test finds


@pytest.mark.parametrize("module", ["imgkit", "imgkit.cli", "imgkit.errors", "imgkit.cli.main"])
def test_the_package_itself_imports_nothing_heavy(module: str) -> None:
    program = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    modules = imported(program)
    assert module in modules
    assert packages(modules) & HEAVY == set()


def test_the_list_of_commands_says_what_their_modules_say() -> None:
    modules = [command(name) for name in COMMANDS]
    assert {module.NAME: module.HELP for module in modules} == COMMANDS
    files = {path.stem for path in (ROOT / "imgkit/cli/commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)
