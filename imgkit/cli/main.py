"""The entry point of the command line: run one command, report its failure, and return the exit status.

A failure is one ``error:`` line and at most one ``hint:`` line on standard error; the exit statuses are listed in
:mod:`imgkit.errors`. Results go to standard output, everything else goes to standard error::

    status = main(["build", "recipes/alpine.py"])
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from imgkit.cli.command import Invocation
from imgkit.cli.parser import parse
from imgkit.errors import BUG, INTERRUPTED, GuestError, HostError, ImgkitError, RecipeError
from imgkit.host import colours, interrupts, scratch, statusline, terminal
from imgkit.host.room import no_room

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR})
"""What the host answers for a path that it refuses: the fault of the path or of its owner, and not imgkit's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments of the program; None takes those of this process.

    Returns:
        The exit status (see :mod:`imgkit.errors`).
    """
    run = _Run(list(sys.argv[1:] if argv is None else argv))
    terminal.tolerate(sys.stdout, sys.stderr)
    return interrupts.run(run.status, interrupted=run.interrupted, clean_up=scratch.remove_all)


class _Run:
    """One command and how it ends. With ``--json`` a failure is reported on standard output too, as an object."""

    def __init__(self, words: Sequence[str]) -> None:
        own = words[: words.index("--")] if "--" in words else words
        self._invocation = Invocation(words)
        self._debug, self._json = "--debug" in own, "--json" in own

    def status(self) -> int:
        """Run the command and return the exit status, whatever happens.

        Raises:
            KeyboardInterrupt: the command was interrupted, or failed because of an interrupt.
        """
        try:
            return self._work()
        except SystemExit as ended:  # argparse has printed the help or the version
            return int(ended.code or 0)
        except ImgkitError as error:
            interrupts.prefer(error)
            if self._debug:
                _print_traceback()
            return self._report(error)
        except BrokenPipeError:  # the reader of our output has closed it, which is not a failure
            _drop_output()
            return 0
        except MemoryError:
            return self._fail(HostError.exit_status, "out of memory")
        except Exception as error:
            interrupts.prefer(error)
            return self._unexpected(error)

    def interrupted(self) -> int:
        """Report an interrupt and return its exit status."""
        return self._fail(INTERRUPTED, "interrupted")

    def _work(self) -> int:
        options = parse(self._invocation.words)
        _configure_logging(options)
        with statusline.enabled(None if options.quiet or options.verbose else sys.stderr):
            status: int = options.run(options, self._invocation)
        sys.stdout.flush()
        return status

    def _unexpected(self, error: Exception) -> int:
        """Report an exception that is not one of imgkit's own."""
        if isinstance(error, OSError) and no_room(error):
            _drop_output()  # otherwise the interpreter tries once more to write it
            return self._fail(HostError.exit_status, f"{error.filename or 'output'}: no space left")
        if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
            if self._debug:
                _print_traceback()
            return self._fail(HostError.exit_status, f"{error.filename}: {error.strerror}")
        _print_traceback()
        message = f"this is a bug in imgkit: {type(error).__name__}: {error}"
        return self._fail(BUG, message, hint="please report it with the lines above")

    def _report(self, error: ImgkitError) -> int:
        """Report a failure. Several problems of a recipe, and the console of a guest, are listed line by line."""
        problems = error.problems if isinstance(error, RecipeError) and len(error.problems) > 1 else ()
        message = error.message.partition(": " + problems[0])[0] if problems else error.message
        console = error.console if isinstance(error, GuestError) else ""
        if console:
            _print_line("last lines of the console:")
            for line in console.splitlines():
                _print_line(f"    {line}")
        return self._fail(error.exit_status, message, hint=error.hint, problems=problems, console=console)

    def _fail(
        self, status: int, message: str, *, hint: str | None = None, problems: Sequence[str] = (), console: str = ""
    ) -> int:
        """Print what went wrong, and return ``status``."""
        _print_line(f"error: {message}", "red")
        for problem in problems:
            _print_line(f"  {problem}")
        if hint:
            _print_line(f"hint: {hint}", "cyan")
        if self._json:
            error = {"status": status, "message": message, "hint": hint, "problems": list(problems), "console": console}
            with suppress(OSError):
                print(terminal.as_json({"error": error, "done": self._invocation.done}), flush=True)
        return status


def _configure_logging(options: argparse.Namespace) -> None:
    level = logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.INFO
    logger = logging.getLogger("imgkit")
    logger.setLevel(level)
    handler = statusline.StatusHandler(sys.stderr)
    handler.setFormatter(_ColouredFormatter("%(message)s"))
    logger.handlers = [handler]  # standard error may be another stream than it was for an earlier command


class _ColouredFormatter(terminal.Formatter):
    """Formats warnings in yellow and errors in red, on a terminal that has colours."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as text that is safe on a terminal."""
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return colours.paint(text, "red" if record.levelno >= logging.ERROR else "yellow", sys.stderr)


def _print_line(text: str, colour: colours.Colour | None = None) -> None:
    """Print one line to standard error, with control characters escaped: messages quote mirrors and guests.

    Args:
        colour: of the first word, where the terminal has colours.
    """
    text = text.replace("\n", " ")
    with suppress(OSError):  # standard error may be closed
        print(colours.paint_first_word(terminal.line(text), colour, sys.stderr), file=sys.stderr, flush=True)


def _print_traceback() -> None:
    """Print where the exception that is being handled came from. Its text may quote mirrors and guests, too."""
    with suppress(OSError):
        print(terminal.block(traceback.format_exc().rstrip("\n")), file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Connect standard output to the null device, so that nothing more can fail there."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
