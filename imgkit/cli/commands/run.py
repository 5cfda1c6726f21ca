"""Boot an image and run one command in it as the agent's user; its exit status is the command's.

Everything after -- is the command. Its standard input is that of imgkit, unless that is a terminal: -i passes a
terminal on, too, and </dev/null leaves the command without. --timeout is for the boot, --limit for the command. Without
a command, --prompt is given to the agent that the image or the environment configures, and its answer is shown as text;
its questions are asked on the terminal.

A container image (an OCI image layout, or a .tar archive of one) becomes a machine with a kernel of Alpine's. Without
agentd in it, its entry point runs as its user, and what is after -- replaces its command.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from imgkit.cli import containerruns
from imgkit.cli.command import Invocation
from imgkit.cli.options import commandinput, machineoptions
from imgkit.cli.talking import conversation
from imgkit.cli.terminals import terminalruns
from imgkit.errors import GuestError, UsageError
from imgkit.host import statusline
from imgkit.image.imagepaths import is_container_image
from imgkit.vm.agent.completed import exit_status
from imgkit.vm.running import VM

NAME = "run"
HELP = "run one command in an image"
log = logging.getLogger("imgkit")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    machineoptions.arguments(parser)
    parser.add_argument("--work", metavar="DIR", help="folder to work in: /workspace/project in the guest")
    parser.add_argument("--prompt", help="text for the agent instead of a command")
    conversation.arguments(parser)
    commandinput.arguments(parser)
    terminalruns.arguments(parser)
    containerruns.arguments(parser)
    parser.add_argument("guest_command", nargs="*", default=[], metavar="COMMAND", help="after --")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Run one request, or the program of a container image. The exit status is that of the command, or of the agent.

    Raises:
        GuestError: the agent failed without a status of its own.
    """
    if options.work == "":  # from an unset variable of a script, which must not share the current folder
        raise UsageError("--work: no folder given")
    commandinput.check(options)
    terminalruns.check(options)
    shares = {} if options.work is None else {"work": Path(options.work)}
    if not is_container_image(options.image):
        _check_request(options)
        booted = machineoptions.boot(options, shares, terminals=options.tty)
        return terminalruns.run(options, booted) if options.tty else _request(options, booted)
    with containerruns.opened(options) as made:
        if not made.agent or options.entrypoint is not None:
            terminalruns.check_agent(options)
            return containerruns.run_once(options, made, shares)
        _check_request(options)
        booted = containerruns.boot_agent(options, made, shares, terminals=options.tty)
        return terminalruns.run(options, booted) if options.tty else _request(options, booted)


def _check_request(options: argparse.Namespace) -> None:
    if bool(options.guest_command) == bool(options.prompt):
        message = "give a command or a prompt" + (", not both" if options.prompt else "")
        raise UsageError(message, hint="imgkit run IMAGE -- COMMAND…, or --prompt TEXT")


def _request(options: argparse.Namespace, booted: AbstractContextManager[VM]) -> int:
    """Send the request to the agent of a machine, and return the exit status of what it ran.

    Raises:
        GuestError: the agent failed without a status of its own.
        CommandTimeoutError: the command took longer than it may.
    """
    with booted as vm:
        talk = conversation.start(options)
        extra = {**(talk.extra if options.prompt else {}), **({"awaitSystem": False} if options.no_wait else {})}
        if options.interactive:
            statusline.stop()  # what is typed belongs there
        with (
            vm.request(
                command=options.guest_command or None,
                prompt=options.prompt,
                limit=options.limit,
                stdin=commandinput.standard_input(options),
                extra=extra or None,
                on_permission=talk.permission,
                auto_approve=options.auto_approve,
            ) as request,
            statusline.doing("the agent works" if options.prompt else "the command runs"),
        ):
            result = talk.follow(request)
            commandinput.report_limit(options, request, result)
        vm.kill()
    if not result.ok and result.signal is None and result.exit_code in (None, 0):
        raise GuestError(result.text or "the agent failed without saying why")
    if not result.ok and result.text and not result.text.startswith("the agent "):
        log.error("%s", result.text)  # agentd reports it, since no agent was started
    return exit_status(result)
