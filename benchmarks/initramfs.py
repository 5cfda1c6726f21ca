"""Measure the time and size of the initramfs, by feature set and compression, on real root filesystems of the mirror.

python -m benchmarks.initramfs
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fixtures.mirror import make
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.initramfs.make import make_initramfs
from imgkit.rootfs.initramfs.mkinitfs import MkinitfsConfiguration, read_configuration
from imgkit.rootfs.kernel import kernels
from imgkit.tree import Tree
from tests.trees import tree_from_tar

FEATURES = {"default": None, "base virtio ext4": ("base", "virtio", "ext4")}


def best(work: Callable[[], object], runs: int = 3) -> float:
    """Return the seconds of the shortest of a few runs, which other programs have disturbed least."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(work: Callable[[], object]) -> float:
    """Return the most memory that Python holds, in MB."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def measure(architecture: str, tree: Tree) -> None:
    """Print one line for each feature set and compression, and one for the check of the whole Tree."""
    (kernel,) = kernels(tree)
    for name, features in FEATURES.items():
        for compression in ("none", "gzip"):
            stated = read_configuration(tree)
            chosen = stated.features if features is None else features
            configuration = replace(stated, features=chosen, compression=compression, level=None)

            def work(configuration: MkinitfsConfiguration = configuration) -> bytes:
                """Make the initramfs."""
                return make_initramfs(tree, kernel.release, configuration, epoch=0)

            size = len(work()) / 1e6
            line = f"{architecture:8} {name:17} {compression:5} {size:6.2f} MB {best(work):5.2f} s"
            print(f"{line} {peak(work):6.1f} MB held")
    seconds = best(lambda: check_architecture(tree, architecture))
    print(f"{architecture:8} check_architecture of {len(tree)} paths {seconds:.2f} s")


def main() -> None:
    """Measure both architectures."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    oracle: dict[str, Path] = dict(make().oracle)
    for architecture, path in sorted(oracle.items()):
        measure(architecture, tree_from_tar(path))


if __name__ == "__main__":
    main()
