"""Convert the raw disk that an engine has written to a compressed qcow2 file."""

from __future__ import annotations

from pathlib import Path

from imgkit.engines.engineerrors import no_space
from imgkit.engines.interface import Compression
from imgkit.host import process

# Eight coroutines that may write out of order, so that compression uses every processor. The clusters lie in another
# order in each run; no reader of the image sees that.
_PARALLEL = ("-m", "8", "-W")


def convert(raw: Path, target: Path, compression: Compression = "zstd") -> int:
    """Write ``raw`` as a compressed qcow2 to ``target`` and return its size in bytes.

    Args:
        raw: the disk. Holes and zeros take no space in the result.
        target: a new file, usually under a temporary name, which the caller renames.

    Raises:
        NoSpaceError: the disk of ``target`` is full.
        HostError: qemu-img is missing or failed.

    No file ``target`` is left after an error.
    """
    options = f"compression_type={compression},cluster_size=65536,lazy_refcounts=off"
    argv: list[str | Path] = ["qemu-img", "convert", "-c", *_PARALLEL, "-f", "raw", "-O", "qcow2", "-o", options]
    try:
        process.run([*argv, raw, target])
    except BaseException as cause:
        target.unlink(missing_ok=True)
        if isinstance(cause, process.ProgramError) and "No space left" in cause.last_line:
            raise no_space(target, raw.stat().st_blocks * 512) from cause
        raise
    return target.stat().st_size
