"""OpenRC's runlevels: a service is enabled by a link in etc/runlevels/<level> to its script in /etc/init.d."""

from __future__ import annotations

from difflib import get_close_matches

from imgkit.errors import RecipeError
from imgkit.tree import Directory, File, Tree, parent

_INIT = "etc/init.d"
_LEVELS = "etc/runlevels"
_ORDER = ("sysinit", "boot", "default")
_AGENTS = "agentd"
_CLEANERS = {"bootmisc": "it removes and makes files in /tmp"}
"""Services that work as root where agents may put links and files of their own, and what they do there."""


def available(tree: Tree) -> list[str]:
    """Names of the services that the Tree has: the executable files of etc/init.d."""
    found = []
    for path in tree.children(tree.resolve(_INIT)):
        node = tree.stat(path)
        name = path.rpartition("/")[2]
        if isinstance(node, File) and node.mode & 0o111 and not name.endswith(".sh"):
            found.append(name)
    return found


def runlevels(tree: Tree) -> dict[str, list[str]]:
    """The services of every runlevel."""
    levels = [path for path in tree.children(_LEVELS) if isinstance(tree[path], Directory)]
    return {level.rpartition("/")[2]: [path.rpartition("/")[2] for path in tree.children(level)] for level in levels}


def enable(tree: Tree, runlevel: str, service: str, *, epoch: int = 0) -> None:
    """Start ``service`` in ``runlevel``; nothing happens if it is there already.

    Raises:
        RecipeError: there is no such service or runlevel in the Tree.
    """
    _check("service", service, available(tree), "the package that has it may be missing")
    _check("runlevel", runlevel, list(runlevels(tree)), "the package openrc may be missing")
    path = f"{_LEVELS}/{runlevel}/{service}"
    if path not in tree:
        tree.symlink(path, f"/{_INIT}/{service}", mtime=epoch)


def disable(tree: Tree, runlevel: str, service: str) -> None:
    """Take ``service`` out of ``runlevel``.

    Raises:
        RecipeError: it is not in it.
    """
    enabled = runlevels(tree).get(runlevel, [])
    if service not in enabled:
        raise RecipeError(f"{service}: not in runlevel {runlevel}", hint=_near(service, enabled))
    tree.remove(f"{_LEVELS}/{runlevel}/{service}")


def refuse_unsafe_order(tree: Tree) -> None:
    """Refuse services that would work as root among the agent's files after agentd has begun to take requests.

    In agentd's own runlevel they come before it, as its script says.

    Raises:
        RecipeError: naming the service, and agentd's runlevel.
    """
    levels = runlevels(tree)
    start = next((level for level in _ORDER if _AGENTS in levels.get(level, [])), None)
    if start is None:
        return
    for level in _ORDER[_ORDER.index(start) + 1 :]:
        for name in sorted(_CLEANERS.keys() & set(levels.get(level, []))):
            raise RecipeError(
                f"{name}: in runlevel {level}, {_AGENTS} in {start}: {_CLEANERS[name]} as root while agents are there",
                hint=f"leave {name} out of services; an image needs nothing of it",
            )


def _check(what: str, name: str, known: list[str], otherwise: str) -> None:
    if name not in known or parent(name):
        raise RecipeError(f"{name}: no such {what} in the image", hint=_near(name, known) or otherwise)


def _near(name: str, known: list[str]) -> str | None:
    near = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else None
