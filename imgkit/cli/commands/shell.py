"""Open a terminal in a machine: a login shell, or a command after --, as the agent's user or as root.

If imgkit boot --wait runs a machine of the image, the terminal is opened there. Otherwise a machine is booted for it,
and powered off at the end.

What is typed goes to the guest, Ctrl-C as well. After the Enter key, ~. leaves a guest that does not answer. The exit
status is that of the shell.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from imgkit.cli.command import Invocation
from imgkit.cli.options import machineoptions
from imgkit.cli.terminals import interactive, terminalruns
from imgkit.errors import UsageError
from imgkit.host.rawmode import RawTerminal
from imgkit.image.imagepaths import is_container_image
from imgkit.vm.sessions import runningmachines, sessionserver
from imgkit.vm.sessions.runningmachines import RunningMachine

NAME = "shell"
HELP = "open a terminal in a machine"
log = logging.getLogger("imgkit")

_OWN = {"image", "root", "new", "pid", "guest_command"}  # options that a machine that runs already can have


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    machineoptions.arguments(parser)
    parser.add_argument("--work", metavar="DIR", help="folder to work in: /workspace/project in the guest")
    parser.add_argument("--root", action="store_true", help="as root, not as the agent's user")
    parser.add_argument("--new", action="store_true", help="boot a machine even if one of the image runs")
    parser.add_argument("--pid", type=int, metavar="PID", help="of several machines, that of this imgkit boot --wait")
    parser.add_argument("guest_command", nargs="*", default=[], metavar="COMMAND", help="after --")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Open the terminal, and return the exit status of its program.

    Raises:
        UsageError: there is no terminal here, or it is not clear on which machine one is wanted.
        GuestError: the guest opens no terminal.
    """
    interactive.need_terminal("a shell")
    if options.new and options.pid is not None:
        raise UsageError("--new and --pid contradict each other")
    if is_container_image(options.image):
        raise UsageError(
            f"{options.image}: a terminal needs a disk image", hint="imgkit run -t for a container image with agentd"
        )
    machines = [] if options.new else runningmachines.find(options.image)
    chosen = choose(options.image, machines, options.pid)
    if chosen is None:
        return _on_its_own(options)
    _check_unused(options, chosen)
    screen = RawTerminal()
    with sessionserver.attached(
        chosen, terminalruns.wanted(options.guest_command, screen, root=options.root)
    ) as session:
        _say(options, f"the machine of process {chosen.pid}")
        return interactive.attend(session, screen)


def choose(image: Path, machines: Sequence[RunningMachine], pid: int | None) -> RunningMachine | None:
    """Return the machine that is meant, or None if one has to be booted.

    Raises:
        UsageError: several may be meant, or ``pid`` is not among them.
    """
    known = ", ".join(str(machine.pid) for machine in machines)
    if pid is not None:
        for machine in machines:
            if machine.pid == pid:
                return machine
        raise UsageError(f"--pid {pid}: runs no machine of {image}", hint=known and f"these do: {known}")
    if len(machines) > 1:
        raise UsageError(f"{image}: several machines run: {known}", hint="--pid PID chooses one, --new boots another")
    return machines[0] if machines else None


def _check_unused(options: argparse.Namespace, machine: RunningMachine) -> None:
    """Check that no option describes another machine than the one that runs.

    Raises:
        UsageError: one does.
    """
    parser = argparse.ArgumentParser()
    arguments(parser)
    usual = vars(parser.parse_args([str(options.image)]))
    for name, value in usual.items():
        if name not in _OWN and getattr(options, name) != value:
            option = f"--{name.replace('_', '-')}"
            message = f"{option} describes a new machine, but process {machine.pid} runs {options.image}"
            raise UsageError(message, hint=f"leave out {option}, or boot another machine with --new")


def _on_its_own(options: argparse.Namespace) -> int:
    """Boot a machine for the terminal, and power it off at the end."""
    if options.work == "":  # from an unset variable of a script, which must not share the current folder
        raise UsageError("--work: no folder given")
    shares = {} if options.work is None else {"work": Path(options.work)}
    screen = RawTerminal()
    with machineoptions.boot(options, shares, terminals=True) as vm:
        with vm.terminal(**terminalruns.wanted(options.guest_command, screen, root=options.root)) as session:
            _say(options, "a machine of its own")
            status = interactive.attend(session, screen)
        if not vm.power_off():
            log.warning("the guest did not power off by itself and was switched off")
    return status


def _say(options: argparse.Namespace, where: str) -> None:
    user = "root" if options.root else "the agent's user"
    log.info("%s on %s; %s", user, where, interactive.LEAVING)
