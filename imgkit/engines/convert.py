"""From the raw scratch disk to a compressed qcow2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from imgkit.errors import HostError
from imgkit.host import process

Compression: TypeAlias = Literal["zstd", "zlib"]

# Eight coroutines that may write out of order: clusters then lie in another order in each run, which no reader sees,
# and compression uses every processor.
_PARALLEL = ("-m", "8", "-W")


def convert(raw: Path, target: Path, compression: Compression = "zstd") -> int:
    """Write ``raw`` as a compressed qcow2 to ``target`` and return its size in bytes.

    Args:
        raw: the disk; holes and zeros take no room in the result.
        target: a new file, usually a temporary name beside the final one, which the caller renames.
        compression: zstd needs QEMU 5.1 to read; zlib is read by all and takes four times as long.

    Raises:
        HostError: qemu-img is missing or failed, or the disk of ``target`` is full. ``target`` is gone then.
    """
    options = f"compression_type={compression},cluster_size=65536,lazy_refcounts=off"
    argv: list[str | Path] = ["qemu-img", "convert", "-c", *_PARALLEL, "-f", "raw", "-O", "qcow2", "-o", options]
    try:
        process.run([*argv, raw, target])
    except BaseException as cause:
        target.unlink(missing_ok=True)
        if isinstance(cause, HostError) and "No space left" in cause.message:
            raise _no_space(raw, target) from cause
        raise
    return target.stat().st_size


def _no_space(raw: Path, target: Path) -> HostError:
    status = os.statvfs(target.parent)
    free = status.f_bavail * status.f_frsize >> 20
    most = raw.stat().st_blocks * 512 >> 20
    return HostError(
        f"{target}: no space left on device ({free} MiB free; the image needs up to {most} MiB)",
        hint="make room, or choose another folder with --out",
    )
