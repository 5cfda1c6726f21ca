"""Pathname expansion (POSIX.1-2017, 2.13.3): the paths of a Tree that match a pattern."""

from __future__ import annotations

import re

from imgkit.rootfs.scripts.budget import PIECE
from imgkit.rootfs.scripts.state import Failed, ShellState, base_name
from imgkit.rootfs.scripts.words import Unsupported

WILDCARD = re.compile(r"[*?\[]")
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_PARTS = re.compile(r"(^|[^/]+)(/*)")


def expand_pathname(state: ShellState, pattern: str) -> list[str]:
    """Return the sorted paths that match ``pattern``, absolute or relative to ``state.cwd`` as the pattern is.

    ``*``, ``?`` and ``[…]`` match neither a slash nor a dot at the start of a name; a backslash quotes the next
    character. A part without wildcards matches the entry of that name, even a dangling link. Before a slash, even one
    at the end, only directories match.

    Raises:
        Failed: a path is too long.
        Unsupported: the pattern is not valid, matches ``.`` or ``..``, or leads into a volatile folder.
        Exhausted: there are too many paths.
    """
    state.budget.pattern(pattern)
    start, *parts = _PARTS.findall(pattern)
    paths = [start[1]]
    for component, slashes in parts:
        paths = [path + slashes for folder in paths for path in _matches(state, folder, component, slashes)]
    return paths


def _matches(state: ShellState, folder: str, component: str, slashes: str) -> list[str]:
    """Return the entries of ``folder``, which is empty or ends with a slash, that match one component of a pattern.

    Args:
        slashes: what follows the component; if it is not empty, only directories count.
    """
    state.budget.work(2)
    names = _names(state, folder, component)
    state.budget.memory(sum(len(folder) + len(name) + PIECE for name in names))
    paths = [f"{folder}{name}" for name in names]
    if slashes:
        return [path for path in paths if _is_directory(state, path)]
    return [path for path in paths if state.node(path, follow=False) is not None]


def _is_directory(state: ShellState, path: str) -> bool:
    """Return whether a path is a directory; one that leads into a loop of links is not."""
    try:
        return state.is_directory(path)
    except Failed:
        return False


def _names(state: ShellState, folder: str, component: str) -> list[str]:
    """Return the names that match a component. One without wildcards is itself a name, which need not exist."""
    if not WILDCARD.search(_QUOTED.sub("", component)):
        return [_QUOTED.sub(r"\1", component)]
    matches = state.matcher(component)
    if component[0] == "." and (matches(".") or matches("..")):
        raise Unsupported(f"the pattern {component[:80]}, which matches . or ..")
    names = [base_name(path) for path in state.children(state.path(folder or "."))]
    return [name for name in names if matches(name) and (name[0] != "." or component[0] == ".")]
