"""Set-group-id, decided case by case: folders may have it, files may not.

A folder of a team's is set-group-id, so that what is made in it belongs to the team, and Linux' 9p client asks for the
same bit for every folder that is made in such a folder. A filter (:mod:`imgkit.vm.sandbox.seccomp`) sees the bit,
but not what it is for. So it holds the call, and this process answers: it takes the very object by a descriptor, sees
if it is a folder, and changes the mode itself. QEMU's own call is never carried out, so nothing can be exchanged
between the look and the deed. Where it cannot be decided, the answer is EPERM.
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

# linux/seccomp.h: struct seccomp_notif with struct seccomp_data, struct seccomp_notif_resp, and the calls for them.
_QUESTION, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND, _VALID = 0xC0502100, 0xC0182101, 0x80082102  # the last as before Linux 5.17, and since
_OWN_DESCRIPTOR = re.compile(rb"/proc/self/fd/([0-9]{1,7})")
_NAME = re.compile(rb"[^/\0]{1,255}")
_LONGEST = 256
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_STATUS = Path("/proc/self/status")
_SYS_PTRACE = 1 << 19  # linux/capability.h
_PATH = getattr(os, "O_PATH", 0) | os.O_CLOEXEC


@dataclass(frozen=True)
class Supervisor:
    """Answers for one QEMU.

    Attributes:
        calls: this machine's numbers.
        user: whom QEMU runs as, if not as this process: it gets no more than that user could do.
    """

    calls: SyscallTable
    user: Identity | None

    def decide(self, pid: int, number: int, arguments: tuple[int, ...], valid: Callable[[], bool]) -> int:
        """Carry out one call if it is about a folder; 0, or the number of an error.

        Args:
            pid: the thread that made the call.
            number, arguments: the call.
            valid: whether the thread still waits, so that ``pid`` is still the one.
        """
        mode = arguments[dict(self.calls.modes)[number]] & 0o7777
        try:
            descriptor = self._target(pid, number, arguments)
        except (OSError, ValueError):
            return errno.EPERM
        try:
            status = os.fstat(descriptor)
            if not valid() or not stat.S_ISDIR(status.st_mode) or mode & stat.S_ISUID:
                return errno.EPERM
            if self.user is not None and status.st_uid != self.user.uid:
                return errno.EPERM
            Path(f"/proc/self/fd/{descriptor}").chmod(mode if self._may_keep(status) else mode & ~stat.S_ISGID)
        except OSError as error:
            return error.errno or errno.EPERM
        finally:
            os.close(descriptor)
        return 0

    def _may_keep(self, status: os.stat_result) -> bool:
        """Whether set-group-id stays; of other groups' folders the kernel silently leaves it out (chmod(2))."""
        if self.user is None or status.st_mode & stat.S_ISGID:
            return True
        return status.st_gid in (self.user.gid, *self.user.groups)

    def _target(self, pid: int, number: int, arguments: tuple[int, ...]) -> int:
        """What the call is about, held by a descriptor of this process's; OSError or ValueError if it is not clear."""
        index = dict(self.calls.modes)[number]
        if number == self.calls.fchmod:
            return os.open(f"/proc/{pid}/fd/{arguments[0] & 0x7FFFFFFF}", _PATH)
        text = _text(pid, arguments[index - 1])
        own = _OWN_DESCRIPTOR.fullmatch(text)
        if own is not None:
            return os.open(f"/proc/{pid}/fd/{int(own[1])}", _PATH)
        if index < 2 or not _NAME.fullmatch(text) or text == b"..":  # chmod has no folder to start at
            raise ValueError(text)
        folder = os.open(f"/proc/{pid}/fd/{arguments[0] & 0x7FFFFFFF}", _PATH | os.O_DIRECTORY)
        try:
            return os.open(text, _PATH | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)


def _text(pid: int, address: int) -> bytes:
    """A string of another process's memory. It may change at any time, which is no matter: it is read once."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(_LONGEST).partition(b"\0")[0]


class ListenerChannel:
    """How the descriptor of a filter's questions comes from the process that becomes QEMU to this one."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def send(self, listener: int) -> None:
        """Called by the process that becomes QEMU."""
        socket.send_fds(self.far, [b"."], [listener])

    def receive(self) -> int | None:
        """The descriptor, when the program has been started; None if none came."""
        self.far.close()
        with suppress(OSError):
            descriptors = socket.recv_fds(self.near, 1, 1)[1]
            return descriptors[0] if descriptors else None
        return None

    def close(self) -> None:
        """Give back what was not used."""
        self.near.close()
        self.far.close()


@contextmanager
def supervising(listener: int | None, arbiter: Supervisor) -> Iterator[None]:
    """Answer for the length of the block; to what is asked later the answer is ENOSYS."""
    if listener is None:
        yield
        return
    wake, stop = os.pipe()
    thread = threading.Thread(target=_serve, args=(listener, wake, arbiter), name="imgkit-arbiter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join(5)
        os.close(wake)


def _serve(listener: int, wake: int, arbiter: Supervisor) -> None:
    """Until the last process with the filter is gone, or ``wake`` is closed."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(wake, select.POLLIN)
    try:
        while True:
            ready = dict(poll.poll())
            if wake in ready or ready.get(listener, 0) & ~select.POLLIN:
                return
            _answer_one(listener, arbiter)
    finally:
        os.close(listener)  # whoever still waits gets ENOSYS


def _answer_one(listener: int, arbiter: Supervisor) -> None:
    question = bytearray(_QUESTION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
    except OSError:  # the thread that asked was killed meanwhile
        return
    identity, pid, _, number, _, _, *arguments = _QUESTION.unpack(question)

    def valid() -> bool:
        try:
            fcntl.ioctl(listener, _VALID, struct.pack("=Q", identity))
        except OSError:
            return False
        return True

    try:
        error = arbiter.decide(pid, number, tuple(arguments), valid)
    except Exception:  # the guest must not wait for ever
        log.exception("set-group-id was not decided")
        error = errno.EPERM
    with suppress(OSError):
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(identity, 0, -error, 0)))


def obstacle(scope: Path = _SCOPE, status: Path = _STATUS, *, changes: bool | None = None) -> str:
    """Why this process may not read the names that QEMU's calls are about, as a phrase; empty if it may.

    Set-group-id is refused for folders as well then. Linux' security module Yama (admin-guide/LSM/Yama) lets only a
    process with CAP_SYS_PTRACE look into its children at 2, and nobody at 3; into those of another user only a process
    with that capability may ever look (ptrace(2)).

    Args:
        scope, status: Yama's setting and the facts about this process (proc(5)).
        changes: whether QEMU is started as another user; None looks.
    """
    level, capable = 0, False
    with suppress(OSError, ValueError):  # a kernel without it
        level = int(scope.read_text())
    with suppress(OSError, ValueError, KeyError):
        facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        capable = bool(int(facts["CapEff"], 16) & _SYS_PTRACE)
    if level >= 3 or (level == 2 and not capable):
        return f"kernel.yama.ptrace_scope is {level}"
    return (
        "" if capable or not (can_switch_user() if changes is None else changes) else "this root has not CAP_SYS_PTRACE"
    )


def available(libc: ctypes.CDLL, calls: SyscallTable) -> bool:
    """Whether this kernel's filters can ask (5.0): SECCOMP_GET_ACTION_AVAIL, seccomp(2)."""
    action = struct.pack("=I", 0x7FC00000)  # SECCOMP_RET_USER_NOTIF
    return int(libc.syscall(ctypes.c_long(calls.seccomp), ctypes.c_long(2), ctypes.c_long(0), action)) == 0
