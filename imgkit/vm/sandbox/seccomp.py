"""A filter of system calls for QEMU: what a guest writes into a share never gets rights on the host.

Over 9p a guest chooses the modes of files and makes device nodes. The modes are plain numbers among the arguments of
the system calls, so a filter of the kernel (seccomp(2)) can judge each of them where it happens: nothing has to be
looked for afterwards, and no link, rename or race gets around it. It is inherited by whatever QEMU starts.

Refused with EPERM, which QEMU hands on to the guest: set-user-id and set-group-id in any mode, device nodes, sockets
of families that the machine has no use for, new processes (threads are none), and calls by which a program that was
taken over would reach further. Refused with ENOSYS, as kernels without them do: what takes modes or flags from memory
or does its work out of sight (openat2, clone3, io_uring), and the calls of other architectures that this kernel knows
as well. execve cannot be refused, as QEMU itself is started by it; it ends the program that calls it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# linux/bpf_common.h: load a word of the call; jump if equal, if greater or equal, if any bit is set; and; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ASK, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000  # linux/seccomp.h
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER_MODE = 22, 38, 2  # linux/prctl.h, linux/seccomp.h

_SET_USER, _SET_GROUP = 0o4000, 0o2000
SPECIAL = _SET_USER | _SET_GROUP
_KIND, _CHARACTER, _BLOCK = 0o170000, 0o020000, 0o060000
_MAKES_FILE = 0o100 | 0o20000000  # O_CREAT and the bit of O_TMPFILE, the same on both machines
_WHITEOUT = 4  # RENAME_WHITEOUT leaves a device node
_SET_FILTER, _NEW_LISTENER = 1, 8  # linux/seccomp.h
_THREAD, _NEW_NAMESPACES = 0x10000, 0x7E020000  # linux/sched.h: CLONE_THREAD; CLONE_NEWNS, CGROUP, UTS, IPC, USER ...
_X32 = 0x40000000  # where x86_64 has the calls of a third ABI
INET = (2, 10)  # AF_INET, AF_INET6
UNIX = 1

_Step = tuple[int, int, int, int]


@dataclass(frozen=True)
class SyscallTable:
    """The numbers of one machine's system calls.

    Attributes:
        audit: how the kernel names the machine in a filter (linux/audit.h).
        modes: (number, argument with a mode) of the calls that change one; fchmod: the one of them with a descriptor.
        creates: the same of a call that makes a file.
        opens: (number, argument with flags, argument with a mode).
        nodes: (number, argument with a mode and a kind).
        renameat2, socket, seccomp, clone: these.
        starts: other calls that make a process, or put a program into one in an unusual way.
        forbidden: calls that QEMU has no use for.
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
    machine: str, families: Sequence[int], *, ask: bool = False, processes: bool = False
) -> bytes | None:
    """The filter as an array of struct sock_filter; None for a machine whose calls are not known here.

    Args:
        machine: as ``uname -m`` names it.
        ask: set-group-id for what is there already is not refused, but asked for (:mod:`imgkit.vm.sandbox.supervisor`).
        families: families of sockets that may be made (socket(2)); pairs and inherited ones are not concerned.
        processes: other processes may be started.
    """
    calls = SYSCALL_TABLES.get(machine)
    if calls is None:
        return None
    absent = _answer(errno.ENOSYS)
    steps: list[_Step] = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, calls.audit), absent]
    if machine == "x86_64":
        steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), absent]
    for number in (_OPENAT2, _IO_URING_SETUP):
        steps += _for(number, [absent])
    for number in (*calls.forbidden, *(() if processes else calls.starts)):
        steps += _for(number, [_answer(errno.EPERM)])
    steps += [] if processes else _threads_only(calls)
    for number, mode in calls.modes:
        asked = [(_ANY_BIT, 0, 1, _SET_GROUP), (_RETURN, 0, 0, _ASK)] if ask else []
        steps += _for(number, [*_no_bits(mode, _SET_USER if ask else SPECIAL), *asked])
    for number, mode in calls.creates:
        steps += _for(number, _no_bits(mode, SPECIAL))
    for number, flags, mode in calls.opens:
        judged = _no_bits(mode, SPECIAL)
        steps += _for(number, [_argument(flags), (_ANY_BIT, 0, len(judged), _MAKES_FILE), *judged])
    for number, mode in calls.nodes:
        steps += _for(number, [*_no_bits(mode, SPECIAL), *_no_devices(mode)])
    steps += _for(calls.renameat2, _no_bits(4, _WHITEOUT))
    steps += _for(calls.socket, _only(0, families))
    steps += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _for(number: int, body: Sequence[_Step]) -> list[_Step]:
    """``body`` for one system call; jumps count the instructions that they leave out."""
    return [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(body), number), *body]


def _argument(index: int) -> _Step:
    """Load the lower half of an argument, all that the kernel looks at of modes, flags and families."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _answer(number: int) -> _Step:
    return (_RETURN, 0, 0, _ERRNO | number)


def _no_bits(index: int, bits: int) -> list[_Step]:
    return [_argument(index), (_ANY_BIT, 0, 1, bits), _answer(errno.EPERM)]


def _no_devices(index: int) -> list[_Step]:
    kind: list[_Step] = [_argument(index), (_AND, 0, 0, _KIND)]
    return [*kind, (_EQUAL, 1, 0, _CHARACTER), (_EQUAL, 0, 1, _BLOCK), _answer(errno.EPERM)]


def _threads_only(calls: SyscallTable) -> list[_Step]:
    """Neither processes nor namespaces. Where there is no clone3, whose flags are in memory, libraries use clone."""
    refused = _answer(errno.EPERM)
    judged = [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refused, (_ANY_BIT, 1, 0, _THREAD), refused]
    return [*_for(_CLONE3, [_answer(errno.ENOSYS)]), *_for(calls.clone, judged)]


def _only(index: int, values: Sequence[int]) -> list[_Step]:
    matches: list[_Step] = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [_argument(index), *matches, _answer(errno.EAFNOSUPPORT)]


def available(libc: ctypes.CDLL) -> bool:
    """Whether this kernel takes filters from this process, and they are known for this machine; changes nothing."""
    known = sys.platform == "linux" and os.uname().machine in SYSCALL_TABLES
    # seccomp(2): a filter at an address that is none ends in EFAULT where filters are possible.
    return known and libc.prctl(_SET_SECCOMP, _FILTER_MODE, None, 0, 0) == -1 and ctypes.get_errno() == errno.EFAULT


class SeccompFilter:
    """A program, laid out in memory before any fork, so that :meth:`apply` has nothing to allocate."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._code))

    def apply(self, libc: ctypes.CDLL) -> None:
        """Confine this process and all that it will start, for good.

        Raises:
            OSError: the kernel refuses.
        """
        forbid_new_privileges(libc)
        if libc.prctl(_SET_SECCOMP, _FILTER_MODE, self._header, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no filter of system calls")

    def apply_asking(self, libc: ctypes.CDLL, number: int) -> int:
        """The same, of a filter that asks; a descriptor of its questions, which ends with the next exec.

        Args:
            number: the system call seccomp of this machine.
        """
        forbid_new_privileges(libc)
        words = (ctypes.c_long(word) for word in (number, _SET_FILTER, _NEW_LISTENER))
        listener = int(libc.syscall(*words, self._header))
        if listener < 0:
            raise OSError(ctypes.get_errno(), "no filter of system calls")
        return listener


def forbid_new_privileges(libc: ctypes.CDLL) -> None:
    """No program that is started from here on gets rights by set-user-id or file capabilities (PR_SET_NO_NEW_PRIVS)."""
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
