"""What ``imgkit run`` shows of a request, and who answers the agent's questions.

    talk = conversation.start(options)
    with vm.request(…, on_permission=talk.permission, auto_approve=options.auto_approve, extra=talk.extra) as request:
        result = talk.follow(request)

A command's output is passed on byte for byte. What an agent reports is shown as text; with ``--json`` every event of
either is one line of JSON.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from imgkit.cli.talking.approval import Approver
from imgkit.cli.talking.transcript import Transcript
from imgkit.errors import GuestError
from imgkit.host import statusline, terminal
from imgkit.vm.agent.callbacks import OnPermission, Permission
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Event, Output, PermissionRequest

log = logging.getLogger("imgkit")


class Screen(Protocol):
    """Shows the events of a request."""

    def show(self, event: Event) -> None:
        """Show one event."""

    def rest(self) -> None:
        """Finish what is shown so far, so that something else can be printed."""

    def end(self, result: AgentResult) -> None:
        """Show the end of the request."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is shown, and of who decides."""
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON")
    parser.add_argument(
        "--auto-approve",
        action="store_true",
        help="let the agent use its tools without asking (default: ask on the terminal; without one, deny)",
    )


class Conversation:
    """One request, as a person or a program follows it."""

    def __init__(self, screen: Screen, approver: Approver | None) -> None:
        """Show the events on ``screen``, and ask ``approver``; None is nobody."""
        self._screen = screen
        self._approver = approver
        self._warned = False

    @property
    def extra(self) -> Mapping[str, Any]:
        """Fields of a request to the agent: where nobody answers, it shall not ask what needs more than a yes."""
        return {} if self._approver is not None else {"confirmationMode": "text"}

    @property
    def permission(self) -> OnPermission:
        """The callback that decides about the agent's tools."""
        return self._decide

    def _decide(self, question: PermissionRequest) -> Permission:
        statusline.stop()
        self._screen.rest()
        if self._approver is not None:
            return self._approver.decide(question)
        if not self._warned:
            log.warning(
                "the agent asks whether it may use %s, and nobody is at a terminal to answer: denied, like all that it "
                "will ask (--auto-approve allows all)",
                terminal.line(question.tool_name, 100),
            )
            self._warned = True
        return Permission(False, "nobody is there to allow it")

    def follow(self, events: Iterable[Event]) -> AgentResult:
        """Show the events of a request until its result comes, and return that.

        Raises:
            GuestError: the request ended without a result.
        """
        try:
            for event in events:
                if not (isinstance(event, AgentEvent) and event.kind == "started"):
                    statusline.stop()
                if isinstance(event, AgentResult):
                    self._screen.end(event)
                    return event
                self._screen.show(event)
        finally:
            self._screen.rest()
        raise GuestError("the request ended without a result")


def start(options: argparse.Namespace) -> Conversation:
    """Return the conversation that the options ask for.

    A person answers if standard input and standard error are terminals. Beside a command nobody does: the command may
    have the terminal's input for itself.
    """
    screen: Screen = RawOutput()
    if options.json:
        screen = EventLines()
    elif not options.guest_command:
        screen = Transcript(sys.stdout, sys.stderr)
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    somebody = at_terminal and not options.guest_command
    return Conversation(screen, Approver(sys.stdin, sys.stderr) if somebody else None)


class RawOutput:
    """Passes the output of a command on, byte for byte, to the same stream as in the guest."""

    def show(self, event: Event) -> None:
        """Show output, and nothing else."""
        if isinstance(event, Output):
            stream = sys.stdout if event.stream == "stdout" else sys.stderr
            stream.buffer.write(event.data)
            stream.flush()

    def rest(self) -> None:
        """Nothing is held back."""

    def end(self, result: AgentResult) -> None:
        """Show nothing: the exit status says it."""


class EventLines:
    """Prints every event as a line of JSON, in printable ASCII, for programs."""

    def show(self, event: Event) -> None:
        """Print one event; bytes that are not UTF-8 become replacement characters."""
        if isinstance(event, Output):
            text = event.data.decode(errors="replace")
            self._print({"type": "output", "stream": event.stream, "data": text})
        elif isinstance(event, AgentEvent) and event.kind != "started":
            self._print(event.body)
        elif isinstance(event, PermissionRequest):
            self._print({"type": "permission_request", "toolName": event.tool_name, "toolInput": event.tool_input})

    def rest(self) -> None:
        """Nothing is held back."""

    def end(self, result: AgentResult) -> None:
        """Print the result."""
        self._print(result.body)

    def _print(self, body: Mapping[str, Any]) -> None:
        sys.stdout.write(terminal.as_json(body, indent=None) + "\n")
        sys.stdout.flush()
