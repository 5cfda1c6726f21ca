"""Run imgkit without any privilege: ``python tests/confine.py CAPABILITY-SETS DEVICES -- ARGUMENTS OF IMGKIT``.

The program ends with a message if a capability set is not empty, or if a device can be opened or a namespace made. Then
a seccomp filter makes the kernel kill this process, or any process that it starts, when it tries to mount something or
to make a namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_SET_SECCOMP, _FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_NEW_USER = 0x10000000
_CLONE3 = 435


@dataclass(frozen=True)
class Numbers:
    """Numbers of one architecture: ELF; clone; mount, umount2, pivot_root, chroot, unshare, setns and newer mounts."""

    machine: int
    clone: int
    forbidden: tuple[int, ...]


NUMBERS = {
    "x86_64": Numbers(62, 56, (165, 166, 155, 161, 272, 308, 428, 429, 430, 442)),
    "aarch64": Numbers(183, 220, (40, 39, 41, 51, 97, 268, 428, 429, 430, 442)),
}


def program(numbers: Numbers) -> bytes:
    """Return the filter, as an array of struct sock_filter. A jump counts the instructions that it leaves out."""
    steps = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, numbers.machine | 0xC0000000), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER)]
    for number in numbers.forbidden:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _KILL)]
    # A filter cannot see the flags of clone3; the C library falls back to clone where there is none.
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    steps += [(_EQUAL, 0, 3, numbers.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACE)]
    steps += [(_RETURN, 0, 0, _KILL), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def check_capabilities(names: list[str]) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name in names:
        if int(status[name], 16):
            sys.exit(f"{name} is {status[name].strip()}")
    if os.getuid() == 0 or status["NoNewPrivs"].strip() != "1":
        sys.exit("privileges are there, or can be had")


def check_devices(names: list[str]) -> None:
    for name in names:
        try:
            os.close(os.open(name, os.O_RDWR))
        except OSError:
            continue
        sys.exit(f"{name} can be opened")


def confine(libc: ctypes.CDLL) -> None:
    code = program(NUMBERS[os.uname().machine])
    buffer = ctypes.create_string_buffer(code)
    fprog = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_SET_SECCOMP, _FILTER, fprog, 0, 0) != 0:
        sys.exit(f"no seccomp: {os.strerror(ctypes.get_errno())}")
    child = os.fork()
    if child == 0:
        libc.unshare(_NEW_USER)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -31:  # SIGSYS
        sys.exit("a namespace can be made")


def main(words: list[str]) -> NoReturn:
    check_capabilities(words[0].split(","))
    check_devices(words[1].split(","))
    confine(ctypes.CDLL(None, use_errno=True))
    os.execv(sys.executable, [sys.executable, "-m", "imgkit", *words[3:]])


if __name__ == "__main__":
    main(sys.argv[1:])
