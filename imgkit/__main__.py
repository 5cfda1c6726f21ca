"""``python -m imgkit``, and the console script."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def program() -> NoReturn:
    """Run the command line as a program: from its first line to its last a signal ends it with status 130."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
    from imgkit.cli.main import main

    status = main()
    for number in SIGNALS:  # the interpreter's own end would take the handlers away, but lets this be
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def leave(_number: int, _frame: FrameType | None) -> None:
    """Before the first line of work and after the last one there is nothing to clean up."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    program()
