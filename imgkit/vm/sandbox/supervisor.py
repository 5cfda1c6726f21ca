"""Supervise QEMU's seccomp filter: decide whether a call may set the set-group-id bit. Folders may have it, files not.

A team's folder has the set-group-id bit, so that what is created in it belongs to the team. Linux' 9p client requests
the same bit for every folder that is created in such a folder. A filter sees the bit, but not whether the call is about
a folder or a file. So it suspends the call and notifies this process (seccomp_unotify(2)), which opens the very object
by a descriptor, checks that it is a folder, and changes the mode itself. QEMU's own call is never executed, so the
object cannot be exchanged between the check and the change. Where there is any doubt, the call fails with EPERM::

    channel = ListenerChannel()
    ...  # the child process applies the filter and calls channel.send(listener)
    with supervising(channel.receive(), Supervisor(table, user)):
        ...  # QEMU runs
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import re
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.vm.sandbox.identity import Identity, can_switch_user
from imgkit.vm.sandbox.seccomp import SyscallTable

log = logging.getLogger("imgkit.vm")

# linux/seccomp.h: struct seccomp_notif, which includes struct seccomp_data; struct seccomp_notif_resp; their ioctls.
_NOTIFICATION, _RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x80082102  # the last is the old number, which all kernels accept
_OWN_DESCRIPTOR = re.compile(rb"/proc/self/fd/([0-9]{1,7})")
_NAME = re.compile(rb"[^/\0]{1,255}")
_MAX_PATH = 256  # bytes of a path that are read from memory
_JOIN_TIMEOUT = 5.0  # seconds for the thread to end
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_STATUS = Path("/proc/self/status")
_SYS_PTRACE = 1 << 19  # linux/capability.h
_PATH = getattr(os, "O_PATH", 0) | os.O_CLOEXEC


@dataclass(frozen=True)
class Supervisor:
    """Decides on the calls of one QEMU.

    Attributes:
        calls: numbers of the system calls of this architecture.
        user: the user that QEMU runs as, or None for the user of this process. Only what this user could do is done.
    """

    calls: SyscallTable
    user: Identity | None

    def decide(self, pid: int, number: int, arguments: tuple[int, ...], valid: Callable[[], bool]) -> int:
        """Execute a call that changes a mode if it is about a folder.

        Args:
            pid: id of the thread that made the call.
            number: number of the system call.
            arguments: its six arguments.
            valid: returns whether the thread still waits for the decision. Otherwise its id may be another thread's.

        Returns:
            0, or the number of the error with which the call fails.
        """
        mode = arguments[dict(self.calls.modes)[number]] & 0o7777
        try:
            descriptor = self._open_target(pid, number, arguments)
        except (OSError, ValueError):
            return errno.EPERM
        try:
            status = os.fstat(descriptor)
            if not valid() or not stat.S_ISDIR(status.st_mode) or mode & stat.S_ISUID:
                return errno.EPERM
            if self.user is not None and status.st_uid != self.user.uid:
                return errno.EPERM
            Path(f"/proc/self/fd/{descriptor}").chmod(mode if self._keeps_group_bit(status) else mode & ~stat.S_ISGID)
        except OSError as error:
            return error.errno or errno.EPERM
        finally:
            os.close(descriptor)
        return 0

    def _keeps_group_bit(self, status: os.stat_result) -> bool:
        """Return whether the user may set set-group-id; otherwise the kernel would silently clear it (chmod(2))."""
        if self.user is None or status.st_mode & stat.S_ISGID:
            return True
        return status.st_gid in (self.user.gid, *self.user.groups)

    def _open_target(self, pid: int, number: int, arguments: tuple[int, ...]) -> int:
        """Open what the call is about (O_PATH).

        Raises:
            OSError: it cannot be opened.
            ValueError: the path is neither a single name nor that of a descriptor of QEMU.
        """
        index = dict(self.calls.modes)[number]
        if number == self.calls.fchmod:
            return os.open(f"/proc/{pid}/fd/{arguments[0] & 0x7FFFFFFF}", _PATH)
        text = _read_string(pid, arguments[index - 1])
        by_descriptor = _OWN_DESCRIPTOR.fullmatch(text)
        if by_descriptor is not None:
            return os.open(f"/proc/{pid}/fd/{int(by_descriptor[1])}", _PATH)
        if index < 2 or not _NAME.fullmatch(text) or text == b"..":  # chmod takes no descriptor of a folder
            raise ValueError(text)
        folder = os.open(f"/proc/{pid}/fd/{arguments[0] & 0x7FFFFFFF}", _PATH | os.O_DIRECTORY)
        try:
            return os.open(text, _PATH | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)


def _read_string(pid: int, address: int) -> bytes:
    """Read a string from another process's memory. It is read once, so it does not matter if it changes later."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(_MAX_PATH).partition(b"\0")[0]


