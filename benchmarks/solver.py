"""Measure the solver on a real package index: parsing it, and solving some worlds.

python -m benchmarks.solver APKINDEX.tar.gz [ARCH]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from imgkit.apk.index import Repository, parse_index
from imgkit.apk.solver import solve

ROUNDS = 7
WORLDS = {
    "base": "alpine-base",
    "default image": "alpine-base linux-virt openrc nodejs git python3 bash e2fsprogs grub-efi",
    "large": "alpine-base linux-lts docs graphviz-dev gtk+3.0-dev postgresql15 samba-dc git-perl py3-sphinx vim",
}


def read(path: Path) -> str:
    """Return the text of an index."""
    with tarfile.open(path) as archive:
        member = archive.extractfile("APKINDEX")
        if member is None:
            raise SystemExit(f"{path} has no APKINDEX")
        return member.read().decode()


def median(action: Callable[[], object]) -> float:
    """Return the median of the seconds that ``action`` takes."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="APKINDEX.tar.gz")
    parser.add_argument("arch", nargs="?", default="aarch64", metavar="ARCH", help="default: aarch64")
    options = parser.parse_args()
    path, arch = options.index, options.arch
    text = read(path)
    packages = parse_index(text, Repository())
    print(f"{'what':<28} {'packages':>8} {'median of ' + str(ROUNDS):>14}")
    print(f"{'unpack and decode':<28} {len(packages):>8} {median(lambda: read(path)) * 1000:>11.0f} ms")
    print(f"{'parse':<28} {len(packages):>8} {median(lambda: parse_index(text, Repository())) * 1000:>11.0f} ms")
    for name, world in WORLDS.items():
        count = len(solve(world.split(), packages, arch=arch))
        seconds = median(lambda world=world: solve(world.split(), packages, arch=arch))  # type: ignore[misc]
        print(f"{'solve ' + name:<28} {count:>8} {seconds * 1000:>11.0f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
