"""The commands, one module each: what such a module has is said in :class:`imgkit.cli.command.Command`."""

from imgkit.cli.command import Command
from imgkit.cli.commands import boot, build, doctor, inspect, lock, publish, run, verify

COMMANDS: tuple[Command, ...] = (build, lock, boot, run, inspect, verify, publish, doctor)
