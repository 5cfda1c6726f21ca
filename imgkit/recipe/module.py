"""Recipes as Python modules: run a file without leaving a trace, and read the values that it defines."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType

from imgkit.errors import RecipeError


def public_values(module: ModuleType) -> dict[str, object]:
    """Return the values that a module defines: its public names that are neither modules, functions nor classes."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not callable(value)
        and name != "annotations"  # of "from __future__ import annotations"
    }


def execute(path: Path) -> ModuleType:
    """Run the file at ``path`` as a module of a package whose folder is the file's own, so that relative imports work.

    Nothing stays in ``sys.modules``, and no ``.pyc`` is written.

    Raises:
        RecipeError: the file cannot be read, is not Python, or raises an exception.
    """
    package = f"_imgkit_recipe_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None:
        raise RecipeError(f"{path}: not a Python file", hint="a recipe's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    parent = ModuleType(package)
    parent.__path__ = [str(path.resolve().parent)]
    with _isolated(package):
        sys.modules[package] = parent
        sys.modules[spec.name] = module
        try:
            exec(_compile(path), vars(module))  # noqa: S102 - a recipe is a program, run because its user asked for it
        except (KeyboardInterrupt, MemoryError, RecipeError):
            raise
        except SyntaxError as cause:
            raise RecipeError(f"{cause.filename or path}:{cause.lineno}: not Python: {cause.msg}") from cause
        except BaseException as cause:  # whatever a recipe raises, SystemExit included, is the recipe's fault
            frame = traceback.extract_tb(cause.__traceback__)[-1]
            raise RecipeError(f"{frame.filename}:{frame.lineno}: {type(cause).__name__}: {cause}") from cause
    return module


def _compile(path: Path) -> CodeType:
    try:
        return compile(path.read_bytes(), path, "exec")
    except ValueError as cause:  # the bytes are not UTF-8, or there are null bytes among them
        raise RecipeError(f"{path}: not Python: {cause}") from cause
    except OSError as cause:
        raise RecipeError(f"{path}: {cause.strerror}") from cause


@contextmanager
def _isolated(package: str) -> Iterator[None]:
    """Remove the modules of ``package`` from ``sys.modules`` at the end, and write no bytecode meanwhile."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
            del sys.modules[name]
