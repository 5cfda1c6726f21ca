"""The interface of a command: each module of :mod:`imgkit.cli.commands` has the members of :class:`Command`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Invocation:
    """One call of the command line: its arguments and the results so far.

    Attributes:
        words: the arguments of the program as they were given.
        done: the results that are complete, ready for JSON. A command that fails later still reports them (``--json``).
    """

    words: Sequence[str] = ()
    done: list[Mapping[str, object]] = field(default_factory=list)


class Command(Protocol):
    """The module of one command. Its docstring is the description that ``imgkit COMMAND --help`` shows."""

    __doc__: str | None
    NAME: str
    """The word that selects the command."""
    HELP: str
    """A few words for the list of commands."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options and arguments of the command to its parser."""

    def run(self, options: argparse.Namespace, invocation: Invocation) -> int:
        """Run the command and return the exit status.

        Raises:
            ImgkitError: the command failed; the class says whose fault it is (see :mod:`imgkit.errors`).
        """
