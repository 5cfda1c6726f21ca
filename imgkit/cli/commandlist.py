"""The list of commands, from which one is imported when it is used: all of them together take half a second.

The module of a command is ``imgkit.cli.commands.NAME``, with the members of :class:`imgkit.cli.command.Command`. Its
``HELP`` is repeated here, so that ``imgkit --help`` imports none of them; tests compare the two::

    command("build").run(options, invocation)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from imgkit.cli.command import Command
from imgkit.host import interrupts

COMMANDS: Mapping[str, str] = {
    "init": "begin a project: a recipe, a test that boots it, a workflow",
    "build": "build the images of a recipe",
    "lock": "write a recipe's lock file: exact URLs, sizes, hashes",
    "boot": "boot an image and wait for agentd",
    "run": "run one command in an image",
    "shell": "open a terminal in a machine",
    "inspect": "what is in an image: partitions, packages, sizes",
    "verify": "compare an image with its manifest",
    "diff": "compare two images, manifests or lock files",
    "push": "push a container image to registries",
    "pull": "pull a container image from a registry",
    "publish": "publish images for the host application",
    "cache": "list, measure and prune the cache",
    "completion": "print a script for a shell, with which it completes commands",
    "doctor": "what this host can do, what is missing, the command that fixes it",
}
"""The name of each command and its line in the list of commands, in the order of that list."""


def command(name: str) -> Command:
    """Import a command of :data:`COMMANDS` and return its module.

    A signal waits until the module is imported. If its KeyboardInterrupt came out of a call of ``exec``, as decorators
    of classes make it while modules are imported, then the interpreter would later end itself with SIGINT, although
    the exception was handled (CPython, Python/pythonrun.c, ``unhandled_keyboard_interrupt``).

    Raises:
        KeyboardInterrupt: a signal came meanwhile.
    """
    with interrupts.held_back():
        return cast("Command", import_module(f"imgkit.cli.commands.{name}"))
