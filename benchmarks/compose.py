"""Measure a build up to its disk: program start, plan, verification, composition, build id. Cold and warm side by side.

    python -m benchmarks.compose [-n 5] [--mirror URL --release-key FILE]

Every build is a process of its own. All have the same downloads; "cold" lacks what earlier builds keep (unpacked
packages, the minirootfs, the installed packages, the initramfs), "overlay" is warm with another file in the overlay.
The builds take turns, and those of the same files must have the same nodes. Without --mirror the offline mirror of
fixtures/ is served on loopback.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import imgkit
from benchmarks.build import RECIPE, mirror
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.engines.interface import NO_FACTS, Engine, EngineName, Script, TreeFacts, WrittenDisk
from imgkit.host.progress import Steps
from imgkit.recipe import Recipe
from imgkit.tree import Tree

Take: TypeAlias = Callable[[Tree, Layout, Steps], None]
"""Takes the root filesystem, the layout of its disk and the steps that were finished."""

KEPT = ("unpacked", "bases", "installed", "initramfs", "services", "modules", "grub")
"""Parts of the cache that a cold build does not have."""


class _Composed(Exception):  # noqa: N818 - it is how a build ends here
    """The root filesystem is there, and a disk would be written now."""


class _Taker:
    """The engine of a build that ends when its disk would be written."""

    name: EngineName = "native"
    runs_scripts = False

    def __init__(self, take: Take) -> None:
        self._take = take

    def prepare(self, layout: Layout) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def write(
        self,
        tree: Tree,
        layout: Layout,
        boot: BootFiles,  # noqa: ARG002 - the interface names it
        steps: Steps,
        run_scripts: Sequence[Script] = (),  # noqa: ARG002
        facts: TreeFacts = NO_FACTS,  # noqa: ARG002
    ) -> WrittenDisk:
        """Hand over what a disk would be written of."""
        self._take(tree, layout, steps)
        raise _Composed


def build_up_to_the_disk(recipe: Recipe, take: Take) -> None:
    """Build for amd64, and call ``take`` instead of writing the disk."""

    @contextmanager
    def launch(_folder: Path, _size: int) -> Iterator[Engine]:
        yield _Taker(take)

    with tempfile.TemporaryDirectory() as out:
        try:
            imgkit.build(recipe, "amd64", out=out, engine=launch)
        except _Composed:
            return


def once(url: str, key: str, overlay: str) -> None:
    """Build up to the disk, and print what it took as JSON."""

    def report(tree: Tree, _layout: Layout, steps: Steps) -> None:
        seconds = time.time() - float(os.environ["STARTED"])
        usage = resource.getrusage(resource.RUSAGE_SELF)
        from imgkit.rootfs.keptsteps import described  # not before: it is not what is measured

        nodes = json.dumps([described(path, node) for path, node in tree.items()])
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "processor": usage.ru_utime + usage.ru_stime,
                    "peak": usage.ru_maxrss << 10,
                    "steps": {step.name: step.seconds for step in steps.finished},
                    "digest": hashlib.sha256(nodes.encode()).hexdigest(),
                }
            )
        )

    recipe = imgkit.load_recipe(RECIPE, mirror=url, release_key=key)
    if overlay:
        folders = [str(place.path) for place in recipe.overlay_folders]
        recipe = imgkit.load_recipe(RECIPE, mirror=url, release_key=key, overlay=None, overlays=[*folders, overlay])
    build_up_to_the_disk(recipe, report)


def _run(cache: Path, url: str, key: str, overlay: str = "") -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.compose", "--once", url, key, overlay]
    environment = {**os.environ, "IMGKIT_CACHE": str(cache), "STARTED": repr(time.time())}
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _forget(cache: Path) -> None:
    for part in KEPT:
        shutil.rmtree(cache / part, ignore_errors=True)


def main() -> None:
    """Build several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="builds of each kind")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options, further = parser.parse_known_args()
    if options.once:
        once(*options.once)
        return
    with mirror(further) as words, tempfile.TemporaryDirectory(prefix="imgkit-benchmark-") as folder:
        given = [*words, *further]
        url, key = given[given.index("--mirror") + 1], given[given.index("--release-key") + 1]
        _print(_measure(Path(folder), url, key, options.n))


def _measure(folder: Path, url: str, key: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return the reports of each kind of build."""
    cache, overlay = folder / "cache", folder / "overlay"
    overlay.mkdir()
    reports: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "overlay": []}
    _run(cache, url, key)
    for number in range(count):
        _forget(cache)
        reports["cold"].append(_run(cache, url, key))
        reports["warm"].append(_run(cache, url, key))
        (overlay / "motd").write_text(f"{number}\n")
        reports["overlay"].append(_run(cache, url, key, str(overlay)))
    if len({report["digest"] for kind in ("cold", "warm") for report in reports[kind]}) != 1:
        sys.exit("cold and warm builds differ")
    return reports


def _print(reports: dict[str, list[dict[str, Any]]]) -> None:
    kinds = list(reports)
    print(f"| medians of {len(reports['cold'])}, s | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name in reports["cold"][0]["steps"]:
        row = [median(report["steps"][name] for report in reports[kind]) for kind in kinds]
        print(f"| {name} | {' | '.join(f'{seconds:.2f}' for seconds in row)} |")
    for label, key, unit, digits in (
        ("all, from the start of Python", "seconds", 1.0, 2),
        ("processor seconds", "processor", 1.0, 2),
        ("peak memory, MiB", "peak", float(1 << 20), 0),
    ):
        row = [median(report[key] for report in reports[kind]) / unit for kind in kinds]
        print(f"| {label} | {' | '.join(f'{value:.{digits}f}' for value in row)} |")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
