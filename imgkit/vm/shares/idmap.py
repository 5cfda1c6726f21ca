"""Share folders of root with a QEMU that does not run as root, by idmapped mounts and user namespaces.

With 9p's ``security_model=none`` the guest's kernel checks permissions against the owners that the host reports, and
what the guest writes belongs to the user that runs QEMU. In the guest, the agent takes over the uid of the owner of the
folder it works in (docs/reference/agentd.md), but never root's. QEMU does not run as root where that can be avoided
(:mod:`imgkit.vm.sandbox.identity`).

If this process is root on Linux and QEMU runs as ``nobody``, QEMU gets a view of root's folders in which root and
nobody have changed places: an idmapped mount (mount_setattr(2)), which is attached nowhere and disappears with its last
descriptor. QEMU itself runs in a user namespace in which nobody is uid 1000, the agent's, because nobody is an account
of the guest as well::

    with in_user_namespace(nobody) as user, idmapped_view(folder, user) as descriptor:
        ...  # share /proc/self/fd/DESCRIPTOR instead of the folder if it is not None
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgkit.host import process
from imgkit.vm.sandbox.identity import Identity, can_switch_user, is_nobody

log = logging.getLogger("imgkit.vm")

AGENT = 1000
"""The agent's uid and gid (the agentd contract)."""
_IDS = 2**32 - 1  # number of ids; the last 32-bit number means "no id"
# Numbers of system calls that are the same on all architectures (asm-generic/unistd.h), and flags of linux/mount.h.
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_OPEN_TREE_CLONE, _AT_FDCWD, _AT_EMPTY_PATH = 1, -100, 0x1000
_RDONLY, _NOSUID, _NODEV, _IDMAP = 1, 2, 4, 0x00100000  # MOUNT_ATTR_…
# Source of a process that makes a user namespace and stays in it until its standard input is closed.
_HOLDER = "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); sys.stdin.read()"


def swapped_ids(first: int, second: int) -> str:
    """Return the uid_map (user_namespaces(7)) in which two ids have changed places and all others are unchanged."""
    low, high = sorted((first, second))
    extents = [(0, 0, _IDS)]
    if low != high:
        extents = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1)]
        extents += [(high, low, 1), (high + 1, high + 1, _IDS - high - 1)]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents if count > 0)


@contextmanager
def in_user_namespace(user: Identity) -> Iterator[Identity]:
    """Put ``user`` into a new user namespace, in which nobody has uid and gid 1000 and other users keep their ids.

    Other processes of the same user have no capabilities in the namespace. They can send signals to a process in it,
    but cannot read its memory or use its open files.

    Yields:
        The user in the namespace; ``user`` itself where no namespace can be made.
    """
    inside = (AGENT, AGENT) if is_nobody(user) else (user.uid, user.gid)
    with ExitStack() as stack:
        try:
            namespace = stack.enter_context(_namespace((user.uid, inside[0]), (user.gid, inside[1])))
            user = user.in_namespace(namespace, inside)
        except OSError as cause:
            log.debug("%s has no user namespace of its own: %s", user, cause)
        yield user


@contextmanager
def idmapped_view(folder: Path, user: Identity, *, read_only: bool = False) -> Iterator[int | None]:
    """Mount a view of root's ``folder`` in which root and ``user`` have changed places.

    Root's rights to the folder are given to ``nobody`` only, and only to a ``nobody`` in its own user namespace. Any
    other user may do in the folder what its owner and mode allow, and so may everybody in folders of other owners.

    Args:
        folder: the folder.
        user: the user that QEMU runs as.
        read_only: whether the view may not be written to.

    Yields:
        A descriptor of the view, or None if there is none, for one of these reasons or because the kernel refuses.
    """
    status = folder.stat()
    if status.st_uid != 0 or not can_switch_user() or user.namespace is None or not is_nobody(user):
        yield None
        return
    with ExitStack() as stack:
        try:
            namespace = stack.enter_context(_namespace((0, user.uid), (status.st_gid, user.gid)))
            descriptor = stack.enter_context(_mapped(folder, namespace, read_only=read_only))
        except OSError as cause:
            log.debug("%s: its owner cannot be mapped: %s", folder, cause)
            descriptor = None
        yield descriptor


@contextmanager
def _mapped(folder: Path, namespace: int, *, read_only: bool) -> Iterator[int]:
    """Yield a descriptor of an idmapped mount of ``folder``, with the map of a user namespace.

    Raises:
        OSError: the kernel or the filesystem does not support it, or this process lacks the rights.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    tree = _call(libc, _OPEN_TREE, _AT_FDCWD, os.fsencode(folder), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        attributes = _IDMAP | _NOSUID | _NODEV | (_RDONLY if read_only else 0)
        packed = struct.pack("=QQQQ", attributes, 0, 0, namespace)
        _call(libc, _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, packed, len(packed))
        yield tree
    finally:
        os.close(tree)


@contextmanager
def _namespace(uids: tuple[int, int], gids: tuple[int, int]) -> Iterator[int]:
    """Yield a descriptor of a new user namespace in which two uids, and two gids, have changed places.

    Raises:
        OSError: the namespace cannot be made.
    """
    argv = [sys.executable, "-I", "-S", "-c", _HOLDER]
    with process.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        if holder.stdout is None or holder.stdout.readline() != b"0\n":
            raise OSError("no user namespace can be made")
        proc = Path(f"/proc/{holder.pid}")
        (proc / "uid_map").write_text(swapped_ids(*uids))
        (proc / "gid_map").write_text(swapped_ids(*gids))
        descriptor = os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes) -> int:
    """Make a system call. Raises OSError if it fails."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
