"""The field ``agent`` of a recipe: the program that agentd gives prompts to, and where it comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from imgkit.recipe.record import RecipeRecord

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    """Check a command, which becomes one line of the settings of a service."""
    if not words:
        raise ValueError("names no program")
    for word in words:
        if _CONTROL.search(word):
            raise ValueError(f"{word!r} has a control character")
    return words


class AgentSpec(RecipeRecord):
    """The agent of an image: a command, and a payload if its program is no part of the image otherwise."""

    command: Annotated[tuple[str, ...], AfterValidator(_command)] = Field(
        examples=[["/usr/bin/node", "/opt/agent/index.js"]]
    )
    """Program and arguments. It has the prompt on its standard input, and may write lines of JSON."""
    payload: Path | None = Field(default=None, examples=["agents/mine"])
    """Folder that is put into the image as /opt/agent. Without it, the program comes from a package or an overlay."""
    build: Literal["auto", "0", "1"] = Field(default="auto", examples=["0"])
    """How the payload's npm packages are installed, as ``agent_runner_build`` says."""
