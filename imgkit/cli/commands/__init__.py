"""The commands, one module each, with ``NAME``, ``HELP``, ``arguments(parser)`` and ``run(options)``."""

from imgkit.cli.commands import boot, build, doctor, inspect, lock, publish, run, verify

COMMANDS = (build, lock, boot, run, inspect, verify, publish, doctor)
