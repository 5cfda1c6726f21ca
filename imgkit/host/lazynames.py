"""Names of a package that are imported when they are used, so that importing the package costs nothing (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def importing(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the function ``__getattr__`` of a package.

    Args:
        package: its name, for messages.
        modules: module → the names of the package that are defined in it.
    """

    def get(name: str) -> Any:
        for module, names in modules.items():
            if name in names:
                from importlib import import_module

                return getattr(import_module(module), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
