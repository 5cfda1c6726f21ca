"""Whom QEMU runs as. Root starts it as somebody without rights: the owner of the folder to work in, else ``nobody``.

Whatever a guest brings its QEMU to do, by the rules of 9p or by an error in it, has that user's rights and no more.
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
"""Its uid and gid where no account of that name is there."""
_NEW_USER = 0x10000000  # linux/sched.h: CLONE_NEWUSER
# linux/capability.h. To give a file away and take it back (CHOWN, DAC_OVERRIDE, FOWNER), become somebody else (SETGID,
# SETUID) and end what it runs (KILL). Containers usually have them all.
_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 5, 6, 7))

_ROOT_LIKE = ("root", "wheel", "sudo", "admin", "docker", "podman", "lxd", "incus", "incus-admin", "libvirt")
_DEVICES = ("adm", "disk", "kmem", "mem", "shadow", "tty", "tape", "input", "kvm")
_MIGHTY = frozenset(_ROOT_LIKE + _DEVICES)
"""Groups whose members can become root, read the host's disks, or what others type."""


@dataclass(frozen=True)
class Identity:
    """A user of this host. ``groups`` are the supplementary ones.

    ``namespace`` is a descriptor of a user namespace in which its uid and gid are ``inside``: the owner that the guest
    sees (:mod:`imgkit.vm.shares.idmap`). Other processes of the same user, outside of it, cannot look into one
    inside.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    namespace: int | None = None
    inside: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{_name(self.uid)} ({self.uid}:{self.gid})"

    def assume(self, libc: ctypes.CDLL) -> None:
        """Become this user, for good; for a process between fork and exec.

        Raises:
            OSError: it is not possible.
        """
        uid, gid = self.uid, self.gid
        os.setgroups(self.groups)
        if self.namespace is not None and self.inside is not None:
            if libc.setns(self.namespace, _NEW_USER) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            uid, gid = self.inside
        if libc.setresgid(gid, gid, gid) != 0 or libc.setresuid(uid, uid, uid) != 0:
            raise OSError(ctypes.get_errno(), "setresuid")

    def seen(self, namespace: int, inside: tuple[int, int]) -> Identity:
        """The same user, seen as ``inside`` by itself and by what it serves."""
        return replace(self, namespace=namespace, inside=inside)


def is_root() -> bool:
    """Whether this process is root on Linux: what it starts can give files to anybody."""
    return sys.platform == "linux" and os.geteuid() == 0


def can_switch_user() -> bool:
    """Whether this process is a root that can start programs as other users, and end them.

    Some containers' root is one by name only: without capabilities, or with no other user in its namespace. Such a
    root has nothing to give.
    """
    if not is_root():
        return False
    with suppress(OSError, ValueError, KeyError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        able = int(status["CapEff"], 16) & _CAPABILITIES == _CAPABILITIES
        return able and Path("/proc/self/setgroups").read_text().strip() == "allow"
    return False


def is_nobody(user: Identity) -> bool:
    """Whether it owns nothing that is shared: it is only there to have no rights."""
    return user.uid == _nobody().uid


def choose_user(work: Path | None, *, device: Path | None = None) -> Identity | None:
    """The user that QEMU shall run as, None for whoever this process is.

    Args:
        work: the folder to work in.
        device: the accelerator's device; whoever it is open to by its group gets that group, and no other.
    """
    if not can_switch_user():
        if is_root():
            log.debug("this root has not the capabilities to start QEMU as another user")
        return None
    status = work.stat() if work is not None else None
    chosen = _nobody() if status is None or status.st_uid == 0 else _owner(status)
    if not (_mapped("uid_map", chosen.uid) and _mapped("gid_map", chosen.gid)):
        log.debug("%s is no user of this container", chosen)
        return None
    return replace(chosen, groups=tuple(sorted({*_team(status, chosen), *_groups(device)})))


def can_open(user: Identity, path: Path) -> bool:
    """Whether ``user`` can open the file or device for reading and writing; it is tried. For root only."""
    command = ["/bin/sh", "-c", ': <>"$1"', "sh", str(path)]
    quiet = subprocess.DEVNULL
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
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
        return done.returncode == 0
    return False


def _nobody() -> Identity:
    with suppress(KeyError):
        entry = pwd.getpwnam("nobody")
        if entry.pw_uid and entry.pw_gid:
            return Identity(entry.pw_uid, entry.pw_gid)
    return Identity(NOBODY, NOBODY)


def _owner(status: os.stat_result) -> Identity:
    """With its own group, rather than the folder's: that may be one with rights that the owner lacks."""
    with suppress(KeyError):
        return Identity(status.st_uid, pwd.getpwuid(status.st_uid).pw_gid or _nobody().gid)
    return Identity(status.st_uid, status.st_gid if status.st_gid == status.st_uid else _nobody().gid)


def _team(status: os.stat_result | None, owner: Identity) -> tuple[int, ...]:
    """The group of the folder to work in, if its owner is a member: files of others in it are open to that group.

    No other group of the owner's, and none that stands for rights over the host.
    """
    if status is None or status.st_uid != owner.uid or status.st_gid in (0, owner.gid):
        return ()
    with suppress(KeyError):
        name = pwd.getpwuid(owner.uid).pw_name
        if status.st_gid in os.getgrouplist(name, owner.gid) and _group_name(status.st_gid) not in _MIGHTY:
            return (status.st_gid,)
    return ()


def _group_name(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return ""


def _groups(device: Path | None) -> tuple[int, ...]:
    with suppress(OSError):
        status = device.stat() if device is not None else None
        if status is not None and status.st_gid and status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP:
            return (status.st_gid,)
    return ()


def _mapped(name: str, number: int) -> bool:
    """Whether the user namespace that this process is in has this uid or gid (user_namespaces(7))."""
    try:
        extents = [map(int, line.split()) for line in Path("/proc/self", name).read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return any(first <= number < first + count for first, _, count in extents)


def _name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return "a user without a name"
