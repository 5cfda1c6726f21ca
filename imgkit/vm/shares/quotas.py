"""Quotas: how much of the host's disk, and how much time, a guest may use.

What a guest writes takes disk space of the host in three places: files in the request share, files in the other folders
that it may write to, and a temporary file in which QEMU keeps what the guest changes on its disk.
:mod:`imgkit.vm.shares.monitor` measures them and ends a machine that exceeds its quotas::

    quotas = parse(["share=10G", "time=600"])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imgkit.errors import UsageError
from imgkit.vm.failures import QuotaError

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class FolderQuota:
    """What a guest may add to a folder while it runs.

    Attributes:
        size: bytes on the host's disk, or None for no limit.
        files: number of files and folders, or None for no limit.
    """

    size: int | None = None
    files: int | None = None


@dataclass(frozen=True)
class Quotas:
    """The quotas of a machine.

    Attributes:
        ipc: quota of the request share. The default has room for a stream of the maximum size.
        share: quota of each other share that the guest may write to. Whatever is added to the folder counts, whoever
            adds it.
        disk: bytes that the guest may change on its disk, or None for no limit. This is measured on Linux only, where
            QEMU's temporary files are found in /proc.
        seconds: timeout of every request, or None. A request with a shorter timeout keeps it.
    """

    ipc: FolderQuota = FolderQuota(2 << 30, 10_000)
    share: FolderQuota = FolderQuota(64 << 30, 2_000_000)
    disk: int | None = 64 << 30
    seconds: float | None = None

    def request_timeout(self, timeout: float | None) -> tuple[float | None, str]:
        """Return the timeout of a request whose own is ``timeout`` (None for no limit), and a hint how to raise it."""
        if self.seconds is None or (timeout is not None and timeout <= self.seconds):
            return timeout, "a longer timeout= of the request"
        return self.seconds, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"


def parse(words: Sequence[str]) -> Quotas:
    """Parse the arguments of ``--quota``, such as ``share=10G``, ``ipc-files=100``, ``disk=none`` and ``time=600``.

    Raises:
        UsageError: a name is unknown, or a value is neither ``none`` nor a number of at least 1.
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


def exceeded(usage: str, limit: str, option: str) -> QuotaError:
    """Return the error for a quota that is exceeded.

    Args:
        usage: what the guest took, as a sentence without its end.
        limit: what it may take.
        option: name of the quota in the argument of ``--quota``.
    """
    hint = f"--quota {option}=… allows more, --quota {option}=none removes the limit"
    return QuotaError(f"{usage}, and may add {limit}", hint=hint)


def format_size(size: int) -> str:
    """Format a number of bytes for messages: in GiB with one decimal, or in whole MiB, rounded up."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{-(-size // (1 << 20))} MiB"
