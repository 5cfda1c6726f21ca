"""How much of the host's disk, and of time, a guest may take.

What a guest writes ends up on the host: files in the request share and in the folders that it may write to, and a
temporary file of QEMU's for what it changes on its disk. :mod:`imgkit.vm.shares.monitor` measures it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imgkit.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class FolderQuota:
    """Bytes on the disk, and files and folders; None is no limit. Only what is added after the start counts."""

    size: int | None = None
    files: int | None = None


@dataclass(frozen=True)
class Quotas:
    """What a machine may take.

    Attributes:
        ipc: the request share; a stream of :data:`imgkit.vm.agent.requests.MAX_STREAM` fits in.
        share: each other share that the guest may write to, whoever adds to it.
        disk: bytes of what the guest changes on its disk (Linux only, as QEMU's files are found in /proc).
        seconds: of one request, where it has no shorter time of its own.
    """

    ipc: FolderQuota = FolderQuota(2 << 30, 10_000)
    share: FolderQuota = FolderQuota(64 << 30, 2_000_000)
    disk: int | None = 64 << 30
    seconds: float | None = None


def parse(words: Sequence[str]) -> Quotas:
    """Quotas from words such as ``share=10G``, ``ipc-files=100``, ``disk=none``, ``time=600``.

    Raises:
        UsageError: an unknown name, something that is no number, or 0: nothing gets by with nothing.
    """
    quotas = Quotas()
    for word in words:
        name, _, value = word.partition("=")
        if name in ("ipc", "share"):
            quotas = replace(quotas, **{name: replace(getattr(quotas, name), size=_size(word, value))})
        elif name in ("ipc-files", "share-files"):
            area = name.removesuffix("-files")
            quotas = replace(quotas, **{area: replace(getattr(quotas, area), files=_size(word, value))})
        elif name == "disk":
            quotas = replace(quotas, disk=_size(word, value))
        elif name == "time":
            quotas = replace(quotas, seconds=_size(word, value))
        else:
            raise UsageError(f"--quota {word}: no such quota", hint="ipc, ipc-files, share, share-files, disk, time")
    return quotas


def _size(word: str, value: str) -> int | None:
    if value == "none":
        return None
    match = _SIZE.fullmatch(value)
    if match is None or (match[2] and not word.startswith(("ipc=", "share=", "disk="))):
        hint = "such as share=10G, share-files=5000, time=600 (seconds), disk=none"
        raise UsageError(f"--quota {word}: not a number", hint=hint)
    size = int(match[1]) << " KMGT".index(match[2].upper() or " ") * 10
    if not size:
        raise UsageError(f"--quota {word}: at least 1", hint="none is no limit; --share TAG=DIR:ro is for reading only")
    return size


def format_size(size: int) -> str:
    """``size`` bytes for people."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{-(-size // (1 << 20))} MiB"
