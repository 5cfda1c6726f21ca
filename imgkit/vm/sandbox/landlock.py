"""Restrict the files that a process may open, with Landlock (Linux; landlock(7)).

Landlock needs no privileges. A rule names a folder or a file by a descriptor and applies to everything below it, even
if that is moved. Files that a process has open already are not affected::

    with ruleset(libc, [(Path("/usr"), RUN), (work, WRITE)], tcp=False) as descriptor:
        restrict(libc, descriptor)  # in the child process

imgkit makes the three system calls itself, because the package ``landlock`` on PyPI has no rules for the network, and
its releases are marked as previews.
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
_REMOVE = 1 << 4 | 1 << 5
_MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # folders, files, sockets, FIFOs, links; not device nodes (6, 11)
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_ALL = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # by the first version that has them
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL

READ = _READ_FILE | _READ_DIR
"""Rights to read files and to list folders."""
RUN = READ | _EXECUTE
"""Rights to read and to execute."""
WRITE = READ | _WRITE_FILE | _REMOVE | _MAKE | _REFER | _TRUNCATE
"""Rights to read, change, create, move and remove, except device nodes."""
DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL
"""Rights to use a device."""

_TCP = 1 << 0 | 1 << 1  # bind and connect; since version 4
_SCOPES = 1 << 0 | 1 << 1  # abstract sockets of, and signals to, processes outside; since version 6

MINIMUM = 2
"""The first version that can allow files to be moved from one folder to another."""


def version(libc: ctypes.CDLL) -> int:
    """Return the version of the kernel's Landlock interface; 0 if there is none, or if it may not be used."""
    arguments = (ctypes.c_long(_CREATE), None, ctypes.c_long(0), ctypes.c_long(_VERSION))
    return max(0, int(libc.syscall(*arguments))) if sys.platform == "linux" else 0


@contextmanager
def ruleset(
    libc: ctypes.CDLL, rules: Iterable[tuple[Path | int, int]], *, tcp: bool, unix: bool = False
) -> Iterator[int | None]:
    """Make a set of rules, which :func:`restrict` enforces.

    Args:
        libc: the C library, for its function ``syscall``.
        rules: pairs of a path, or the descriptor of a file or folder, and the rights to it, such as :data:`READ`. Paths
            that do not exist, or may not be opened, are left out.
        tcp: whether TCP connections may be made and accepted.
        unix: whether abstract Unix sockets of other programs may be reached.

    Yields:
        A descriptor of the set; None if the kernel's version is less than :data:`MINIMUM`.

    Raises:
        OSError: the kernel refuses a rule.
    """
    abi = version(libc)
    if abi < MINIMUM:
        yield None
        return
    handled = _ALL[min(abi, max(_ALL))]
    attributes = struct.pack("=QQQ", handled, 0 if tcp else _TCP, _SCOPES & ~int(unix))
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    descriptor = _call(libc, _CREATE, attributes[:size], size, 0)
    try:
        for target, rights in rules:
            _add(libc, descriptor, target, rights & handled)
        yield descriptor
    finally:
        os.close(descriptor)


def _add(libc: ctypes.CDLL, ruleset: int, target: Path | int, rights: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), _opened(target) as parent:
        if not os.path.isdir(f"/proc/self/fd/{parent}"):  # noqa: PTH112 - the path of a descriptor
            rights &= _ON_FILES  # the kernel refuses rights of folders for files
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, parent), 0)


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
    """Enforce a set of rules on this process and on all that it will start. It cannot be undone.

    The process must have set ``no_new_privs`` (:func:`imgkit.vm.sandbox.seccomp.forbid_new_privileges`).

    Raises:
        OSError: the kernel refuses.
    """
    _call(libc, _RESTRICT, ruleset, 0)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes) -> int:
    """Make a system call. Raises OSError if it fails."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        cause = ctypes.get_errno()
        raise OSError(cause, f"landlock: {errno.errorcode.get(cause, cause)}")
    return result
