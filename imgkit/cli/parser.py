"""The parser of the command line, and hints for words that it does not know.

The reference pages (``docs/reference/commands.md``, ``docs/reference/imgkit.1``) are generated from the same parsers::

    options = parse(["build", "recipes/alpine.py", "--arch", "amd64"])
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from imgkit import __version__
from imgkit.cli.commandlist import COMMANDS, command
from imgkit.errors import UsageError
from imgkit.host.suggest import did_you_mean

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")
_GUEST_OPTIONS = "(options of a command for the guest come after --: imgkit run IMAGE -- COMMAND…)"

_OPTIONS_ELSEWHERE = {"help": "imgkit --help, or imgkit COMMAND --help", "version": "imgkit --version"}
"""Commands of other programs that are options here."""

_COMMON = {
    ("-v", "--verbose"): "show every command that is run",
    ("-q", "--quiet"): "show errors only",
    ("--debug",): "show where an error came from, as a traceback",
}
"""Options of every command, which may come before it as well, with their help."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message of argparse.

        Raises:
            UsageError: always. :func:`parse` adds the hint.
        """
        raise UsageError(message)


class _CommandParser(_Parser):
    """The parser of one command, which imports the command's module when it has something to parse.

    Until then it has the options that all commands share, and no description.
    """

    def __init__(self, *, unread: str = "", **keywords: Any) -> None:
        super().__init__(**keywords)
        self._unread = unread

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, as argparse does for the command that it found in the words of the user."""
        self.complete()
        return super().parse_known_args(args, namespace)

    def complete(self) -> None:
        """Import the module of the command, and add its description, options and arguments."""
        if self._unread:
            module, self._unread = command(self._unread), ""
            self.description = module.__doc__
            module.arguments(self)
            self.set_defaults(run=module.run)


def parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and the parser of each command by its name."""
    top, commands = _parsers()
    for parser in commands.values():
        parser.complete()
    return top, commands


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, _CommandParser]]:
    """Return the same as :func:`parsers`, but the parsers of commands complete themselves when they are used."""
    top = _Parser(prog="imgkit", description="Bootable Alpine Linux images for agent sandboxes.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"imgkit {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser)
    common = _CommandParser(add_help=False)
    for names, text in _COMMON.items():
        common.add_argument(*names, action="store_true", help=text)
        top.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
    return top, {
        name: subparsers.add_parser(
            name,
            unread=name,
            help=line,
            parents=[common],
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, line in COMMANDS.items()
    }


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the program.

    The words after ``--`` in ``imgkit run IMAGE --work DIR -- COMMAND…`` become ``guest_command`` here: argparse would
    look for options of imgkit among them.

    Raises:
        UsageError: a word is not valid or one is missing; the hint names what may have been meant.
        SystemExit: ``--help`` or ``--version`` was given, and its text has been printed; or no command was given, which
            has the same text, and the status of a wrong command line.
    """
    top, commands = _parsers()
    words = _command_first(words)
    if not words:
        top.print_help()
        raise SystemExit(UsageError.exit_status)
    is_run = words[:1] in (["run"], ["shell"]) and "--" in words
    end = words.index("--") if is_run else len(words)
    try:
        options = top.parse_args(words[:end])
    except UsageError as error:
        parser = commands.get(next(iter(words), ""), top)
        raise UsageError(error.message, hint=_hint(error.message, words, parser)) from error
    if is_run:
        options.guest_command = [*options.guest_command, *words[end + 1 :]]
    return options


def _command_first(words: Sequence[str]) -> Sequence[str]:
    """Return the words with the common options that come before the command behind it; empty if there is no command."""
    common = [name for names in _COMMON for name in names]
    count = next((at for at, word in enumerate(words) if word not in common), len(words))
    return [*words[count : count + 1], *words[:count], *words[count + 1 :]] if count < len(words) else []


def _hint(message: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return the hint for a message of argparse about ``words``, which are arguments for ``parser``."""
    hint = _OPTIONS_ELSEWHERE.get(words[0]) or _suggestion(message, words, parser) or f"{parser.prog} --help"
    if message.startswith("unrecognized arguments") and words[:1] == ["run"] and "--" not in words:
        hint += f" {_GUEST_OPTIONS}"
    return hint


def _suggestion(message: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str | None:
    """Return the choice, command or option that a wrong word resembles."""
    if choice := _INVALID_CHOICE.search(message):
        if message.startswith("argument --format:") and choice[1] in ("zstd", "zlib"):
            return f"--compression {choice[1]}"
        return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
    options = list(parser._option_string_actions)
    for word in words[: [*words, "--"].index("--")]:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in options and (suggestion := did_you_mean(name, options)):
            return suggestion
    return None
