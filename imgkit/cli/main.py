"""The command line: what is asked for becomes calls, failures become one ``error:`` line, one ``hint:`` and a status.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, NoReturn

from imgkit import __version__
from imgkit.cli.commands import COMMANDS
from imgkit.errors import HostError, ImgkitError, RecipeError, UsageError
from imgkit.host import interrupts, scratch, terminal
from imgkit.vm.failures import BootError

INTERRUPTED = 130
BUG = 70


class _Parser(argparse.ArgumentParser):
    """argparse that reports through :class:`UsageError` and knows what a mistyped word may have been."""

    words: ClassVar[Sequence[str]] = ()
    """What is being parsed."""

    def error(self, message: str) -> NoReturn:
        hint = self._near(message) or f"{self._meant().prog} --help"
        if message.startswith("unrecognized arguments") and self.words[:1] == ["run"] and "--" not in self.words:
            hint += " (options of a command for the guest come after --: imgkit run IMAGE -- COMMAND…)"
        raise UsageError(message, hint=hint)

    def _meant(self) -> argparse.ArgumentParser:
        """The parser of the command: argparse reports unknown options of a command through the parser above it."""
        return self._commands().get(next(iter(self.words), ""), self)

    def _near(self, message: str) -> str | None:
        """The choice, command or option that a wrong word resembles."""
        if choice := _WRONG_CHOICE.search(message):
            return _did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        options = list(self._meant()._option_string_actions)
        for word in self.words[: [*self.words, "--"].index("--")]:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in options and (near := _did_you_mean(name, options)):
                return near
        return None

    def _commands(self) -> Mapping[str, argparse.ArgumentParser]:
        found = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return found[0] if found else {}


_WRONG_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")


def _did_you_mean(word: str, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def parser() -> argparse.ArgumentParser:
    """The parser of every command and option; docs/commands.md is made from it."""
    top = _Parser(prog="imgkit", description="Bootable Alpine Linux images for agent sandboxes.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"imgkit {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = _Parser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show every command that is run")
    common.add_argument("-q", "--quiet", action="store_true", help="show errors only")
    common.add_argument("--debug", action="store_true", help="show where an error came from, as a traceback")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.__doc__,
            parents=[common],
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: see :mod:`imgkit.errors`; 130 interrupted, 70 a bug in imgkit."""
    run = _Run(list(sys.argv[1:] if argv is None else argv))
    terminal.tolerate(sys.stdout, sys.stderr)
    try:
        with interrupts.raised():
            try:
                status = run.status()
                interrupts.ignore()
            except KeyboardInterrupt:
                interrupts.ignore()
                status = run.fail(INTERRUPTED, "interrupted")
            finally:
                interrupts.ignore()
                scratch.remove_all()
    except KeyboardInterrupt:  # before the block: some handlers were in place, others not yet
        status = run.fail(INTERRUPTED, "interrupted")
    return status


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments. What follows ``--`` in ``run IMAGE --work DIR -- COMMAND…`` argparse would not understand."""
    if words[:1] != ["run"] or "--" not in words:
        return parser().parse_args(words)
    end = words.index("--")
    arguments = parser().parse_args(words[:end])
    arguments.guest_command = [*arguments.guest_command, *words[end + 1 :]]
    return arguments


class _Run:
    """One command and how it ends. With ``--json`` a failure is a JSON object on stdout as well."""

    def __init__(self, words: Sequence[str]) -> None:
        own = words[: words.index("--")] if "--" in words else words
        self._words = words
        self._debug, self._json = "--debug" in own, "--json" in own
        self._arguments = argparse.Namespace()

    def status(self) -> int:
        """Run it; everything but an interrupt becomes an exit status.

        Raises:
            KeyboardInterrupt: it was interrupted, whatever else went wrong because of that.
        """
        try:
            return self._work()
        except ImgkitError as error:
            interrupts.prefer(error)
            if self._debug:
                _say_traceback()
            return self._report(error)
        except BrokenPipeError:  # whoever read our output has seen enough
            _drop_output()
            return 0
        except MemoryError:
            return self.fail(HostError.exit_status, "out of memory")
        except Exception as error:
            interrupts.prefer(error)
            return self._unexpected(error)

    def _unexpected(self, error: Exception) -> int:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()  # else the interpreter tries to write it once more
            return self.fail(HostError.exit_status, f"{error.filename or 'output'}: no space left")
        _say_traceback()
        what = f"this is a bug in imgkit: {type(error).__name__}: {error}"
        return self.fail(BUG, what, hint="please report it with the lines above")

    def _work(self) -> int:
        _Parser.words = self._words
        self._arguments = _parse(self._words)
        self._arguments.words = self._words
        _configure_logging(self._arguments)
        status = self._arguments.run(self._arguments)
        sys.stdout.flush()
        return int(status or 0)

    def _report(self, error: ImgkitError) -> int:
        problems = error.problems if isinstance(error, RecipeError) else ()
        several = problems if len(problems) > 1 else ()
        message = error.message.partition(": " + several[0])[0] if several else error.message
        console = error.console if isinstance(error, BootError) else ""
        if console:
            _say("last lines of the console:")
            for line in console.splitlines():
                _say(f"    {line}")
        return self.fail(error.exit_status, message, hint=error.hint, problems=several, console=console)

    def fail(
        self, status: int, message: str, *, hint: str | None = None, problems: Sequence[str] = (), console: str = ""
    ) -> int:
        """Say what went wrong, and return ``status``."""
        _say(f"error: {message}")
        for problem in problems:
            _say(f"  {problem}")
        if hint:
            _say(f"hint: {hint}")
        if self._json:
            error = {"status": status, "message": message, "hint": hint, "problems": list(problems), "console": console}
            done = getattr(self._arguments, "done", [])
            with suppress(OSError):
                print(terminal.as_json({"error": error, "done": done}), flush=True)
        return status


def _configure_logging(arguments: argparse.Namespace) -> None:
    level = logging.DEBUG if arguments.verbose else logging.ERROR if arguments.quiet else logging.INFO
    logger = logging.getLogger("imgkit")
    logger.setLevel(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(terminal.Formatter("%(message)s"))
    logger.handlers = [handler]  # standard error may be another one than it was for an earlier command


def _say(line: str) -> None:
    """One line to stderr, without anything that a terminal would obey: messages quote mirrors, packages and guests."""
    with suppress(OSError):  # nobody listens
        print(terminal.line(line.replace("\n", " ")), file=sys.stderr, flush=True)


def _say_traceback() -> None:
    """Where the error that is being handled came from; its text may quote anybody, too."""
    with suppress(OSError):
        print(terminal.block(traceback.format_exc().rstrip("\n")), file=sys.stderr, flush=True)


def _drop_output() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
