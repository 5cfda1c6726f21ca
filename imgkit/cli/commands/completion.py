"""Print a script with which a shell completes commands, options, choices and file names of imgkit.

bash: imgkit completion bash > ~/.local/share/bash-completion/completions/imgkit
zsh: imgkit completion zsh > DIR/_imgkit, where DIR is one of the folders in $fpath
fish: imgkit completion fish > ~/.config/fish/completions/imgkit.fish
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from imgkit.cli.command import Invocation

NAME = "completion"
HELP = "print a script for a shell, with which it completes commands"

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = ("DIR",)
_FILES = ("FILE", "IMAGE", "RECIPE", "LAYOUT", "BEFORE", "AFTER", "PATH")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print the script."""
    import shtab  # the other commands do not need it

    from imgkit.cli.parser import parsers

    top, commands = parsers()
    mark_paths(commands, shtab.FILE, shtab.DIRECTORY)
    sys.stdout.write(shtab.complete(top, shell=options.shell).rstrip("\n") + "\n")
    return 0


def mark_paths(commands: Mapping[str, argparse.ArgumentParser], file: object, folder: object) -> None:
    """Tell shtab which options and arguments are paths: those with a value that is named like one.

    Args:
        file, folder: shtab's words for the completion of files and of folders.
    """
    for command in commands.values():
        for action in command._actions:
            name = action.metavar if isinstance(action.metavar, str) else ""
            if name in _FOLDERS:
                action.complete = folder  # type: ignore[attr-defined]
            elif name in _FILES or action.type is Path:
                action.complete = file  # type: ignore[attr-defined]
