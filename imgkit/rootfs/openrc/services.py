"""Enable and disable services of OpenRC: links in etc/runlevels/<level> to the scripts in /etc/init.d."""

from __future__ import annotations

from difflib import get_close_matches

from imgkit.errors import RecipeError
from imgkit.tree import Directory, File, Tree, parent

INIT = "etc/init.d"
_LEVELS = "etc/runlevels"
_ORDER = ("sysinit", "boot", "default")
_AGENT_SERVICE = "agentd"
_UNSAFE_AFTER_AGENTS = {"bootmisc": "it removes and makes files in /tmp"}
"""Services that act as root in folders where agents can make files and links, and what they do there."""


def available(tree: Tree) -> list[str]:
    """Return the names of the services that the Tree has: the executable files of etc/init.d."""
    names = []
    for path in tree.children(tree.resolve(INIT)):
        node = tree.stat(path)
        name = path.rpartition("/")[2]
        if isinstance(node, File) and node.mode & 0o111 and not name.endswith(".sh"):
            names.append(name)
    return names


def runlevels(tree: Tree) -> dict[str, list[str]]:
    """Return the services of every runlevel: runlevel → names."""
    levels = [path for path in tree.children(_LEVELS) if isinstance(tree[path], Directory)]
    return {level.rpartition("/")[2]: [path.rpartition("/")[2] for path in tree.children(level)] for level in levels}


def enable(tree: Tree, runlevel: str, service: str, *, epoch: int = 0) -> None:
    """Add ``service`` to ``runlevel``. Nothing changes if it is in it already.

    Raises:
        RecipeError: there is no such service or runlevel in the Tree.
    """
    _check_known("service", service, available(tree), "the package that has it may be missing")
    _check_known("runlevel", runlevel, list(runlevels(tree)), "the package openrc may be missing")
    path = f"{_LEVELS}/{runlevel}/{service}"
    if path not in tree:
        tree.symlink(path, f"/{INIT}/{service}", mtime=epoch)


def disable(tree: Tree, runlevel: str, service: str) -> None:
    """Remove ``service`` from ``runlevel``.

    Raises:
        RecipeError: the service is not in the runlevel.
    """
    enabled = runlevels(tree).get(runlevel, [])
    if service not in enabled:
        raise RecipeError(f"{service}: not in runlevel {runlevel}", hint=_did_you_mean(service, enabled))
    tree.remove(f"{_LEVELS}/{runlevel}/{service}")


def refuse_unsafe_order(tree: Tree) -> None:
    """Refuse services that would act as root on the agent's files after agentd has begun to accept requests.

    In agentd's own runlevel they start before it, because agentd's script demands it.

    Raises:
        RecipeError: there is such a service; the message names it and agentd's runlevel.
    """
    levels = runlevels(tree)
    start = next((level for level in _ORDER if _AGENT_SERVICE in levels.get(level, [])), None)
    if start is None:
        return
    for level in _ORDER[_ORDER.index(start) + 1 :]:
        for name in sorted(_UNSAFE_AFTER_AGENTS.keys() & set(levels.get(level, []))):
            work = _UNSAFE_AFTER_AGENTS[name]
            raise RecipeError(
                f"{name}: in runlevel {level}, {_AGENT_SERVICE} in {start}: {work} as root while agents are there",
                hint=f"leave {name} out of services; an image needs nothing of it",
            )


def _check_known(kind: str, name: str, known: list[str], fallback_hint: str) -> None:
    if name not in known or parent(name):
        raise RecipeError(f"{name}: no such {kind} in the image", hint=_did_you_mean(name, known) or fallback_hint)


def _did_you_mean(name: str, known: list[str]) -> str | None:
    near = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else None
