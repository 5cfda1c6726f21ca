"""Put the recipe's agent into the Tree: its payload as /opt/agent, its command into the settings of agentd's service.

    add_agent(tree, recipe.agent, payload, epoch=epoch)

agentd itself stays where it is, and root's; the agent's program is started by it as the unprivileged user.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from imgkit.errors import RecipeError
from imgkit.recipe import AgentSpec
from imgkit.rootfs.payload import replace_folder
from imgkit.tree import Tree

FOLDER = "opt/agent"
"""Where the payload of the agent is in the image."""
SETTINGS = "etc/conf.d/agentd"


def add_agent(tree: Tree, agent: AgentSpec | None, payload: Path | None, *, epoch: int) -> list[str]:
    """Put the agent into the Tree, if the recipe has one.

    Args:
        payload: the prepared folder of the agent (:func:`imgkit.rootfs.npm.prepare.prepare`), if it has one.
        epoch: modification time of everything that is written, seconds since 1970.

    Returns:
        The paths of the payload in the Tree.

    Raises:
        RecipeError: there is no agentd in the image that could start the agent.
        InputError: see :func:`imgkit.rootfs.payload.add_directory`.
    """
    if agent is None:
        return []
    if SETTINGS not in tree:
        raise RecipeError(
            f"agent: there is no /{SETTINGS} in the image, so nothing would start it",
            hint="the overlay that comes with imgkit has agentd",
        )
    settings = tree.text(SETTINGS).rstrip("\n") + "\n\n# The recipe's agent.\n" + assignment(agent) + "\n"
    tree.write(SETTINGS, settings, mtime=epoch)
    return [] if payload is None else replace_folder(tree, payload, FOLDER, epoch=epoch)


def assignment(agent: AgentSpec) -> str:
    """Return the line of the service's settings, which are a shell script; agentd splits its value into words again."""
    return f"AGENT_COMMAND={shlex.quote(shlex.join(agent.command))}"
