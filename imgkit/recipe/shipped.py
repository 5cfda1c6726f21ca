"""The recipes that come with imgkit, and what they refer to: the overlay with agentd, the architectures.

In the repository they are in ``recipes/`` and ``overlay/``. A wheel has copies of these folders inside the package
(``setup.py`` puts them there), so that they are found wherever imgkit is installed::

    path("alpine")    # → /…/recipes/alpine.py, or /…/site-packages/imgkit/data/recipes/alpine.py
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "imgkit:"
"""What the name of such a recipe begins with in the field ``extends``."""

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(package: Path = _PACKAGE) -> Path:
    """Return the folder that has ``recipes`` and ``overlay`` in it."""
    copies = package / "data"
    return copies if copies.is_dir() else package.parent


def names() -> list[str]:
    """Return the names of the recipes, in alphabetical order."""
    return sorted(file.stem for file in (folder() / "recipes").glob("*.py") if not file.stem.startswith("_"))


def path(name: str) -> Path | None:
    """Return the file of a recipe; None if there is no such recipe."""
    return folder() / "recipes" / f"{name}.py" if name in names() else None


def label(file: Path) -> str:
    """Return what messages call a recipe's file: ``imgkit:NAME`` if it comes with imgkit, else its path."""
    return PREFIX + file.stem if path(file.stem) == file else str(file)
