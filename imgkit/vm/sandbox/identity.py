"""Choose the user that QEMU runs as, and switch to it.

If imgkit runs as root, it starts QEMU as a user with fewer rights: the owner of the folder to work in, or ``nobody``.
Whatever a guest makes QEMU do, by the rules of 9p or by an error in QEMU, is then limited to the rights of that user::

    user = choose_user(Path("work"))
    if user is not None:
        user.assume(libc)  # in the child process
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import pwd
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

log = logging.getLogger("imgkit.vm")

NOBODY = 65534
"""The uid and gid of ``nobody`` on hosts that have no account of that name."""
_NEW_USER = 0x10000000  # linux/sched.h: CLONE_NEWUSER
# linux/capability.h. Capabilities for changing the owner of files (CHOWN, DAC_OVERRIDE, FOWNER), for switching to
# another user (SETGID, SETUID), and for ending its processes (KILL). Containers usually have them all.
_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 5, 6, 7))

_ROOT_LIKE = ("root", "wheel", "sudo", "admin", "docker", "podman", "lxd", "incus", "incus-admin", "libvirt")
_DEVICES = ("adm", "disk", "kmem", "mem", "shadow", "tty", "tape", "input", "kvm")
_PRIVILEGED_GROUPS = frozenset(_ROOT_LIKE + _DEVICES)
"""Groups whose members can become root, or read the host's disks or the input of other users."""


@dataclass(frozen=True)
class Identity:
    """A user of this host.

    Attributes:
        uid, gid: the user's ids on the host.
        groups: ids of the supplementary groups.
        namespace: descriptor of the user namespace that QEMU enters (:mod:`imgkit.vm.shares.idmap`), or None.
        inside: uid and gid in that namespace, which are the owner that the guest sees; None without a namespace.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    namespace: int | None = None
    inside: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Return the name and the ids, for messages."""
        return f"{_name(self.uid)} ({self.uid}:{self.gid})"

    def assume(self, libc: ctypes.CDLL) -> None:
        """Switch this process to the user for ever; to be called between fork and exec.

        Raises:
            OSError: this process lacks the rights, or the namespace cannot be entered.
        """
        uid, gid = self.uid, self.gid
        os.setgroups(self.groups)
        if self.namespace is not None and self.inside is not None:
            if libc.setns(self.namespace, _NEW_USER) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            uid, gid = self.inside
        if libc.setresgid(gid, gid, gid) != 0 or libc.setresuid(uid, uid, uid) != 0:
            raise OSError(ctypes.get_errno(), "setresuid")

    def in_namespace(self, namespace: int, inside: tuple[int, int]) -> Identity:
        """Return the same user with a namespace, a descriptor, in which its uid and gid are ``inside``."""
        return replace(self, namespace=namespace, inside=inside)


def is_root() -> bool:
    """Return whether this process is root on Linux, so that what it starts could give files to any user."""
    return sys.platform == "linux" and os.geteuid() == 0


def can_switch_user() -> bool:
    """Return whether this process is root and can start programs as other users, and end them.

    In some containers root has no capabilities, or there is no other user in its namespace. Then QEMU runs as root, but
    has no more rights than root of the container.
    """
    if not is_root():
        return False
    with suppress(OSError, ValueError, KeyError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        capable = int(status["CapEff"], 16) & _CAPABILITIES == _CAPABILITIES
        return capable and Path("/proc/self/setgroups").read_text().strip() == "allow"
    return False


def is_nobody(user: Identity) -> bool:
    """Return whether ``user`` is ``nobody``, the account that owns no files."""
    return user.uid == _nobody().uid


def choose_user(work: Path | None, *, device: Path | None = None) -> Identity | None:
    """Choose the user that QEMU runs as.

    Args:
        work: the folder to work in, or None.
        device: the device of the accelerator. If its group may read and write it, the user gets that group.

    Returns:
        The owner of ``work``, or ``nobody`` if that is root or there is no such folder; None for the user of this
        process, which is not root or cannot switch to another user.
    """
    if not can_switch_user():
        if is_root():
            log.debug("root lacks the capabilities here to start QEMU as another user")
        return None
    status = work.stat() if work is not None else None
    user = _nobody() if status is None or status.st_uid == 0 else _owner(status)
    if not (_is_mapped("uid_map", user.uid) and _is_mapped("gid_map", user.gid)):
        log.debug("%s is no user of this container", user)
        return None
    return replace(user, groups=tuple(sorted({*_team_group(status, user), *_device_group(device)})))


def can_open(user: Identity, path: Path) -> bool:
    """Return whether ``user`` can open the file or device for reading and writing, by trying it. Only root may ask."""
    command = ["/bin/sh", "-c", ': <>"$1"', "sh", str(path)]
    quiet = subprocess.DEVNULL
    with suppress(OSError, subprocess.TimeoutExpired):
        completed = subprocess.run(
            command,
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            cwd="/",
            timeout=10,
            check=False,
        )
        return completed.returncode == 0
    return False


def _nobody() -> Identity:
    with suppress(KeyError):
        entry = pwd.getpwnam("nobody")
        if entry.pw_uid and entry.pw_gid:
            return Identity(entry.pw_uid, entry.pw_gid)
    return Identity(NOBODY, NOBODY)


def _owner(status: os.stat_result) -> Identity:
    """Return the owner of a folder, with its own primary group: the folder's group may have rights that it lacks."""
    with suppress(KeyError):
        return Identity(status.st_uid, pwd.getpwuid(status.st_uid).pw_gid or _nobody().gid)
    return Identity(status.st_uid, status.st_gid if status.st_gid == status.st_uid else _nobody().gid)


def _team_group(status: os.stat_result | None, owner: Identity) -> tuple[int, ...]:
    """Return the group of the folder to work in, if the owner is a member of it.

    The owner has access to other users' files in the folder by this group. QEMU gets none of the owner's other groups,
    and no group that has rights over the host.
    """
    if status is None or status.st_uid != owner.uid or status.st_gid in (0, owner.gid):
        return ()
    with suppress(KeyError):
        name = pwd.getpwuid(owner.uid).pw_name
        if status.st_gid in os.getgrouplist(name, owner.gid) and _group_name(status.st_gid) not in _PRIVILEGED_GROUPS:
            return (status.st_gid,)
    return ()


def _group_name(gid: int) -> str | None:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return None


def _device_group(device: Path | None) -> tuple[int, ...]:
    """Return the group of a device that its group may read and write, unless that is root's."""
    with suppress(OSError):
        status = device.stat() if device is not None else None
        if status is not None and status.st_gid and status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP:
            return (status.st_gid,)
    return ()


def _is_mapped(name: str, number: int) -> bool:
    """Return whether the user namespace of this process has the uid or gid ``number`` (user_namespaces(7))."""
    try:
        extents = [tuple(map(int, line.split())) for line in Path("/proc/self", name).read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return any(first <= number < first + count for first, _, count in extents)


def _name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return "a user without a name"
