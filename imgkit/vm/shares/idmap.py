"""Root's folders, as QEMU and its guest see them when they are shared.

With 9p's ``security_model=none`` the guest's kernel checks rights against the owners that the host reports, and what is
written belongs to whoever runs QEMU. The agent takes over the uid of the owner of the folder it works in
(docs/agentd.md), but never root's, and QEMU is never root where that can be helped (:mod:`imgkit.vm.sandbox.identity`).

Where this process may (Linux, as root), a QEMU that is nobody gets a view of root's folders in which root and nobody
have changed places: an idmapped mount (mount_setattr(2)), attached nowhere and gone with the last descriptor of it.
QEMU is in a user namespace, in which nobody, which is an account of the guest as well, is uid 1000, the agent.
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
_IDS = 2**32 - 1  # the last one means "none"
# System calls of Linux since they have one number on all architectures (asm-generic/unistd.h); flags of linux/mount.h.
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_OPEN_TREE_CLONE, _AT_FDCWD, _AT_EMPTY_PATH = 1, -100, 0x1000
_RDONLY, _NOSUID, _NODEV, _IDMAP = 1, 2, 4, 0x00100000  # MOUNT_ATTR_…
# A process in a user namespace of its own, for as long as its standard input is open.
_HOLDER = "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); sys.stdin.read()"


def swapped_ids(one: int, other: int) -> str:
    """A uid_map (user_namespaces(7)) that leaves every id as it is, but for two that change places."""
    low, high = sorted((one, other))
    extents = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1)]
    extents += [(high, low, 1), (high + 1, high + 1, _IDS - high - 1)] if low != high else []
    if low == high:
        extents = [(0, 0, _IDS)]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents if count > 0)


@contextmanager
def in_user_namespace(user: Identity) -> Iterator[Identity]:
    """``user`` in a user namespace of its own, in which nobody is uid and gid 1000; as it is, where there is none.

    What other processes of that user may do to one inside ends with signals: they have no rights in the namespace, so
    they cannot read its memory, or use what it holds open.
    """
    inside = (AGENT, AGENT) if is_nobody(user) else (user.uid, user.gid)
    with ExitStack() as stack:
        try:
            namespace = stack.enter_context(_namespace((user.uid, inside[0]), (user.gid, inside[1])))
            user = user.seen(namespace, inside)
        except OSError as cause:
            log.debug("%s has no user namespace of its own: %s", user, cause)
        yield user


@contextmanager
def idmapped_view(folder: Path, user: Identity, *, read_only: bool = False) -> Iterator[int | None]:
    """A descriptor of root's ``folder`` in which root is ``user``, and the other way round.

    None where that is not possible, and for folders of other owners: of those ``user`` may do what their modes say. The
    same goes for a user who is somebody: root's rights are lent to nobody only, and not without a namespace.
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
    """Raises OSError: the kernel, the filesystem or our rights do not allow it."""
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
    """A descriptor of a user namespace in which two uids and two gids have changed places."""
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
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
