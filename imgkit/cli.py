"""The command line: what is asked for becomes calls, failures become one ``error:`` line, one ``hint:`` and a status.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from imgkit import __version__
from imgkit.commands import COMMANDS
from imgkit.errors import ImgkitError, RecipeError, UsageError

INTERRUPTED = 130
BUG = 70


class _Parser(argparse.ArgumentParser):
    """argparse that reports through :class:`UsageError` and knows what a mistyped word may have been."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=self._near() or f"{self.prog} --help")

    def _near(self) -> str | None:
        """The option or command that the first unknown word resembles."""
        known = list(self._option_string_actions)
        for action in self._actions:
            known += list(action.choices or ()) if isinstance(action, argparse._SubParsersAction) else []
        for word in sys.argv[1:]:
            name = word.partition("=")[0]
            if name not in known and (near := difflib.get_close_matches(name, known, n=1)):
                return f"did you mean {near[0]}?"
        return None


def parser() -> argparse.ArgumentParser:
    """The parser of every command and option; the option reference in the docs is made from it."""
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
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments = parser().parse_args(argv)
        _configure_logging(arguments)
        status = arguments.run(arguments)
        sys.stdout.flush()
        return int(status or 0)
    except ImgkitError as error:
        if debug:
            traceback.print_exc()
        _report(error)
        return error.exit_status
    except KeyboardInterrupt:
        _say("error: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        _say("error: this is a bug in imgkit")
        _say("hint: please report it with the lines above")
        return BUG


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends like Ctrl-C, through every context manager, so that nothing is left behind."""
    raise KeyboardInterrupt


def _configure_logging(arguments: argparse.Namespace) -> None:
    level = logging.DEBUG if arguments.verbose else logging.ERROR if arguments.quiet else logging.INFO
    logger = logging.getLogger("imgkit")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def _report(error: ImgkitError) -> None:
    problems = error.problems if isinstance(error, RecipeError) else ()
    if len(problems) > 1:
        _say("error: " + error.message.partition(": " + problems[0])[0])
        for problem in problems:
            _say(f"  {problem}")
    else:
        _say(f"error: {error.message}")
    if error.hint:
        _say(f"hint: {error.hint}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
