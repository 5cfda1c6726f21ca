"""Measure how long a layer of a container image takes, and how much memory, beside other programs on the same files.

    python -m benchmarks.oci [--files 50000] [--size 1G] [--turns 3] [--folder DIR] [--only NAME …]

The files are generated: a twentieth of them have nine tenths of the bytes, and they compress about as programs do. Each
program runs in a process of its own, and the peak of memory is that of the process while it writes. The figures are
medians; processor seconds are those of all threads and processes together.

* ``tar | zstd -T0`` is the bare minimum, with zstd's default level, which is also imgkit's.
* imgkit writes a whole image: layer, configuration, manifest, index. ``cached`` finds the layer in the cache.
* umoci adds the folder to an empty image; skopeo compresses an image whose layer is not compressed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgkit.oci.compression import Compression
from imgkit.oci.descriptors import Platform
from imgkit.oci.layercache import LayerCache
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image, write_layout_index
from imgkit.recipe import parse_size
from imgkit.tree import Directory, File, Inline, Slice, Tree, tarwriter

_LARGE = 1 << 20
_FOLDERS = 500


def generate(folder: Path, files: int, size: int) -> None:
    """Write ``files`` files with ``size`` bytes together: nine tenths of the bytes are in a twentieth of the files."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(2, 20)) for _ in range(4_000)]
    weights = [1 / (rank + 5) for rank in range(len(words))]
    pool = b"".join(rng.choices(words, weights=weights, k=2_000_000))
    large, small = files // 20, files - files // 20
    for number in range(_FOLDERS):
        (folder / f"usr/lib/folder{number:03}").mkdir(parents=True)
    for number in range(files):
        average = size * 9 // 10 // large if number < large else size // 10 // small
        count = rng.randrange(average // 2, average * 3 // 2)
        start = rng.randrange(len(pool) - min(count, _LARGE))
        with (folder / f"usr/lib/folder{number % _FOLDERS:03}/file{number}").open("wb") as sink:
            while count > 0:
                sink.write(pool[start : start + min(count, _LARGE)])
                count -= _LARGE
                start = rng.randrange(len(pool) - _LARGE)


def tree_of(folder: Path) -> Tree:
    """Return the Tree of a folder, whose contents are the files themselves."""
    tree = Tree()
    for current, folders, names in os.walk(folder):
        above = Path(current).relative_to(folder).as_posix()
        prefix = "" if above == "." else above + "/"
        for name in folders:
            tree.add(prefix + name, Directory())
        for name in names:
            path = Path(current, name)
            size = path.stat().st_size
            tree.add(prefix + name, File(content=Slice(path, 0, size) if size else Inline(b"")))
    return tree


# ---- what runs in a process of its own -------------------------------------------------------------------------------


def write(folder: Path, work: Path, compression: Compression, *, cache: bool) -> None:
    """Write an image of ``folder``; print seconds, seconds of processors, and the memory before and at the peak."""
    tree = tree_of(folder)
    before = _memory("VmRSS")
    begun, busy = time.monotonic(), time.process_time()
    layout = OciLayout.create(work / "image.oci")
    writer = LayerWriter(layout, compression, cache=LayerCache(work.parent / "cache") if cache else None)
    layer = writer.write(changes(None, tree), reason="everything", created=0)
    image = write_image(layout, [layer], ImageFacts(platform=Platform("linux", "amd64"), created=0))
    write_layout_index(layout, [image])
    print(time.monotonic() - begun, time.process_time() - busy, before, _memory("VmHWM"))


def tar_headers(folder: Path, _work: Path, *, own: bool) -> None:
    """Make the headers of a tar archive, and print the seconds."""
    entries = changes(None, tree_of(folder)).entries
    before = _memory("VmRSS")
    begun, busy = time.monotonic(), time.process_time()
    for path, node in entries:
        if own:
            tarwriter.header(path, node)
        else:
            info = tarfile.TarInfo(path)
            info.mode, info.size = node.mode, node.content.size if isinstance(node, File) else 0
            info.type = tarfile.REGTYPE if isinstance(node, File) else tarfile.DIRTYPE
            info.tobuf(tarfile.PAX_FORMAT)
    print(time.monotonic() - begun, time.process_time() - busy, before, _memory("VmHWM"))


def _memory(field: str) -> int:
    """Return the memory of this process now (VmRSS) or at its peak (VmHWM), in KiB. See proc_pid_status(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


INNER: Mapping[str, Callable[[Path, Path], None]] = {
    "imgkit zstd": lambda folder, work: write(folder, work, Compression("zstd"), cache=False),
    "imgkit gzip": lambda folder, work: write(folder, work, Compression("gzip"), cache=False),
    "imgkit zstd, first with a cache": lambda folder, work: write(folder, work, Compression("zstd"), cache=True),
    "imgkit zstd, cached": lambda folder, work: write(folder, work, Compression("zstd"), cache=True),
    "headers: imgkit": lambda folder, work: tar_headers(folder, work, own=True),
    "headers: tarfile": lambda folder, work: tar_headers(folder, work, own=False),
}


# ---- other programs --------------------------------------------------------------------------------------------------


def shell(script: str) -> Callable[[Path, Path], list[str]]:
    """Return a function that gives the command line of a script; ``$1`` is the folder, ``$2`` a work folder."""
    return lambda folder, work: ["/bin/sh", "-ec", script, "sh", str(folder), str(work)]


OUTER: Mapping[str, Callable[[Path, Path], list[str]]] = {
    "tar | zstd -T0": shell('tar -C "$1" -cf - . | zstd -T0 -q -o "$2/x.tar.zst"'),
    "tar | zstd -T0, and sha256sum of both": shell(
        'mkfifo "$2/p"; sha256sum <"$2/p" >"$2/a" & tar -C "$1" -cf - . | tee "$2/p" | zstd -T0 -q |'
        ' tee "$2/x.tar.zst" | sha256sum >"$2/b"; wait'
    ),
    "tar | pigz": shell('tar -C "$1" -cf - . | pigz >"$2/x.tar.gz"'),
    "tar | gzip": shell('tar -C "$1" -cf - . | gzip >"$2/x.tar.gz"'),
    "umoci insert": shell(
        'umoci init --layout "$2/u"; umoci new --image "$2/u:x"; umoci insert --image "$2/u:x" "$1" /'
    ),
    "skopeo copy": shell('skopeo --insecure-policy copy -q --dest-compress "dir:$2/../plain" "dir:$2/s"'),
}


def prepare(folder: Path, base: Path) -> None:
    """Make the image that skopeo compresses, if there are the programs."""
    if not (shutil.which("umoci") and shutil.which("skopeo")):
        return
    script = 'umoci init --layout "$2/u"; umoci new --image "$2/u:x"; umoci insert --image "$2/u:x" "$1" /;'
    script += 'skopeo --insecure-policy copy -q --dest-decompress "oci:$2/u:x" "dir:$2/plain"; rm -r "$2/u"'
    subprocess.run(shell(script)(folder, base), check=True)


def timed(argv: Sequence[str]) -> tuple[float, float, str]:
    """Run a program; return its seconds, those of processors, and its output."""
    begun, before = time.monotonic(), os.times()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        output, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"{argv}: {errors}")
    after = os.times()
    busy = after.children_user - before.children_user + after.children_system - before.children_system
    return time.monotonic() - begun, busy, output


def one_turn(name: str, folder: Path, work: Path) -> dict[str, Any]:
    """Measure one program once."""
    work.mkdir()
    try:
        if name in INNER:
            inner = [sys.executable, "-m", "benchmarks.oci", "--inner", name, str(folder), str(work)]
            seconds, busy, before, peak = map(float, timed(inner)[2].split())
        else:
            seconds, busy, before, peak = *timed(OUTER[name](folder, work))[:2], 0, 0
        sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
        return {"seconds": seconds, "busy": busy, "before": before, "peak": peak, "size": max(sizes, default=0)}
    finally:
        shutil.rmtree(work)


def measure(names: Sequence[str], folder: Path, base: Path, turns: int) -> None:
    """Measure programs in turn, and print a table of medians."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            if name == "imgkit zstd, first with a cache":
                shutil.rmtree(base / "cache", ignore_errors=True)
            results[name].append(one_turn(name, folder, base / "work"))
    print("| program | seconds | processor s | size | memory before → peak |\n|---|---|---|---|---|")
    for name, found in results.items():
        keys = ("seconds", "busy", "before", "peak", "size")
        seconds, busy, before, peak, size = (statistics.median(turn[key] for turn in found) for key in keys)
        memory = f"{before / 1024:.0f} → {peak / 1024:.0f} MiB" if peak else ""
        print(f"| {name} | {seconds:.2f} | {busy:.2f} | {size / 1e6:.0f} MB | {memory} |", flush=True)


def main() -> None:
    """Generate the files, and measure every program that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--size", default="1G")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where files are written (default: a temporary folder)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=f"of: {', '.join([*OUTER, *INNER])}")
    parser.add_argument("--inner", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inner:
        INNER[given.inner[0]](Path(given.inner[1]), Path(given.inner[2]))
        return
    with tempfile.TemporaryDirectory(prefix="imgkit-bench-", dir=given.folder) as name:
        base = Path(name)
        generate(base / "files", given.files, parse_size(given.size))
        programs = {"umoci insert": "umoci", "skopeo copy": "skopeo", "tar | pigz": "pigz"}
        names = [name for name in [*OUTER, *INNER] if shutil.which(programs.get(name, "sh"))]
        if not given.only or "skopeo copy" in given.only:
            prepare(base / "files", base)
        if not (base / "plain").exists():
            names = [name for name in names if name != "skopeo copy"]
        print(f"{given.files} files, {given.size}; {os.cpu_count()} processors; load {os.getloadavg()[0]:.1f}")
        measure([name for name in names if not given.only or name in given.only], base / "files", base, given.turns)


if __name__ == "__main__":
    main()
