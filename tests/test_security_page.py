"""docs/explanation/security.md: every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/explanation/security.md"
_NAMED = re.compile(r"`(test_\w+\.py)(?:::(\w+))?`")


def lacking(text: str) -> list[str]:
    """Return the tests that a page names and that do not exist."""
    return [
        f"{file}::{name}" if name else file
        for file, name in _NAMED.findall(text)
        if not (ROOT / "tests" / file).is_file() or (name and name not in _functions(file))
    ]


def _functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
def test_every_promise_has_its_test() -> None:
    text = PAGE.read_text()
    assert lacking(text) == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 4]
    promises = [line for line in rows if not line.startswith("| promised |")]
    without = [line for line in promises if not _NAMED.search(line.rpartition("|")[0].rpartition("|")[2])]
    assert promises
    assert [line for line in without if not line.startswith(("| who |", "| ["))] == []


@pytest.mark.parametrize("name", ["test_none.py", "test_security_page.py::test_none", "test_none.py::test_none"])
def test_a_name_without_a_test_is_noticed(name: str) -> None:
    assert lacking(f"| a | b | `{name}` |") == [name]
