"""Run a command on a terminal: ``imgkit run -t``, and the part that it has in common with ``imgkit shell``."""

from __future__ import annotations

import argparse
import os
from contextlib import AbstractContextManager
from typing import Any

from imgkit.cli.terminals import interactive
from imgkit.errors import UsageError
from imgkit.host.rawmode import RawTerminal
from imgkit.vm.running import VM


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of ``run``."""
    parser.add_argument(
        "-t", "--tty", action="store_true", help="give the command the terminal that imgkit runs on; see imgkit shell"
    )


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before anything is started.

    Raises:
        UsageError: there is no terminal, or an option contradicts it.
    """
    if not options.tty:
        return
    interactive.need_terminal("-t")
    if options.prompt:
        raise UsageError("--prompt needs no terminal", hint="leave out -t, or give a command")
    if options.limit is not None:
        raise UsageError("-t and --limit contradict each other", hint="timeout S COMMAND… in the guest")


def check_agent(options: argparse.Namespace) -> None:
    """Refuse a terminal in a container image whose own program is run, without agentd.

    Raises:
        UsageError: one is asked for.
    """
    if options.tty:
        raise UsageError("-t needs agentd, which does not run here", hint="leave out -t")


def run(options: argparse.Namespace, booted: AbstractContextManager[VM]) -> int:
    """Run the command of ``options`` on the terminal, and return its exit status.

    Raises:
        GuestError: the guest opens no terminal.
    """
    screen = RawTerminal()
    with booted as vm:
        with vm.terminal(**wanted(options.guest_command, screen)) as session:
            status = interactive.attend(session, screen)
        vm.kill()
    return status


def wanted(command: list[str], screen: RawTerminal, *, root: bool = False) -> dict[str, Any]:
    """Return the arguments of :meth:`imgkit.vm.running.VM.terminal` for the user's terminal.

    Args:
        command: the program; an empty list is a login shell.
        screen: the user's terminal.
        root: whether it runs as root.
    """
    columns, rows = screen.size()
    variables = interactive.environment(os.environ)
    return {"command": command or None, "root": root, "columns": columns, "rows": rows, "env": variables}
