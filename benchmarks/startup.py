"""Measure how long the program takes before it works: its help, its version, the help of a command, an import.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 21
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import imgkit": ["-c", "import imgkit"],
    "import imgkit.cli.main": ["-c", "import imgkit.cli.main"],
    "imgkit --version": ["-m", "imgkit", "--version"],
    "imgkit --help": ["-m", "imgkit", "--help"],
    "imgkit inspect --help": ["-m", "imgkit", "inspect", "--help"],
    "imgkit build --help": ["-m", "imgkit", "build", "--help"],
    "imgkit run --help": ["-m", "imgkit", "run", "--help"],
}
"""What is measured, and the arguments of Python for it."""


def run(arguments: list[str]) -> tuple[float, float]:
    """Run Python once; return the seconds that passed, and the seconds of processor time."""
    start, before = time.perf_counter(), _processor_time()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, _processor_time() - before


def _processor_time() -> float:
    """Return the seconds of processor time of all children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the medians. The programs take turns, so that a busy moment of the host meets all of them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS):
        for name, arguments in PROGRAMS.items():
            times[name].append(run(arguments))
    print(f"{'medians of ' + str(ROUNDS):<26} {'seconds':>8} {'processor s':>12}")
    for name, rounds in times.items():
        wall, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:<26} {wall:>8.3f} {processor:>12.3f}")


if __name__ == "__main__":
    main()