class ListenerChannel:
    """Carries the descriptor of a filter's notifications from the process that becomes QEMU to this process."""

    def __init__(self) -> None:
        """Connect the two ends. The child process inherits them by the fork."""
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def send(self, listener: int) -> None:
        """Send the descriptor; called by the process that becomes QEMU."""
        socket.send_fds(self._sender, [b"."], [listener])

    def receive(self) -> int | None:
        """Return the descriptor after QEMU has been started; None if the child process sent none."""
        self._sender.close()
        with suppress(OSError):
            descriptors = socket.recv_fds(self._receiver, 1, 1)[1]
            return descriptors[0] if descriptors else None
        return None

    def close(self) -> None:
        """Close both ends. They may be closed already."""
        self._receiver.close()
        self._sender.close()


@contextmanager
def supervising(listener: int | None, supervisor: Supervisor) -> Iterator[None]:
    """Respond to notifications during the block, in a thread. Later calls of this kind fail with ENOSYS.

    Args:
        listener: descriptor of the notifications, which is closed at the end; None does nothing.
        supervisor: decides on the calls.
    """
    if listener is None:
        yield
        return
    wake, stop = os.pipe()
    thread = threading.Thread(target=_serve, args=(listener, wake, supervisor), name="imgkit-supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join(_JOIN_TIMEOUT)
        os.close(wake)


def _serve(listener: int, wake: int, supervisor: Supervisor) -> None:
    """Respond until the last process with the filter is gone, or the other end of ``wake`` is closed."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(wake, select.POLLIN)
    try:
        while True:
            ready = dict(poll.poll())
            if wake in ready or ready.get(listener, 0) & ~select.POLLIN:
                return
            _respond(listener, supervisor)
    finally:
        os.close(listener)  # calls that still wait fail with ENOSYS


def _respond(listener: int, supervisor: Supervisor) -> None:
    """Receive one notification and send the response."""
    notification = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, notification)
    except OSError:  # the thread that made the call was killed meanwhile
        return
    identity, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)

    def valid() -> bool:
        try:
            fcntl.ioctl(listener, _ID_VALID, struct.pack("=Q", identity))
        except OSError:
            return False
        return True

    try:
        error = supervisor.decide(pid, number, tuple(arguments), valid)
    except Exception:  # otherwise the guest would wait for ever
        log.exception("the supervisor of the seccomp filter failed")
        error = errno.EPERM
    with suppress(OSError):
        fcntl.ioctl(listener, _SEND, bytearray(_RESPONSE.pack(identity, 0, -error, 0)))


def obstacle(scope: Path = _SCOPE, status: Path = _STATUS, *, changes: bool | None = None) -> str:
    """Return why this process may not read QEMU's memory, as a phrase; empty if it may.

    If it may not, it cannot read the paths of QEMU's calls, so that set-group-id is refused for folders as well. At
    level 2, Linux' security module Yama (admin-guide/LSM/Yama) lets only a process with CAP_SYS_PTRACE read the memory
    of its children, and at level 3 no process. The memory of another user's process can only be read with that
    capability (ptrace(2)).

    Args:
        scope: file with Yama's level.
        status: file with the capabilities of this process (proc(5)).
        changes: whether QEMU is started as another user; None finds out.
    """
    level, capable = 0, False
    with suppress(OSError, ValueError):  # a kernel without Yama
        level = int(scope.read_text())
    with suppress(OSError, ValueError, KeyError):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        capable = bool(int(fields["CapEff"], 16) & _SYS_PTRACE)
    if level >= 3 or (level == 2 and not capable):
        return f"kernel.yama.ptrace_scope is {level}"
    switches = can_switch_user() if changes is None else changes
    return "root lacks CAP_SYS_PTRACE here" if switches and not capable else ""


def available(libc: ctypes.CDLL, calls: SyscallTable) -> bool:
    """Return whether this kernel's filters can notify a supervisor, as since Linux 5.0 (seccomp(2))."""
    # SECCOMP_GET_ACTION_AVAIL
    action = struct.pack("=I", 0x7FC00000)  # SECCOMP_RET_USER_NOTIF
    return int(libc.syscall(ctypes.c_long(calls.seccomp), ctypes.c_long(2), ctypes.c_long(0), action)) == 0
