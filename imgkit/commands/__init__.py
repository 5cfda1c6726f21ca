"""The commands, one module each, with ``NAME``, ``HELP``, ``arguments(parser)`` and ``run(options)``."""

from imgkit.commands import boot, build, doctor, inspect, run, verify

COMMANDS = (build, boot, run, inspect, verify, doctor)
