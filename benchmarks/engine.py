"""Measure what the guestfs engine spends its time on, with the quick and the stock appliance, and qemu-img's time.

    python -m benchmarks.engine [--stock] [--tar ROOTFS.tar] [--size 4G] [--cache DIR]

Without ``--tar`` the root filesystem is generated: 3,000 files of 230 MB, one of which has 130 MB.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import uuid
from pathlib import Path

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import make_layout
from imgkit.engines.convert import convert
from imgkit.engines.guestfs.channel import Options
from imgkit.engines.guestfs.guestfsengine import launch
from imgkit.host.progress import Steps
from imgkit.recipe import parse_size
from imgkit.tree import File, Inline, Tree
from tests.layouts import SPECS

SEED = uuid.UUID(int=1)
BOOT = BootFiles(b"\xeb\x63" + bytes(438), bytes(150 << 10), {"EFI/BOOT/BOOTX64.EFI": bytes(500 << 10)})


def generate_tree() -> Tree:
    """Return a generated Tree of 3,000 files and 230 MB, which compresses about 2:1 as programs do."""
    random.seed(1)
    noise = random.randbytes(1 << 20)
    text = bytes(range(256)) * 4096
    tree = Tree()

    def content(size: int) -> Inline:
        """Return ``size`` bytes."""
        pieces = [noise[random.randrange(1 << 19) :][:65536] + text[:65536] for _ in range(-(-size // 131072))]
        return Inline(b"".join(pieces)[:size])

    tree.add("large", File(content=content(130 << 20)))
    for number in range(15):
        tree.write(f"boot/medium{number}", content(2 << 20).data)
    for number in range(3000):
        tree.write(f"usr/lib/d{number % 120}/f{number}", content(random.randrange(46 << 10)).data)
    return tree


def measure(tree: Tree, size: int, options: Options, title: str) -> None:
    """Write a disk, convert it with each compression, and print the times."""
    layout = make_layout(SPECS["amd64"], size, SEED)
    with tempfile.TemporaryDirectory(prefix="imgkit-bench-") as name:
        scratch, steps = Path(name), Steps()
        with launch(scratch, size, options) as engine:
            written = engine.write(tree, layout, BOOT, steps)
        print(f"\n{title}: {written.appliance} appliance up after {written.launch_seconds:.1f} s")
        print(steps.table())
        for compression in ("zstd", "zlib"):
            start = time.monotonic()
            length = convert(written.disk, scratch / "out.qcow2", "zstd" if compression == "zstd" else "zlib")
            print(f"convert {compression}: {time.monotonic() - start:.1f} s, {length >> 20} MiB")
            (scratch / "out.qcow2").unlink()


def main() -> None:
    """Measure the quick appliance twice, and the stock appliance if that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="also with libguestfs' own appliance")
    parser.add_argument("--tar", type=Path, help="an uncompressed tar of a root filesystem")
    parser.add_argument("--size", default="4G")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "imgkit" / "appliance")
    given = parser.parse_args()
    tree = generate_tree()
    if given.tar:
        from tests.trees import tree_from_tar

        tree = tree_from_tar(given.tar)
    size = parse_size(given.size)
    print(f"{len(tree)} entries, {tree.content_size >> 20} MiB")
    measure(tree, size, Options(cache=given.cache), "first")
    measure(tree, size, Options(cache=given.cache), "warm")
    if given.stock:
        measure(tree, size, Options(), "stock, first")
        measure(tree, size, Options(), "stock, warm")


if __name__ == "__main__":
    main()
