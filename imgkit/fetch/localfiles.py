"""Files of ``file:`` URLs, for mirrors that are folders. They pass the same checks as downloads, and are copied.

::

    if is_local(url):
        download = copy_file(url, target, expected)
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from imgkit.errors import InputError
from imgkit.fetch.checks import Expected, MissingFileError, check_complete, check_declared, check_length, check_start
from imgkit.fetch.http import Download, Validators, temporary_beside

_CHUNK = 1 << 20
_HINT = "check the folder: it must have the layout of a mirror, with this branch and this architecture"


def is_local(url: str) -> bool:
    """Return whether a URL names a file of this computer."""
    return url.startswith("file:")


def copy_file(
    url: str,
    target: Path,
    expected: Expected,
    *,
    on_bytes: Callable[[int], object],
    cancelled: threading.Event,
) -> Download:
    """Copy the file at ``url`` to ``target``, which is replaced when the copy is complete and correct.

    Args:
        on_bytes: called with the length of each piece.
        cancelled: makes the copy give up once it is set.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file cannot be read, or is not what is expected.
        HostError: the disk is full, or ``target`` cannot be written.
    """
    with _opened(url) as source, temporary_beside(target) as (sink, temporary):
        check_declared(url, os.fstat(source.fileno()).st_size, expected)
        digest = hashlib.sha256()
        size = 0
        for piece in _pieces(url, source, cancelled):
            if not size:
                check_start(url, piece, expected)
            size += len(piece)
            check_length(url, size, expected)
            digest.update(piece)
            sink.write(piece)
            on_bytes(len(piece))
        check_complete(url, size, digest.hexdigest(), expected)
        sink.flush()
        temporary.replace(target)
    return Download(size, digest.hexdigest(), Validators())


def _opened(url: str) -> BinaryIO:
    """Open a regular file, without waiting: opening a FIFO would wait for a writer."""
    path = Path(unquote(urlsplit(url).path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError(f"{path}: is not a regular file", hint=_HINT)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise MissingFileError(f"{path}: no such file", url=url, hint=_HINT) from cause
    except OSError as cause:
        raise InputError(f"{path}: {cause.strerror}", hint=_HINT) from cause
    return os.fdopen(descriptor, "rb")


def _pieces(url: str, source: BinaryIO, cancelled: threading.Event) -> Iterator[bytes]:
    while piece := _read(url, source):
        if cancelled.is_set():
            raise InputError(f"{url}: the copy was given up")
        yield piece


def _read(url: str, source: BinaryIO) -> bytes:
    try:
        return source.read(_CHUNK)
    except OSError as cause:
        raise InputError(f"{url}: {cause.strerror}", hint=_HINT) from cause
