"""``python -m fuzz [TARGET…] [--seconds N]``: look for inputs that a parser should refuse and does not.

Each target runs in a process of its own, with a limit of memory. Coverage guides the search where atheris can be
imported (``pip install 'imgkit[fuzz]'``); elsewhere seeds are changed at random. An input that makes a target fail is
written to ``--keep`` and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_MEMORY = 3 << 30  # bytes of address space of a process that searches
_STARTUP = 300  # seconds that starting the process and its last input may take


def _search(name: str, seconds: float, folder: Path, seed: int) -> None:
    """Search in one target, in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    if importlib.util.find_spec("atheris") is None:
        from fuzz.search import Search

        Search(name, seconds, folder).at_random(seed)
        return
    import atheris

    with atheris.instrument_imports(include=["imgkit"]):
        from fuzz.search import Search
    Search(name, seconds, folder).guided(atheris, seed)


def main(words: Sequence[str]) -> int:
    """Search in the named targets, or in all. Return the exit status, which is 1 if a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Look for inputs that a parser stumbles over.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by default all; --list names them")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="how long to search in each (60)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz/found"), metavar="DIR", help="where faults are written")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random numbers (1)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.here:  # targets are imported later, so that they can be instrumented
        _search(options.targets[0], options.seconds, options.keep, options.seed)
        return 0
    from fuzz.targets import TARGETS

    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]}: no such target")
    if options.list:
        print("\n".join(TARGETS))
        return 0
    return max([_started(name, options) for name in options.targets or TARGETS])


def _started(name: str, options: argparse.Namespace) -> int:
    settings = ["--seconds", str(options.seconds), "--keep", str(options.keep), "--seed", str(options.seed)]
    argv = [sys.executable, "-m", "fuzz", name, "--here", *settings]
    try:
        status = subprocess.run(argv, check=False, timeout=options.seconds + _STARTUP).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: does not end", flush=True)
        return 1
    if status < 0 or status > 1:
        print(f"{name}: the process ended with status {status}", flush=True)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
