"""The parser of the command line, and hints for words that it does not know.

The reference pages (``docs/reference/commands.md``, ``docs/reference/imgkit.1``) are generated from the same parsers::

    options = parse(["build", "recipes/alpine.py", "--arch", "amd64"])
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from imgkit import __version__
from imgkit.cli.commands import COMMANDS
from imgkit.errors import UsageError
from imgkit.host.suggest import did_you_mean

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")
_GUEST_OPTIONS = "(options of a command for the guest come after --: imgkit run IMAGE -- COMMAND…)"


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message of argparse.

        Raises:
            UsageError: always. :func:`parse` adds the hint.
        """
        raise UsageError(message)


def parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and the parser of each command by its name."""
    top = _Parser(prog="imgkit", description="Bootable Alpine Linux images for agent sandboxes.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"imgkit {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = _Parser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show every command that is run")
    common.add_argument("-q", "--quiet", action="store_true", help="show errors only")
    common.add_argument("--debug", action="store_true", help="show where an error came from, as a traceback")
    commands: dict[str, argparse.ArgumentParser] = {}
    for command in COMMANDS:
        commands[command.NAME] = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.__doc__,
            parents=[common],
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(commands[command.NAME])
        commands[command.NAME].set_defaults(run=command.run)
    return top, commands


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the program.

    The words after ``--`` in ``imgkit run IMAGE --work DIR -- COMMAND…`` become ``guest_command`` here: argparse would
    look for options of imgkit among them.

    Raises:
        UsageError: a word is not valid or one is missing; the hint names what may have been meant.
        SystemExit: ``--help`` or ``--version`` was given, and its text has been printed.
    """
    top, commands = parsers()
    is_run = words[:1] == ["run"] and "--" in words
    end = words.index("--") if is_run else len(words)
    try:
        options = top.parse_args(words[:end])
    except UsageError as error:
        command = commands.get(next(iter(words), ""), top)
        raise UsageError(error.message, hint=_hint(error.message, words, command)) from error
    if is_run:
        options.guest_command = [*options.guest_command, *words[end + 1 :]]
    return options


def _hint(message: str, words: Sequence[str], command: argparse.ArgumentParser) -> str:
    """Return the hint for a message of argparse about ``words``, which are arguments of ``command``."""
    hint = _suggestion(message, words, command) or f"{command.prog} --help"
    if message.startswith("unrecognized arguments") and words[:1] == ["run"] and "--" not in words:
        hint += f" {_GUEST_OPTIONS}"
    return hint


def _suggestion(message: str, words: Sequence[str], command: argparse.ArgumentParser) -> str | None:
    """Return the choice, command or option that a wrong word resembles."""
    if choice := _INVALID_CHOICE.search(message):
        return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
    options = list(command._option_string_actions)
    for word in words[: [*words, "--"].index("--")]:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in options and (suggestion := did_you_mean(name, options)):
            return suggestion
    return None
