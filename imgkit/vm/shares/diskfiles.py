"""Measure what a guest writes to its disk: QEMU's temporary files, and a writable image.

QEMU keeps what the guest changes (``snapshot=on``) in temporary files that have no name. On Linux they are found among
the files that QEMU has open (proc(5)); elsewhere they are not measured.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from imgkit.vm.shares.quotas import exceeded, format_size


def disk_check(limit: int | None, processes: Callable[[], Sequence[int]], files: Sequence[Path]) -> Callable[[], None]:
    """Return a function that checks the quota of the disk, and raises QuotaError if it is exceeded.

    Args:
        limit: bytes that the guest may write; None for no limit.
        processes: returns the ids of the processes whose unlinked files count.
        files: files that count by what they have grown since this call.
    """
    sizes_before = {path: _bytes_on_disk(path) for path in files}

    def check() -> None:
        if limit is None:
            return
        growth = sum(max(0, _bytes_on_disk(path) - size) for path, size in sizes_before.items())
        size = unlinked_bytes(processes()) + growth
        if size > limit:
            raise exceeded(f"the guest wrote {format_size(size)} to its disk", format_size(limit), "disk")

    return check


def unlinked_bytes(processes: Sequence[int]) -> int:
    """Return the bytes on the disk of the files without a name that the processes have open; 0 if not on Linux."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in processes:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - only the names are needed
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116 - called often
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and not _is_memory(pid, name):
                        sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _is_memory(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:")  # noqa: PTH115


def process_tree(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants; elsewhere than on Linux only its own.

    The descendants count because QEMU may have been started by a wrapper.
    """
    members = [pid]
    for member in members:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                members += [int(word) for word in (task / "children").read_text().split()]
    return members


def _bytes_on_disk(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
