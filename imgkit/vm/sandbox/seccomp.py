"""Filter the system calls of QEMU with seccomp, so that nothing a guest writes into a share has rights on the host.

Over 9p a guest chooses the modes of files and creates device nodes. Modes are plain numbers among the arguments of the
system calls, so a filter in the kernel (seccomp(2)) can check each of them. Nothing has to be searched for afterwards,
and links, renames and races do not get around it. Whatever QEMU starts inherits the filter.

Three kinds of calls are refused:

* with EPERM, which QEMU passes on to the guest: modes with the set-user-id or set-group-id bit, device nodes, new
  processes (threads are allowed), and calls by which a program that was taken over could reach further. Sockets of
  families that the machine does not need are refused with EAFNOSUPPORT.
* with ENOSYS, as by a kernel that does not have them: calls that take modes or flags from memory or work out of sight
  of the filter (openat2, clone3, io_uring), and the calls of other architectures that this kernel supports.
* execve cannot be refused, because QEMU itself is started by it. A program that calls it ends, and is replaced by
  another program under the same filter.

A filter is prepared before any fork and applied in the child process::

    code = filter_program("x86_64", INET)
    if code is not None:
        SeccompFilter(code).apply(libc)
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# linux/bpf_common.h: load a word of seccomp_data; jump if equal, if greater or equal, if any bit is set; and; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000  # linux/seccomp.h
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER_MODE = 22, 38, 2  # linux/prctl.h, linux/seccomp.h

_SET_USER, _SET_GROUP = 0o4000, 0o2000
SPECIAL = _SET_USER | _SET_GROUP
"""The mode bits that a guest must not set on the host."""
_KIND, _CHARACTER, _BLOCK = 0o170000, 0o020000, 0o060000
_MAKES_FILE = 0o100 | 0o20000000  # O_CREAT and the bit of O_TMPFILE, the same on both architectures
_WHITEOUT = 4  # RENAME_WHITEOUT, which creates a device node
_SET_FILTER, _NEW_LISTENER = 1, 8  # linux/seccomp.h
_THREAD, _NEW_NAMESPACES = 0x10000, 0x7E020000  # linux/sched.h: CLONE_THREAD; CLONE_NEWNS, CGROUP, UTS, IPC, USER ...
_X32 = 0x40000000  # lowest number of the calls of the x32 ABI on x86_64
INET = (2, 10)
"""The socket families AF_INET and AF_INET6."""
UNIX = 1
"""The socket family AF_UNIX."""

_Instruction = tuple[int, int, int, int]
"""A struct sock_filter: operation, instructions to skip if true, instructions to skip if false, operand."""


@dataclass(frozen=True)
class SyscallTable:
    """The numbers of the system calls of one architecture. Arguments of a call are counted from 0.

    Attributes:
        audit: the number of the architecture in a filter (AUDIT_ARCH_… of linux/audit.h).
        modes: (number, index of the mode) of the calls that change the mode of a file.
        fchmod: the one of ``modes`` that takes a descriptor.
        creates: (number, index of the mode) of other calls that create a file.
        opens: (number, index of the flags, index of the mode) of the calls that open a file.
        nodes: (number, index of the mode, which has the type of the file) of the calls that create a node.
        renameat2, socket, seccomp, clone: numbers of the calls of these names.
        starts: other calls that create a process, or execute a program in an unusual way.
        forbidden: calls that QEMU does not need.
    """

    audit: int
    modes: tuple[tuple[int, int], ...]
    fchmod: int
    creates: tuple[tuple[int, int], ...]
    opens: tuple[tuple[int, int, int], ...]
    nodes: tuple[tuple[int, int], ...]
    renameat2: int
    socket: int
    seccomp: int
    clone: int
    starts: tuple[int, ...]
    forbidden: tuple[int, ...]


_FCHMODAT2, _OPENAT2, _IO_URING_SETUP, _CLONE3 = 452, 437, 425, 435
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd, mount_setattr: one number everywhere.
_NEWER = (428, 429, 430, 431, 432, 433, 438, 442)

SYSCALL_TABLES = {
    "x86_64": SyscallTable(
        audit=0xC000003E,
        modes=((90, 1), (91, 1), (268, 2), (_FCHMODAT2, 2)),  # chmod fchmod fchmodat fchmodat2
        fchmod=91,
        creates=((85, 1),),  # creat
        opens=((2, 1, 2), (257, 2, 3)),  # open openat
        nodes=((133, 1), (259, 2)),  # mknod mknodat
        renameat2=316,
        socket=41,
        seccomp=317,
        clone=56,
        starts=(57, 58, 322),  # fork vfork execveat
        forbidden=(
            *(101, 310, 311),  # ptrace process_vm_readv process_vm_writev
            *(165, 166, 155, 161, 272, 308, 304),  # mount umount2 pivot_root chroot unshare setns open_by_handle_at
            *(321, 298, 246, 320, 175, 313, 176),  # bpf perf_event_open kexec_(file_)load (f)init_module delete_module
            *(248, 249, 250, 167, 168, 169, 163, 103, 179),  # (add|request)_key keyctl swapo(n|ff) reboot acct ...
            *_NEWER,
        ),
    ),
    "aarch64": SyscallTable(
        audit=0xC00000B7,
        modes=((52, 1), (53, 2), (_FCHMODAT2, 2)),
        fchmod=52,
        creates=(),
        opens=((56, 2, 3),),
        nodes=((33, 2),),
        renameat2=276,
        socket=198,
        seccomp=277,
        clone=220,
        starts=(281,),
        forbidden=(
            *(117, 270, 271),
            *(40, 39, 41, 51, 97, 268, 265),
            *(280, 241, 104, 294, 105, 273, 106),
            *(217, 218, 219, 224, 225, 142, 89, 116, 60),
            *_NEWER,
        ),
    ),
}


def filter_program(
    machine: str, families: Sequence[int], *, notify: bool = False, processes: bool = False
) -> bytes | None:
    """Compose the filter as an array of struct sock_filter.

    Args:
        machine: name of the architecture, as ``uname -m`` prints it.
        families: socket families that may be used (socket(2)). Socket pairs and inherited sockets are not affected.
        notify: whether calls that set the set-group-id bit of an existing file are passed to a supervisor
            (:mod:`imgkit.vm.sandbox.supervisor`) instead of being refused.
        processes: whether other processes may be started.

    Returns:
        The program, or None for an architecture that is not in :data:`SYSCALL_TABLES`.
    """
    calls = SYSCALL_TABLES.get(machine)
    if calls is None:
        return None
    absent = _fail(errno.ENOSYS)
    program: list[_Instruction] = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, calls.audit), absent]
    if machine == "x86_64":
        program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), absent]
    for number in (_OPENAT2, _IO_URING_SETUP):
        program += _for(number, [absent])
    for number in (*calls.forbidden, *(() if processes else calls.starts)):
        program += _for(number, [_fail(errno.EPERM)])
    program += [] if processes else _threads_only(calls)
    for number, mode in calls.modes:
        notification = [(_ANY_BIT, 0, 1, _SET_GROUP), (_RETURN, 0, 0, _NOTIFY)] if notify else []
        program += _for(number, [*_no_bits(mode, _SET_USER if notify else SPECIAL), *notification])
    for number, mode in calls.creates:
        program += _for(number, _no_bits(mode, SPECIAL))
    for number, flags, mode in calls.opens:
        check = _no_bits(mode, SPECIAL)
        program += _for(number, [_argument(flags), (_ANY_BIT, 0, len(check), _MAKES_FILE), *check])
    for number, mode in calls.nodes:
        program += _for(number, [*_no_bits(mode, SPECIAL), *_no_devices(mode)])
    program += _for(calls.renameat2, _no_bits(4, _WHITEOUT))
    program += _for(calls.socket, _only(0, families))
    program += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _for(number: int, body: Sequence[_Instruction]) -> list[_Instruction]:
    """Return instructions that execute ``body`` for the system call ``number`` only."""
    return [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(body), number), *body]


def _argument(index: int) -> _Instruction:
    """Return the instruction that loads the lower half of an argument.

    The kernel uses no more than the lower half of modes, flags and families.
    """
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _fail(number: int) -> _Instruction:
    """Return the instruction by which the call fails with an error number."""
    return (_RETURN, 0, 0, _ERRNO | number)


def _no_bits(index: int, bits: int) -> list[_Instruction]:
    """Return instructions that refuse a call if any of ``bits`` is set in the argument ``index``."""
    return [_argument(index), (_ANY_BIT, 0, 1, bits), _fail(errno.EPERM)]


def _no_devices(index: int) -> list[_Instruction]:
    """Return instructions that refuse a call whose argument ``index`` is the mode of a device node."""
    kind: list[_Instruction] = [_argument(index), (_AND, 0, 0, _KIND)]
    return [*kind, (_EQUAL, 1, 0, _CHARACTER), (_EQUAL, 0, 1, _BLOCK), _fail(errno.EPERM)]


def _threads_only(calls: SyscallTable) -> list[_Instruction]:
    """Return instructions that refuse new processes and namespaces.

    clone3 takes its flags from memory. Where it is missing, C libraries use clone.
    """
    refuse = _fail(errno.EPERM)
    check = [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse, (_ANY_BIT, 1, 0, _THREAD), refuse]
    return [*_for(_CLONE3, [_fail(errno.ENOSYS)]), *_for(calls.clone, check)]


def _only(index: int, values: Sequence[int]) -> list[_Instruction]:
    """Return instructions that refuse a call whose argument ``index``, a socket family, is none of ``values``."""
    matches: list[_Instruction] = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [_argument(index), *matches, _fail(errno.EAFNOSUPPORT)]


def available(libc: ctypes.CDLL) -> bool:
    """Return whether this process can apply a filter that is known for its architecture. Nothing is changed."""
    known = sys.platform == "linux" and os.uname().machine in SYSCALL_TABLES
    # Where filters are possible, one at an invalid address fails with EFAULT (seccomp(2)).
    return known and libc.prctl(_SET_SECCOMP, _FILTER_MODE, None, 0, 0) == -1 and ctypes.get_errno() == errno.EFAULT


class SeccompFilter:
    """A filter that is laid out in memory before the fork, so that applying it in the child allocates nothing."""

    def __init__(self, code: bytes) -> None:
        """Lay out ``code``, the result of :func:`filter_program`."""
        self._code = ctypes.create_string_buffer(code, len(code))
        self._header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._code))

    def apply(self, libc: ctypes.CDLL) -> None:
        """Apply the filter to this process and to all that it will start. It cannot be undone.

        Raises:
            OSError: the kernel refuses.
        """
        forbid_new_privileges(libc)
        if libc.prctl(_SET_SECCOMP, _FILTER_MODE, self._header, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the seccomp filter cannot be applied")

    def apply_with_listener(self, libc: ctypes.CDLL, number: int) -> int:
        """Apply a filter with notifications, as :meth:`apply` does.

        Args:
            libc: the C library.
            number: number of the system call seccomp on this architecture.

        Returns:
            The descriptor from which a supervisor receives the notifications. The next exec closes it.

        Raises:
            OSError: the kernel refuses, for example because another filter with notifications is in force already.
        """
        forbid_new_privileges(libc)
        words = (ctypes.c_long(word) for word in (number, _SET_FILTER, _NEW_LISTENER))
        listener = int(libc.syscall(*words, self._header))
        if listener < 0:
            raise OSError(ctypes.get_errno(), "the seccomp filter cannot be applied")
        return listener


def forbid_new_privileges(libc: ctypes.CDLL) -> None:
    """Set ``no_new_privs``: programs that are started from now on gain no rights by set-user-id or file capabilities.

    Raises:
        OSError: the kernel refuses.
    """
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
