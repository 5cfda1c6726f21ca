"""``python -m imgkit``."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def leave(_number: int, _frame: FrameType | None) -> None:
    """Before the first line of work and after the last one there is nothing to clean up."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
    from imgkit.cli import main

    sys.exit(main())
