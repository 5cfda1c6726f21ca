"""Landlock: a process that may open only the files that were named beforehand (Linux; landlock(7)).

It needs no privileges. A rule names a folder or a file by a descriptor, and is about all that is below it, also when
that is moved. What a process holds open already stays open.

The package of that name on PyPI knows no rules for the network, and its releases are marked as previews; three system
calls do not make up for that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # asm-generic/unistd.h
_VERSION, _PATH_BENEATH = 1, 1  # linux/landlock.h, as all that follows

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE = 1 << 4 | 1 << 5  # device nodes, 6 and 11, nobody gets
_MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # folders, files, sockets, FIFOs, links
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_ALL = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # by the first version that has them
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL

READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
WRITE = READ | _WRITE_FILE | _REMOVE | _MAKE | _REFER | _TRUNCATE
DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL

_TCP = 1 << 0 | 1 << 1  # bind and connect; since version 4
_SCOPES = 1 << 0 | 1 << 1  # abstract sockets of others, signals to others; since version 6

MINIMUM = 2
"""The first version in which files may be moved from one folder to another at all."""


def version(libc: ctypes.CDLL) -> int:
    """The version of this kernel's interface; 0 where it has none, or does not let us use it."""
    asked = (ctypes.c_long(_CREATE), None, ctypes.c_long(0), ctypes.c_long(_VERSION))
    return max(0, int(libc.syscall(*asked))) if sys.platform == "linux" else 0


@contextmanager
def ruleset(
    libc: ctypes.CDLL, rules: Iterable[tuple[Path | int, int]], *, tcp: bool, unix: bool = False
) -> Iterator[int | None]:
    """A descriptor of a set of rules, to be put into force by :func:`restrict`; None where the kernel has too little.

    Args:
        rules: (path, or descriptor of a file or folder; rights: :data:`READ` …). What is not there is left out.
        tcp: whether TCP connections may be made and accepted.
        unix: whether sockets of other programs with abstract names may be reached.

    Raises:
        OSError: the kernel refuses a rule.
    """
    known = version(libc)
    if known < MINIMUM:
        yield None
        return
    handled = _ALL[min(known, max(_ALL))]
    scopes = 0 if known < 6 else _SCOPES & ~int(unix)
    net = _TCP if known >= 4 and not tcp else 0
    attributes = struct.pack("=QQQ", handled, net, scopes)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    descriptor = _call(libc, _CREATE, attributes[:size], size, 0)
    try:
        for target, rights in rules:
            _add(libc, descriptor, target, rights & handled)
        yield descriptor
    finally:
        os.close(descriptor)


def _add(libc: ctypes.CDLL, ruleset: int, target: Path | int, rights: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), _opened(target) as beneath:
        if not os.path.isdir(f"/proc/self/fd/{beneath}"):  # noqa: PTH112 - of a descriptor
            rights &= _ON_FILES
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0)


@contextmanager
def _opened(target: Path | int) -> Iterator[int]:
    if isinstance(target, int):
        yield target
        return
    descriptor = os.open(target, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def restrict(libc: ctypes.CDLL, ruleset: int) -> None:
    """Confine this process, which must have given up new privileges, and all that it will start, for good.

    Raises:
        OSError: the kernel refuses.
    """
    _call(libc, _RESTRICT, ruleset, 0)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes) -> int:
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        cause = ctypes.get_errno()
        raise OSError(cause, f"landlock: {errno.errorcode.get(cause, cause)}")
    return result
