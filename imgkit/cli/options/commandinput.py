"""The standard input of ``imgkit run``, and the time that its command may take."""

from __future__ import annotations

import argparse
import os
import sys

from imgkit.errors import UsageError
from imgkit.vm.agent.inputs import PipeInput
from imgkit.vm.agent.protocol import AgentResult
from imgkit.vm.agent.requests import AgentRequest
from imgkit.vm.failures import CommandTimeoutError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="pass standard input on even if it is a terminal; a pipe or a file always is",
    )
    parser.add_argument(
        "--limit", type=float, metavar="S", help="seconds after which the command is ended, with exit status 124"
    )


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before anything is started.

    Raises:
        UsageError: the limit is not a number of seconds, or a prompt was given besides ``-i``.
    """
    if options.limit is not None and not 0 < options.limit < float("inf"):
        raise UsageError(f"--limit {options.limit:g}: not a number of seconds")
    if options.interactive and options.prompt:
        raise UsageError("-i is for a command: with --prompt the agent gets no other input", hint="leave out -i")


def standard_input(options: argparse.Namespace) -> PipeInput | None:
    """Return the standard input of the command; None if it gets none.

    A command gets what imgkit gets. A terminal is for the shell that imgkit was started from, unless ``-i`` is given.
    """
    if options.prompt or sys.stdin is None:  # a closed descriptor may be that of another file by now
        return None
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # no file of the system
        return None
    return PipeInput(descriptor) if options.interactive or not os.isatty(descriptor) else None


def report_limit(options: argparse.Namespace, request: AgentRequest, result: AgentResult) -> None:
    """Report that a command was ended because its time was over. What it has written was shown.

    Raises:
        CommandTimeoutError: it was.
    """
    if options.limit is not None and request.stopped and result.body.get("cancelled") is True:
        raise limit_error(options)


def limit_error(options: argparse.Namespace) -> CommandTimeoutError:
    """Return the error for a command that was ended."""
    return CommandTimeoutError(f"the command was ended after {options.limit:g} s", hint="--limit with a larger number")
