"""Measure the native engine from small Trees to large ones, each in a process of its own, and draw the curve.

    python -m benchmarks.diskcurve [--rounds 1] [--sizes 50M 100M …] [--files 1000 5000 …] [--png FILE]

The Trees are generated: files of a size with 1,000 files, and small files up to 500,000 of them. Half of each content
can be compressed. What is measured is from the launch of the engine until the image is saved, without caches; as in a
build, the hashes of files are known by then. "before" is the memory with the Tree, "peak" the highest. Drawing needs
matplotlib (the extra ``bench``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TypeAlias
from uuid import UUID

from imgkit.recipe import parse_size

SIZES = ("50M", "100M", "200M", "500M", "1G", "2G", "5G")
FILES = (1_000, 5_000, 20_000, 50_000, 100_000, 200_000, 500_000)
LARGE_FILES, SMALL_FILE = 1_000, 1_000
"""How many files share a size; and the bytes of each of many files."""
POOL = 64 << 20
Point: TypeAlias = dict[str, float]


def make_pool(path: Path) -> None:
    """Write the bytes of which contents are parts: every other 4 KiB can be compressed."""
    rng = random.Random(1)
    with path.open("wb") as sink:
        for _ in range(POOL >> 20):
            sink.write(b"".join(rng.randbytes(4096) + rng.randbytes(64) * 64 for _ in range(128)))


def measure(pool: str, folder: str, files: int, size: int) -> None:
    """Write one disk, and print the figures as JSON."""
    from imgkit.disk.grub import BootFiles
    from imgkit.disk.layout import make_layout
    from imgkit.disk.size import needed_root_bytes
    from imgkit.engines.interface import ImageTarget, TreeFacts
    from imgkit.engines.native.nativeengine import launch
    from imgkit.host.progress import Steps
    from imgkit.tree import Directory, File, Slice, Tree
    from tests.layouts import SPECS

    tree, rng, source = Tree(), random.Random(files), Path(pool)
    for number in range(-(-files // 1000)):
        tree.add(f"d{number:03}", Directory())
    for number in range(files):
        rest, at = size // files, 0
        while rest:
            length = min(rest, POOL // 2)
            content = Slice(source, rng.randrange(POOL - length), length)
            tree.add(f"d{number // 1000:03}/f{number}-{at}", File(content=content))
            rest, at = rest - length, at + 1
    hashes = {
        path: hashlib.sha256(node.content.read()).digest() for path, node in tree.items() if isinstance(node, File)
    }
    before, begun, busy = _memory("VmRSS"), time.perf_counter(), time.process_time()
    image, layout = Path(folder, "disk.qcow2"), make_layout(SPECS["amd64"], _disk(needed_root_bytes(tree)), UUID(int=1))
    boot, steps = (
        BootFiles(b"\xeb\x63" + bytes(438), bytes(64 << 10), {"EFI/BOOT/BOOTX64.EFI": bytes(64 << 10)}),
        Steps(),
    )
    with launch(Path(folder), layout.size_bytes) as engine:
        engine.write(tree, layout, boot, steps, (), TreeFacts(hashes)).save(ImageTarget(image), steps)
    figures = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - busy}
    figures |= {"before": before, "peak": _memory("VmHWM"), "image": image.stat().st_size}
    print(json.dumps({"files": files, "size": size, **figures}))


def _disk(root: int) -> int:
    """Return the size of a disk that has room for a root filesystem."""
    return (root * 5 // 4 + (512 << 20)) >> 20 << 20


def _memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def point(pool: Path, files: int, size: int, rounds: int) -> Point:
    """Return the medians of one Tree, and print its row."""
    found: list[Point] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
            words: list[str | Path] = [
                sys.executable,
                "-m",
                "benchmarks.diskcurve",
                "--measure",
                pool,
                folder,
                str(files),
                str(size),
            ]
            found.append(json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout))
    middle = {key: median(each[key] for each in found) for key in found[0]}
    cells = f"{files:,} | {size / 1e6:,.0f} | {middle['seconds']:.2f} | {middle['processor']:.2f}"
    memory = f"{middle['before'] / 1e6:.0f} | {middle['peak'] / 1e6:.0f}"
    print(f"| {cells} | {memory} | {middle['image'] / 1e6:,.0f} |", flush=True)
    return middle


def draw(by_size: Sequence[Point], by_files: Sequence[Point], path: Path) -> None:
    """Draw seconds and memory over the size, and over the number of files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    titles = (f"size in MB, {LARGE_FILES:,} files", f"files of {SMALL_FILE:,} bytes")
    for column, (points, key, unit) in enumerate(((by_size, "size", 1e6), (by_files, "files", 1.0))):
        across = [each[key] / unit for each in points]
        for row, lines in enumerate((("seconds", "processor"), ("before", "peak"))):
            axis = axes[row][column]
            for name in lines:
                axis.plot(across, [each[name] / (1e6 if row else 1) for each in points], marker="o", label=name)
            axis.set(xlabel=titles[column], ylabel="MB" if row else "s", ylim=(0, None))
            axis.locator_params(axis="x", nbins=5)
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})


def main() -> None:
    """Measure every point, print the tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--files", nargs="*", type=int, default=FILES)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--work", type=Path, metavar="DIR", help="for everything that is written")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        pool, folder, files, size = options.measure
        measure(pool, folder, int(files), int(size))
        return
    if options.png and find_spec("matplotlib") is None:
        parser.error('--png needs matplotlib: pip install -e ".[bench]"')
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, medians of {options.rounds}\n")
    print(f"| files | MB | s | processor s | before MB | peak MB | image MB |\n|{'---|' * 7}")
    with tempfile.TemporaryDirectory(prefix="imgkit-bench-", dir=options.work) as name:
        pool = Path(name, "pool")
        make_pool(pool)
        by_size = [point(pool, LARGE_FILES, parse_size(size), options.rounds) for size in options.sizes]
        by_files = [point(pool, files, files * SMALL_FILE, options.rounds) for files in options.files]
    if options.png:
        draw(by_size, by_files, options.png)


if __name__ == "__main__":
    main()
