"""Measure whole builds of a recipe from a warm cache: the median seconds of each step and of all, and the peak memory.

    python -m benchmarks.build [-n 3] [--arch amd64] [further options of imgkit build, such as --mirror URL]

Without --mirror the offline mirror of fixtures/ is served on loopback. Steps overlap: the appliance starts and formats
the disk while everything else is fetched, verified and composed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

RECIPE = Path(__file__).parent.parent / "recipes" / "core.py"


@contextmanager
def mirror(given: list[str]) -> Iterator[list[str]]:
    """Yield the options that name a mirror: none if ``given`` names one, otherwise those of the offline mirror."""
    if "--mirror" in given:
        yield []
        return
    from fixtures.mirror import make
    from fixtures.server import serve

    offline = make()
    with serve(offline.root) as site:
        yield ["--mirror", site.url, "--release-key", str(offline.release_key)]


def build(out: Path, words: list[str]) -> dict[str, Any]:
    """Build once in a process of its own, and return its report."""
    argv = [sys.executable, "-m", "imgkit", "build", str(RECIPE), "--out", str(out), "--json", "--quiet", *words]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"build failed with status {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)[0]
    return report


def main() -> None:
    """Build several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=3, help="builds that count; one more warms the caches")
    options, further = parser.parse_known_args()
    with mirror(further) as words, tempfile.TemporaryDirectory(prefix="imgkit-benchmark-") as folder:
        build(Path(folder), [*words, *further])
        reports = [build(Path(folder), [*words, *further]) for _ in range(options.n)]
    print(f"| step | median s of {options.n} |\n|---|---|")
    for name in [step["name"] for step in reports[0]["steps"]]:
        times = [step["seconds"] for report in reports for step in report["steps"] if step["name"] == name]
        print(f"| {name} | {median(times):.1f} |")
    print(f"| **whole build** | **{median(report['seconds'] for report in reports):.1f}** |")
    peak = max(report["peakMemory"] for report in reports)
    print(f"\nqcow2: {reports[0]['size'] / 1e6:.0f} MB; peak memory of imgkit itself: {peak >> 20} MiB")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
