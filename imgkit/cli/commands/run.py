"""Boot an image and run one command in it as the agent's user; its exit status is the command's.

Everything after -- is the command. Without one, --prompt is given to the agent that the image or the environment
configures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from imgkit.cli import machineoptions
from imgkit.errors import GuestError, UsageError
from imgkit.host import terminal
from imgkit.vm.agent.completed import exit_status
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Event, Output
from imgkit.vm.agent.requests import AgentRequest

NAME = "run"
HELP = "run one command in an image"
log = logging.getLogger("imgkit")


def arguments(parser: argparse.ArgumentParser) -> None:
    machineoptions.arguments(parser)
    parser.add_argument("--work", metavar="DIR", help="folder to work in: /workspace/project in the guest")
    parser.add_argument("--prompt", help="text for the agent instead of a command")
    parser.add_argument("guest_command", nargs="*", default=[], metavar="COMMAND", help="after --")


def run(options: argparse.Namespace) -> int:
    if bool(options.guest_command) == bool(options.prompt):
        what = "give a command or a prompt" + (", not both" if options.prompt else "")
        raise UsageError(what, hint="imgkit run IMAGE -- COMMAND…, or --prompt TEXT")
    if options.work == "":  # an unset variable of a script must not share the current folder
        raise UsageError("--work: no folder")
    shares = {} if options.work is None else {"work": Path(options.work)}
    with machineoptions.boot(options, shares) as vm:
        extra = {"awaitSystem": False} if options.no_wait else None
        with vm.request(command=options.guest_command or None, prompt=options.prompt, extra=extra) as request:
            result = _follow(request, events=not options.guest_command)
        vm.kill()
    if not result.ok and result.signal is None and result.exit_code in (None, 0):
        raise GuestError(result.text or "the agent failed without saying why")
    if not result.ok and result.text and not result.text.startswith("the agent "):
        log.error("%s", result.text)  # agentd's own words: there was no agent to say anything
    return exit_status(result)


def _follow(request: AgentRequest, *, events: bool) -> AgentResult:
    """Show what comes until the result does, and return that. A command has output only, an agent also ``events``."""
    for event in request:
        if isinstance(event, AgentResult):
            return event
        if events or isinstance(event, Output):
            _show(event)
    raise GuestError("the request ended without a result")


def _show(event: Event) -> None:
    """Output goes where it went in the guest, byte for byte, as ssh has it; what an agent reports is a line of JSON."""
    if isinstance(event, Output):
        stream = sys.stdout if event.stream == "stdout" else sys.stderr
        stream.buffer.write(event.data)
        stream.flush()
    elif isinstance(event, AgentEvent) and event.kind != "started":
        print(terminal.as_json(event.body, indent=None), flush=True)
