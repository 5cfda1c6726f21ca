"""The commands, one module each, with ``NAME``, ``HELP``, ``arguments(parser)`` and ``run(options)``."""

from imgkit.commands import build, doctor

COMMANDS = (build, doctor)
