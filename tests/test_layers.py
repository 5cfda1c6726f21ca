"""Imports go one way: a layer of docs/development/design.md imports only from itself and those above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import ROOT

PACKAGE = ROOT / "imgkit"


def layers() -> dict[str, int]:
    """Return the number of the table's line for each layer."""
    lines = [line for line in (ROOT / "docs/development/design.md").read_text().splitlines() if line.startswith("| `")]
    return {
        name.rstrip("/"): number
        for number, line in enumerate(lines)
        for name in re.findall(r"`(\S+)`", line.split("|")[1])
    }


def layer(module: str) -> str:
    """Return the layer of a module: ``vm`` for ``imgkit.vm.agent.requests``, "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of imgkit that a module imports, wherever it does, but not for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "imgkit":
            yield from (f"imgkit.{alias.name}" for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imgkit."):
            yield node.module or ""
        else:
            yield from imported(node)


def against(path: Path, known: dict[str, int], text: str) -> list[str]:
    """Return the imports of a module that go the wrong way."""
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name for name in imported(ast.parse(text)) if layer(name) != own and known[layer(name)] > known[own]]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


@pytest.mark.slow
def test_imports_go_one_way() -> None:
    known = layers()
    found = {str(path.relative_to(PACKAGE)): against(path, known, path.read_text()) for path in MODULES}
    assert len(found) > 80
    assert {path: names for path, names in found.items() if names} == {}


def test_the_wrong_way_is_noticed() -> None:
    known = layers()
    text = "def f():\n  from imgkit import planning, tree\n  from imgkit.vm.agent.requests import Request\n"
    assert against(PACKAGE / "rootfs/x.py", known, text) == ["imgkit.planning", "imgkit.vm.agent.requests"]
    assert set(known) >= {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__main__",
        "__pycache__",
    }


def named_twice() -> list[str]:
    """Return the public classes of the package, and its modules, whose name another one has as well.

    The modules of commands are named after their commands.
    """
    places: dict[str, list[str]] = {}
    for path in MODULES:
        module = str(path.relative_to(PACKAGE))
        if path.parent.name != "commands":
            places.setdefault(path.stem, []).append(module)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    return [f"{name}: {', '.join(modules)}" for name, modules in places.items() if len(modules) > 1]


@pytest.mark.slow
def test_a_name_means_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_twice() == []
    monkeypatch.setattr(__name__ + ".MODULES", [*MODULES, PACKAGE / "tree" / "tree.py"])
    assert named_twice() == ["tree: tree/tree.py, tree/tree.py", "Tree: tree/tree.py, tree/tree.py"]
