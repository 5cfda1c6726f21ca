"""The commands that the README, the pages of docs/ and the workflow to copy show are commands that imgkit has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from imgkit.cli.parser import parse
from imgkit.errors import UsageError
from tests.commandline import ROOT

WORKFLOW = ROOT / "docs/howto/ci/github-container-image.yml"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINE = re.compile(r"^(?: {4}|\t|\$ |    \$ )(imgkit [^\n]*)$", re.MULTILINE)


def commands(text: str) -> list[str]:
    """Return the command lines in the blocks of code of a page, without comments and what follows a pipe."""
    lines = re.sub(r"\s*\\\n\s*", " ", text)
    return [re.split(r"\s+#|\s+[|&><]|;$", line)[0].strip() for line in _LINE.findall(lines)]


def steps() -> list[str]:
    """Return the scripts of the workflow's steps."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (job,) = workflow["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def check(command: str) -> None:
    """Parse a command line as the program does."""
    words = shlex.split(command)
    assert words[0] == "imgkit"
    parse(words[1:])


OUTLINES = ("…", "...")  # what shows the form of a command, not a command
PAGE_COMMANDS = [
    (page.name, command)
    for page in PAGES
    for command in commands(page.read_text())
    if not any(outline in command for outline in OUTLINES)
]


@pytest.mark.parametrize(("page", "command"), PAGE_COMMANDS, ids=lambda value: value[:60])
def test_a_command_of_a_page(page: str, command: str) -> None:
    check(command)


def test_there_are_many() -> None:
    assert len(PAGE_COMMANDS) > 25
    assert {page for page, _ in PAGE_COMMANDS} >= {"README.md", "container-images.md"}


def test_the_workflow() -> None:
    lines = [line.strip() for script in steps() for line in script.splitlines() if line.strip().startswith("imgkit ")]
    assert [line.split()[1] for line in lines] == ["build", "run", "run", "boot", "push"]
    for line in lines:
        check(line)
    text = WORKFLOW.read_text()
    assert "sudo" not in text
    assert "privileged" not in text.replace("unprivileged", "")


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(UsageError):
        check("imgkit push --tags")
    assert commands("x\n    imgkit build a # b\n    imgkit run \\\n        c | d\nimgkit none\n") == [
        "imgkit build a",
        "imgkit run c",
    ]


def test_recipes_in_the_workflow_exist() -> None:
    recipe = re.search(r"RECIPE: (\S+)", WORKFLOW.read_text())
    assert recipe
    assert Path(ROOT, recipe[1]).is_file()
