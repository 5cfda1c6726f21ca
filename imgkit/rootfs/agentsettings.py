"""Read which agent an image starts for prompts, from the settings of its service (docs/reference/agentd.md)."""

from __future__ import annotations

import re

from imgkit.errors import RecipeError
from imgkit.tree import Tree

PATH = "etc/conf.d/agentd"
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?(AGENT_[A-Z]+)=(?:\"([^\"]*)\"|'([^']*)'|([^\s;#]*))")


def agent_settings(tree: Tree) -> dict[str, str]:
    """Return the variables ``AGENT_…`` that the file sets, as they are written: nothing is expanded.

    OpenRC reads the file as a shell script. Of it, plain assignments are understood, and the last one counts.
    """
    if PATH not in tree:
        return {}
    matches = filter(None, map(_ASSIGNMENT.match, tree.text(PATH).splitlines()))
    return {match[1]: match[2] or match[3] or match[4] or "" for match in matches}


def refuse_root(tree: Tree) -> None:
    """Refuse settings by which every request would fail: agentd starts no agent as root.

    Raises:
        RecipeError: the agent's user is root.
    """
    if agent_settings(tree).get("AGENT_USER") == "root":
        raise RecipeError(
            f"/{PATH}: AGENT_USER is root, but agents never run as root", hint="leave it out: the user is then agent"
        )
