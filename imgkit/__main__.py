"""``python -m imgkit``, and the console script.

Signals are handled from the first line on, before the other modules are imported, which takes a while; see
:mod:`imgkit.host.interrupts`.
"""

import gc
import sys
from typing import NoReturn

from imgkit.host import interrupts, namesake

INTERRUPTED = 130  # imgkit.errors.INTERRUPTED, which is not imported yet


def program() -> NoReturn:
    """Run the command line as a program. A signal ends it with status 130 at any time, from first to last."""
    interrupts.exit_on_signals(INTERRUPTED)
    gc.set_threshold(50_000, 20, 50)  # a build makes many objects and few cycles: looking for them took 0.1 s
    namesake.refuse()
    from imgkit.cli.main import main

    status = main()
    interrupts.ignore()  # the interpreter resets handlers when it ends, but not to ignore a signal
    gc.freeze()  # what is left ends with the process: looking for cycles in it took 0.15 s after a build
    sys.exit(status)


if __name__ == "__main__":
    program()
