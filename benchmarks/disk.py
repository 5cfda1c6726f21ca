"""Measure builds of a recipe's disk beside other ways to the same disk: the whole command, and the ratios to the floor.

    python -m benchmarks.disk [--recipe FILE] [--mirror URL --release-key FILE] [--rounds 5] [--guestfs-rounds 1]
                              [--only NAME…]

* ``first``: the native engine with a warm cache of downloads and nothing else that builds keep.
* ``rebuild``: the same again. ``overlay``: the same with one file of the overlay changed.
* ``guestfs``: the guestfs engine, everything warm.
* ``floor``: ``mke2fs -d`` of the unpacked root filesystem, and ``qemu-img convert -c`` with zstd.
* ``privileged``: minirootfs, ``apk add`` in a chroot, loop device, mkfs, cp, convert (benchmarks/privileged.sh, which
  says what is left out). Packages come from the mirror each time, so only one on this host makes a fair comparison.

They take turns. Seconds are medians, the start of the program included, and processor seconds those of all processes;
the peak is the resident memory of the largest process. Without --mirror the offline mirror of fixtures/ is served on
loopback. The overlay must be a folder beside that of the recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imgkit
from benchmarks.build import RECIPE, mirror
from benchmarks.compose import KEPT, build_up_to_the_disk
from imgkit.disk.layout import Layout
from imgkit.host.progress import Steps
from imgkit.tree import Tree

NAMES = ("first", "rebuild", "overlay", "guestfs", "floor", "privileged")
CONVERT = "qemu-img convert -c -m 8 -W -O qcow2 -o compression_type=zstd,cluster_size=65536"
FLOOR = f'rm -f disk.raw; mke2fs -q -t ext4 -d "$1" disk.raw "$2"; {CONVERT} disk.raw "$3"'
# A child's peak counts what its parent had when it was started; so a small process starts it.
STARTER = """
import json, os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
begun = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
taken = [time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10]
print(json.dumps([os.waitstatus_to_exitcode(status), *taken]))
"""


@dataclass(frozen=True)
class Taken:
    """What a run took: seconds, seconds of processors, the peak of memory and the size of the result in bytes."""

    seconds: float
    processor: float
    peak: int
    size: int = 0


def run(argv: Sequence[str | Path], folder: Path, **environment: str) -> Taken:
    """Run a program in a folder.

    Raises:
        SystemExit: it failed.
    """
    words = [sys.executable, "-I", "-S", "-c", STARTER, *map(str, argv)]
    done = subprocess.run(words, stdout=subprocess.PIPE, env={**os.environ, **environment}, cwd=folder, check=True)
    status, seconds, processor, peak = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{' '.join(words[5:])}: status {status}")
    return Taken(seconds, processor, peak)


# ---- before the clock starts -----------------------------------------------------------------------------------------


def unpack(recipe: str, url: str, key: str, archive: str) -> None:
    """Write the root filesystem of a recipe to an archive; print its world, its branch and sizes as JSON."""
    loaded = imgkit.load_recipe(recipe, mirror=url, release_key=key)

    def write(tree: Tree, layout: Layout, _steps: Steps) -> None:
        with Path(archive).open("wb") as sink:
            tree.write_tar(sink)
        world = tree.text("etc/apk/world").split()
        facts = {"world": world, "branch": loaded.branch, "disk": layout.size_bytes, "root": layout.root.size}
        print(json.dumps(facts))

    build_up_to_the_disk(loaded, write)


def lacking() -> str:
    """Return why the privileged way cannot be gone; empty if it can."""
    if os.geteuid():
        return "needs root"
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode:
        return "no loop devices"
    missing = [name for name in ("sgdisk", "mkfs.vfat", "mkfs.ext4", "qemu-img") if not shutil.which(name)]
    return f"no {', '.join(missing)}" if missing else ""


# ---- the ways --------------------------------------------------------------------------------------------------------


class Ways:
    """What is measured, each a function that runs it once.

    Args:
        work: an empty folder.
        words: options of ``imgkit build`` that name the mirror.
    """

    def __init__(self, work: Path, recipe: Path, words: Sequence[str]) -> None:
        self._work, self._words = work, words
        self._out, self._tree = work / "out", work / "tree"
        self._downloads, self._cache = work / "downloads", work / "cache"
        self._count = 0
        shutil.copytree(recipe.parent, work / recipe.parent.name)
        shutil.copytree(recipe.parent.parent / "overlay", work / "overlay", symlinks=True)
        self._recipe = work / recipe.parent.name / recipe.name
        self._facts: dict[str, Any] = {}

    def prepare(self, names: Sequence[str]) -> None:
        """Do what no way is measured with: downloads, and the unpacked root filesystem."""
        url, key = (self._words[self._words.index(name) + 1] for name in ("--mirror", "--release-key"))
        archive = self._work / "tree.tar"
        words: list[str | Path] = [sys.executable, "-m", "benchmarks.disk", "--unpack", self._recipe, url, key, archive]
        environment = {**os.environ, "IMGKIT_CACHE": str(self._downloads)}
        done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, check=True)
        self._facts = json.loads(done.stdout)
        for part in (*KEPT, "clusters"):
            shutil.rmtree(self._downloads / part, ignore_errors=True)
        self._forget()
        self._tree.mkdir()
        tar: list[str | Path] = [
            "tar",
            "-xpf",
            archive,
            "-C",
            self._tree,
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
        ]
        subprocess.run([*tar, *([] if os.geteuid() == 0 else ["--exclude=./dev/*"])], check=True)
        if "privileged" in names:
            self._branch = f"{url.rstrip('/')}/{self._facts['branch']}"
            releases = f"{self._branch}/releases/x86_64"
            with urllib.request.urlopen(f"{releases}/latest-releases.yaml") as response:
                file = re.search(r"alpine-minirootfs-[\w.]+-x86_64\.tar\.gz", response.read().decode())
            assert file is not None
            urllib.request.urlretrieve(f"{releases}/{file[0]}", self._work / "minirootfs.tar.gz")
        if "guestfs" in names:
            self._build("guestfs")  # its appliance is made once for a host

    def _forget(self) -> None:
        """Make the cache one that has downloads only."""
        shutil.rmtree(self._cache, ignore_errors=True)
        shutil.copytree(self._downloads, self._cache, copy_function=_link)

    def _build(self, engine: str) -> Taken:
        shutil.rmtree(self._out, ignore_errors=True)
        words: list[str | Path] = [
            "-m",
            "imgkit",
            "build",
            self._recipe,
            "--arch",
            "amd64",
            "--engine",
            engine,
            "--quiet",
        ]
        words += ["--out", self._out, *self._words]
        taken = run([sys.executable, *words], Path.cwd(), IMGKIT_CACHE=str(self._cache))
        return self._measured(taken, next(self._out.glob("*.qcow2")))

    def _measured(self, taken: Taken, image: Path) -> Taken:
        return Taken(taken.seconds, taken.processor, taken.peak, image.stat().st_size)

    def first(self) -> Taken:
        """Build with nothing but downloads."""
        self._forget()
        return self._build("native")

    def rebuild(self) -> Taken:
        """Build what was built before."""
        return self._build("native")

    def overlay(self) -> Taken:
        """Build with another file in the overlay."""
        self._count += 1
        (self._work / "overlay" / "etc" / "imgkit-benchmark").write_text(f"{self._count}\n")
        return self._build("native")

    def guestfs(self) -> Taken:
        """Build with the other engine."""
        return self._build("guestfs")

    def floor(self) -> Taken:
        """Make a bare filesystem of the unpacked one."""
        image = self._work / "floor.qcow2"
        image.unlink(missing_ok=True)
        size = f"{self._facts['root'] >> 10}k"
        return self._measured(run(["sh", "-ec", FLOOR, "sh", self._tree, size, image], self._work), image)

    def privileged(self) -> Taken:
        """Do what needs root."""
        image, script = self._work / "privileged.qcow2", Path(__file__).with_name("privileged.sh")
        image.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=self._work) as scratch:
            words: list[str | Path] = [self._work / "minirootfs.tar.gz", self._branch, str(self._facts["disk"]), image]
            taken = run(["sh", "-eu", script, *words, *self._facts["world"]], Path(scratch))
        return self._measured(taken, image)

    def named(self, name: str) -> Callable[[], Taken]:
        """Return one of :data:`NAMES`."""
        way: Callable[[], Taken] = getattr(self, name)
        return way


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


# ---- the results -----------------------------------------------------------------------------------------------------


def medians(runs: Sequence[Taken]) -> Taken:
    """Return the medians of runs, and the highest peak."""
    return Taken(
        statistics.median(taken.seconds for taken in runs),
        statistics.median(taken.processor for taken in runs),
        max(taken.peak for taken in runs),
        int(statistics.median(taken.size for taken in runs)),
    )


def verdict(what: str, value: float, unit: str, target: float) -> str:
    """Return a line about a figure that must not be greater than its target."""
    return f"{what}: {value:.2f} {unit}, target {target:g}: {'met' if value <= target else 'missed'}"


def verdicts(found: Mapping[str, Taken]) -> list[str]:
    """Return a line for each target that can be checked with what was measured."""
    lines = []
    floor = found.get("floor")
    for name, target in (("first", 2.0), ("rebuild", 0.6), ("overlay", 0.8)):
        if floor and name in found:
            lines.append(verdict(name, found[name].seconds / floor.seconds, "of floor", target))
    if "first" in found and "privileged" in found:
        ratio = found["first"].seconds / found["privileged"].seconds
        lines.append(verdict("first", ratio, "of privileged", 0.33))
    native = [found[name] for name in ("first", "rebuild", "overlay") if name in found]
    if native:
        lines.append(verdict("peak memory", max(taken.peak for taken in native) / 1e6, "MB", 200))
    if native and floor:
        lines.append(verdict("file", native[0].size / floor.size, "of floor", 1.02))
    return lines


def show(results: Mapping[str, Sequence[Taken]]) -> None:
    """Print the table, and what became of the targets."""
    print("| way | runs | s | processor s | peak MB | file MB |\n|---|---|---|---|---|---|")
    found = {name: medians(runs) for name, runs in results.items() if runs}
    for name, taken in found.items():
        cells = f"{taken.seconds:.2f} | {taken.processor:.2f} | {taken.peak / 1e6:.0f} | {taken.size / 1e6:.1f}"
        print(f"| {name} | {len(results[name])} | {cells} |")
    print(*verdicts(found), sep="\n")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Measure every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guestfs-rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--work", type=Path, metavar="DIR", help="for everything that is written")
    parser.add_argument("--unpack", nargs=4, help=argparse.SUPPRESS)
    options, further = parser.parse_known_args()
    if options.unpack:
        unpack(*options.unpack)
        return
    names = [name for name in NAMES if name in options.only]
    if "privileged" in names and (reason := lacking()):
        print(f"privileged is left out: {reason}")
        names.remove("privileged")
    results: dict[str, list[Taken]] = {name: [] for name in names}
    with mirror(further) as words, tempfile.TemporaryDirectory(prefix="imgkit-bench-", dir=options.work) as folder:
        ways = Ways(Path(folder), options.recipe.resolve(), [*words, *further])
        ways.prepare(names)
        for number in range(max(options.rounds, options.guestfs_rounds)):
            for name in names:
                if number < (options.guestfs_rounds if name == "guestfs" else options.rounds):
                    results[name].append(ways.named(name)())
    show(results)


if __name__ == "__main__":
    main()
