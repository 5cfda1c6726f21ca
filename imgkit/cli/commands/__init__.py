"""The commands, one module each. :class:`imgkit.cli.command.Command` describes what such a module has."""

from imgkit.cli.command import Command
from imgkit.cli.commands import boot, build, doctor, inspect, lock, publish, pull, push, run, verify

COMMANDS: tuple[Command, ...] = (build, lock, boot, run, inspect, verify, push, pull, publish, doctor)
