"""Convert the raw disk that an engine has written to another format: a compressed qcow2 file, or a foreign one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard, get_args

from imgkit.disk.diskimage import Format
from imgkit.engines.engineerrors import no_space
from imgkit.engines.interface import Compression
from imgkit.host import process
from imgkit.recipe import ImageFormat

# Eight coroutines that may write out of order, so that compression uses every processor. The clusters lie in another
# order in each run; no reader of the image sees that.
_PARALLEL = ("-m", "8", "-W")

MAX_VHD = 0xFF00_0000 * 512
"""The most bytes of a disk in a VHD, 2,040 GiB: Hyper-V and QEMU (``block/vpc.c``) refuse larger ones."""

# QEMU's driver, and its options. VMware's servers import stream-optimized files only, where "lsilogic" stands for any
# SCSI controller. Azure takes a VHD only if its size is fixed and exactly that of the disk, which is also what
# force_size is for: without it QEMU rounds the size to cylinders.
_FOREIGN: Mapping[ImageFormat, tuple[str, str]] = MappingProxyType(
    {
        "vmdk": ("vmdk", "subformat=streamOptimized,adapter_type=lsilogic"),
        "vhdx": ("vhdx", "subformat=dynamic"),
        "vhd": ("vpc", "subformat=fixed,force_size=on"),
    }
)


def is_own(format: ImageFormat) -> TypeGuard[Format]:
    """Return whether engines write files of this format themselves."""
    return format in get_args(Format)


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
    return _convert(["-c", *_PARALLEL, "-f", "raw", "-O", "qcow2", "-o", options], raw, target)


def convert_foreign(raw: Path, target: Path, format: ImageFormat) -> int:
    """Write ``raw`` in a foreign format to ``target`` and return its size in bytes.

    Two runs differ in a few bytes: these formats have random identifiers in their headers.

    Args:
        raw: the disk.
        target: a new file.
        format: one that engines do not write themselves.

    Raises:
        NoSpaceError, HostError: as for :func:`convert`.

    No file ``target`` is left after an error.
    """
    driver, options = _FOREIGN[format]
    return _convert(["-f", "raw", "-O", driver, "-o", options], raw, target)


def _convert(words: Sequence[str], raw: Path, target: Path) -> int:
    try:
        process.run(["qemu-img", "convert", *words, raw, target])
    except BaseException as cause:
        target.unlink(missing_ok=True)
        if isinstance(cause, process.ProgramError) and "No space left" in cause.last_line:
            raise no_space(target, raw.stat().st_blocks * 512) from cause
        raise
    return target.stat().st_size
