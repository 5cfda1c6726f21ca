"""Root's folders, as the guest sees them when they are shared.

With 9p's ``security_model=none`` the guest's kernel checks rights against the owners that the host reports. The agent
takes over the uid of whoever owns the folder it works in (docs/agentd.md), but never root's. Where this process may
(Linux, as root), QEMU gets a view of such a folder in which root and the agent (uid 1000) have changed places: an
idmapped mount (mount_setattr(2)), which is attached nowhere and gone with the last descriptor of it.

What the agent writes belongs to the folder's owner on the host, and so it does not stay set-user-id when the machine is
gone: the agent's program would have the owner's rights.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from imgkit import process

log = logging.getLogger("imgkit.vm")

AGENT = 1000
"""The agent's uid and gid (the agentd contract)."""
_IDS = 2**32 - 1  # the last one means "none"
# System calls of Linux since they have one number on all architectures (asm-generic/unistd.h); flags of linux/mount.h.
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_OPEN_TREE_CLONE, _AT_FDCWD, _AT_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, -100, 0x1000, 0x00100000
# A process in a user namespace of its own, for as long as its standard input is open.
_HOLDER = "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); sys.stdin.read()"


def exchanged(one: int, other: int) -> str:
    """A uid_map (user_namespaces(7)) that leaves every id as it is, but for two that change places."""
    low, high = sorted((one, other))
    extents = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1)]
    extents += [(high, low, 1), (high + 1, high + 1, _IDS - high - 1)] if low != high else []
    if low == high:
        extents = [(0, 0, _IDS)]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents if count > 0)


@contextmanager
def as_agents(folder: Path) -> Iterator[int | None]:
    """A descriptor of root's ``folder`` in which root is the agent, and the other way round.

    None where that is not possible, and for folders of other owners, whom the agent itself becomes.
    """
    status = folder.stat()
    if status.st_uid != 0 or not is_root():
        yield None
        return
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_mapped(folder, status))
        except OSError as cause:
            log.debug("%s: its owner cannot be mapped: %s", folder, cause)
            descriptor = None
        yield descriptor


def is_root() -> bool:
    """Whether this process is root on Linux: what it starts can give files to anybody."""
    return sys.platform == "linux" and os.geteuid() == 0


def drop_special_bits(folder: Path, *, since: float) -> list[Path]:
    """Take set-user-id and set-group-id away from files that changed after ``since`` (Unix time); what was changed."""
    found = []
    for top, _, names, descriptor in os.fwalk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(name, dir_fd=descriptor)
                special = stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID)
                if special and status.st_ctime >= since - 1:
                    _chmod(name, stat.S_IMODE(status.st_mode) & 0o1777, descriptor)
                    found.append(Path(top, name))
    return found


def _chmod(name: str, mode: int, folder: int) -> None:
    """Of the file itself: a link that takes its place meanwhile is an OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


@contextmanager
def _mapped(folder: Path, status: os.stat_result) -> Iterator[int]:
    """Raises OSError: the kernel, the filesystem or our rights do not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _call(libc, _OPEN_TREE, _AT_FDCWD, os.fsencode(folder), flags)
    try:
        with _namespace(status) as namespace:
            attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _call(libc, _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        yield tree
    finally:
        os.close(tree)


@contextmanager
def _namespace(status: os.stat_result) -> Iterator[int]:
    """A descriptor of a user namespace with the exchange as its maps."""
    argv = [sys.executable, "-I", "-S", "-c", _HOLDER]
    with process.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        if holder.stdout is None or holder.stdout.readline() != b"0\n":
            raise OSError("no user namespace can be made")
        proc = Path(f"/proc/{holder.pid}")
        (proc / "uid_map").write_text(exchanged(status.st_uid, AGENT))
        (proc / "gid_map").write_text(exchanged(status.st_gid, AGENT))
        descriptor = os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes) -> int:
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
