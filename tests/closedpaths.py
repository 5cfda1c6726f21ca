"""Run commands as a user who may not enter every folder, and print how each of them ended.

    python -m tests.closedpaths UID < commands.json

The commands are a list of ``[variables, words]``; the answer is a list of ``[status, output]``. The numbers of root
are given up first, since root may enter every folder.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from imgkit.cli.main import main
from imgkit.cli.parser import parsers
from imgkit.cli.terminals import interactive


def run(variables: dict[str, str], words: list[str]) -> tuple[int, str]:
    """Return the status and the output of one command."""
    os.environ.update(variables)
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = main(words)
    return status, output.getvalue()


def _need_nothing(option: str) -> None:
    """Let ``imgkit shell`` look at its paths, although there is no terminal."""


if __name__ == "__main__":
    parsers()  # imports the commands, which the user below may not be able to read
    interactive.need_terminal = _need_nothing
    user = int(sys.argv[1])
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    answer = [run(variables, words) for variables, words in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(answer))
