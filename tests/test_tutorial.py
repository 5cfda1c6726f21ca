"""What docs/tutorial.md shows of a new project is in its files. tests/test_wheel.py takes its steps for real."""

from __future__ import annotations

import re
from collections.abc import Sequence

from imgkit.cli import newproject
from tests.commandline import ROOT

TEXT = (ROOT / "docs/tutorial.md").read_text()
FILES = newproject.project("demo", "core", "")


def blocks(text: str) -> list[list[str]]:
    """Return the blocks of code of a page, each as its lines without those that are empty."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [[line[4:] for line in block.splitlines() if line.strip()] for block in found if block.strip()]


def shows(file: str, lines: Sequence[str]) -> bool:
    """Return whether a file has these lines, in this order."""
    rest = iter(FILES[file].splitlines())
    return all(line in rest for line in lines)


def test_the_files_that_it_shows() -> None:
    recipe = next(lines for lines in blocks(TEXT) if lines[0].startswith("extends"))
    assert shows(newproject.RECIPE, recipe)
    test = next(lines for lines in blocks(TEXT) if lines[0].startswith("def test_image"))
    assert shows(newproject.TEST, test)
    assert not shows(newproject.TEST, [*test, "else"])
    assert all(f"`{name}`" in TEXT for name in FILES)


def test_its_commands_are_those_that_init_names() -> None:
    commands = [line for lines in blocks(TEXT) for line in lines if re.match(r"(imgkit|pytest|cd) ", line)]
    assert commands == [
        "imgkit doctor",
        "imgkit init demo --base core",
        "cd demo",
        "imgkit build image.py",
        "imgkit run out/demo-amd64.qcow2 -- cat /etc/motd",
        "pytest --imgkit-image out/demo-amd64.qcow2",
    ]
