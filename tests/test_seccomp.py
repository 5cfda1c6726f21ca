"""The decisions of the filter of system calls, by an interpreter of its instructions: for both architectures."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Any, cast

import pytest

from imgkit.vm.sandbox import seccomp
from imgkit.vm.sandbox.seccomp import INET, SYSCALL_TABLES, UNIX, filter_program

ALLOW, NOTIFY = "allow", "notify"
O_CREAT, O_DIRECTORY, O_TMPFILE = 0o100, 0o200000, 0o20200000  # O_DIRECTORY of x86_64 is another number on aarch64
CLONE_THREAD, CLONE_VM, CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID = 0x10000, 0x100, 0x10000000, 0x20000, 0x20000000
HIGH = 1 << 32  # the upper halves of arguments mean nothing

MACHINES = sorted(SYSCALL_TABLES)


def decide(code: bytes, machine: int, number: int, *arguments: int) -> str | int:
    """Run the program (classic BPF, linux/bpf_common.h) on a struct seccomp_data; the number of an error, or a word."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, machine, 0, *words)
    program = list(struct.iter_unpack("HBBI", code))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, operand = program[position]
        position += 1
        assert operation & 0x07 == 0x05 or not (if_true or if_false), "only a jump skips instructions (BPF_STMT)"
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x06:
            if operand in (0x7FFF0000, 0x7FC00000):
                return ALLOW if operand == 0x7FFF0000 else NOTIFY
            assert operand & 0xFFFF0000 == 0x00050000, "an error"
            return int(operand & 0xFFFF)
        else:
            jumps = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            position += if_true if jumps[operation] else if_false


class Filtered:
    """A program with the numbers of its architecture."""

    def __init__(self, machine: str, families: tuple[int, ...] = (), *, notify: bool = False, processes: bool = False):
        code = filter_program(machine, families, notify=notify, processes=processes)
        assert code is not None
        self.code = code
        self.table = SYSCALL_TABLES[machine]

    def __call__(self, number: int, *arguments: int) -> str | int:
        return decide(self.code, self.table.audit, number, *arguments)

    def at(self, number: int, index: int, value: int, *more: int) -> str | int:
        """Return the decision on a call with ``value`` as the argument ``index``; ``more`` are those behind it."""
        return self(number, *[HIGH] * index, value, *more)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_calls_do_not_exist(machine: str) -> None:
    filtered = Filtered(machine)
    assert filtered(0) == ALLOW
    assert decide(filtered.code, filtered.table.audit ^ 1, 0) == errno.ENOSYS
    assert filtered(0x3FFFFFFF) == ALLOW
    assert filtered(0x40000000) == (errno.ENOSYS if machine == "x86_64" else ALLOW)
    assert filtered(0x40000001) == (errno.ENOSYS if machine == "x86_64" else ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("processes", [False, True])
def test_calls_that_are_refused_whatever_their_arguments(machine: str, processes: bool) -> None:
    filtered = Filtered(machine, processes=processes)
    assert {number: filtered(number) for number in (437, 425)} == {437: errno.ENOSYS, 425: errno.ENOSYS}
    assert {filtered(number) for number in filtered.table.forbidden} == {errno.EPERM}
    assert {428, 429, 430, 431, 432, 433, 438, 442} <= set(filtered.table.forbidden)


@pytest.mark.parametrize("machine", MACHINES)
def test_processes(machine: str) -> None:
    """Threads are made by clone, whose flags are its first argument."""
    filtered, free = Filtered(machine), Filtered(machine, processes=True)
    clone = filtered.table.clone
    assert {filtered(number) for number in filtered.table.starts} == {errno.EPERM}
    assert {free(number) for number in filtered.table.starts} == {ALLOW}
    assert (filtered(435), free(435)) == (errno.ENOSYS, ALLOW)
    assert filtered(clone, CLONE_THREAD | CLONE_VM) == ALLOW
    for flags in (0, CLONE_VM, *(CLONE_THREAD | new for new in (CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID))):
        assert (filtered(clone, flags), free(clone, flags)) == (errno.EPERM, ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("notify", [False, True])
def test_modes_of_files_that_exist(machine: str, notify: bool) -> None:
    filtered = Filtered(machine, notify=notify)
    assert filtered.table.fchmod in dict(filtered.table.modes)
    for number, index in filtered.table.modes:
        assert filtered.at(number, index, 0o1777) == ALLOW
        assert filtered.at(number, index, 0o4755) == errno.EPERM
        assert filtered.at(number, index, 0o6755) == errno.EPERM
        assert filtered.at(number, index, 0o2755) == (NOTIFY if notify else errno.EPERM)
        assert filtered.at(number, index, HIGH | 0o755, 0o6000) == ALLOW, "another argument is no mode"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("notify", [False, True])
def test_modes_of_new_files(machine: str, notify: bool) -> None:
    filtered = Filtered(machine, notify=notify)
    for number, index in filtered.table.creates:
        assert filtered.at(number, index, 0o755) == ALLOW
        assert {filtered.at(number, index, mode) for mode in (0o4755, 0o2755)} == {errno.EPERM}
    for number, flags, mode in filtered.table.opens:
        assert mode == flags + 1
        for special in (0o4755, 0o2755):
            assert filtered.at(number, flags, O_CREAT | 2, special) == errno.EPERM
            assert filtered.at(number, flags, O_TMPFILE | 2, special) == errno.EPERM
            assert filtered.at(number, flags, O_DIRECTORY, special) == ALLOW, "the mode of an open that makes nothing"
        assert filtered.at(number, flags, O_CREAT, 0o755) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_nodes(machine: str) -> None:
    filtered = Filtered(machine, notify=True)
    for number, index in filtered.table.nodes:
        for kind in (0o010000, 0o100000, 0o140000):  # FIFO, file, socket
            assert filtered.at(number, index, kind | 0o644) == ALLOW
        for mode in (0o020644, 0o060644, 0o020000, 0o060000, 0o104755, 0o102755):
            assert filtered.at(number, index, mode) == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_whiteouts(machine: str) -> None:
    filtered = Filtered(machine)
    renameat2 = filtered.table.renameat2
    assert [filtered.at(renameat2, 4, flags) for flags in (0, 1, 2, 4, 5)] == [ALLOW] * 3 + [errno.EPERM] * 2


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("families", [(), INET, (*INET, UNIX)])
def test_sockets(machine: str, families: tuple[int, ...]) -> None:
    filtered = Filtered(machine, families)
    allowed = {family for family in range(46) if filtered(filtered.table.socket, HIGH | family) == ALLOW}
    assert allowed == set(families)
    assert filtered(filtered.table.socket, 17) == errno.EAFNOSUPPORT
    assert (INET, UNIX) == ((2, 10), 1)


# ---- numbers of the kernel's -----------------------------------------------------------------------------------------

MODES_AT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
"""Where a call has its mode among its arguments, by its page of the manual."""
NUMBERS = {
    "x86_64": {
        **{"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "creat": 85, "mknod": 133, "mknodat": 259},
        **{"renameat2": 316, "socket": 41, "seccomp": 317, "clone": 56, "fork": 57, "vfork": 58, "execveat": 322},
    },
    "aarch64": {
        **{"fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "mknodat": 33},
        **{"renameat2": 276, "socket": 198, "seccomp": 277, "clone": 220, "execveat": 281},
    },
}
OPENS = {"x86_64": {(2, 1, 2), (257, 2, 3)}, "aarch64": {(56, 2, 3)}}
"""open and openat: number, and where the flags and the mode are."""
FORBIDDEN = {
    "x86_64": {
        *{101, 103, 155, 161, 163, 165, 166, 167, 168, 169, 175, 176, 179, 246, 248, 249, 250, 272, 298},
        *{304, 308, 310, 311, 313, 320, 321},
    },
    "aarch64": {
        *{39, 40, 41, 51, 60, 89, 97, 104, 105, 106, 116, 117, 142, 217, 218, 219, 224, 225, 241, 265, 268},
        *{270, 271, 273, 280, 294},
    },
}
NEWER = {428, 429, 430, 431, 432, 433, 438, 442}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_are_found_by_their_numbers_and_modes_by_their_places(machine: str) -> None:
    numbers, table = NUMBERS[machine], Filtered(machine).table

    def places(*names: str) -> set[tuple[int, int]]:
        return {(numbers[name], MODES_AT[name]) for name in names if name in numbers}

    assert set(table.modes) == places("chmod", "fchmod", "fchmodat", "fchmodat2")
    assert set(table.creates) == places("creat")
    assert set(table.nodes) == places("mknod", "mknodat")
    assert set(table.opens) == OPENS[machine]
    single = {name: getattr(table, name) for name in ("fchmod", "renameat2", "socket", "seccomp", "clone")}
    assert single == {name: numbers[name] for name in single}
    assert set(table.starts) == {numbers[name] for name in ("fork", "vfork", "execveat") if name in numbers}
    assert set(table.forbidden) == FORBIDDEN[machine] | NEWER
    assert table.audit == {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]


@pytest.mark.parametrize("machine", MACHINES)
def test_by_default_nobody_is_asked_and_no_process_is_started(machine: str) -> None:
    assert filter_program(machine, INET) == filter_program(machine, INET, notify=False, processes=False)
    assert filter_program(machine, INET) != filter_program(machine, INET, notify=True)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("new", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_thread_has_a_namespace_of_its_own(machine: str, new: int) -> None:
    """CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of linux/sched.h."""
    filtered = Filtered(machine)
    assert filtered(filtered.table.clone, CLONE_THREAD | CLONE_VM | new) == errno.EPERM
    for other in (0x200, 0x800, 0x40000, 0x80000, 0x100000, 0x200000, 0x1000000, 0x80000000):
        assert filtered(filtered.table.clone, CLONE_THREAD | CLONE_VM | other) == ALLOW


class Library:
    """A C library that confines nobody, and notes what it is asked for."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.calls: list[tuple[object, ...]] = []

    def prctl(self, *words: object) -> int:
        self.calls.append(("prctl", *words))
        return self.answer if words[0] == 22 else 0

    def syscall(self, *words: Any) -> int:
        self.calls.append(("syscall", *(each.value if isinstance(each, ctypes.c_long) else each for each in words)))
        return self.answer


@pytest.mark.parametrize(
    ("machine", "platform", "answer", "number", "is_available"),
    [
        ("x86_64", "linux", -1, errno.EFAULT, True),
        ("aarch64", "linux", -1, errno.EFAULT, True),
        ("x86_64", "linux", -1, errno.EINVAL, False),
        ("x86_64", "linux", 0, errno.EFAULT, False),
        ("riscv64", "linux", -1, errno.EFAULT, False),
        ("x86_64", "darwin", -1, errno.EFAULT, False),
    ],
)
def test_where_filters_are_possible(
    machine: str, platform: str, answer: int, number: int, is_available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter at no address is a fault of the address there (seccomp(2)). Nothing is filtered by the question."""
    library = Library(answer)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", machine)))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    assert seccomp.available(cast("ctypes.CDLL", library)) is is_available
    if is_available:
        assert library.calls == [("prctl", 22, 2, None, 0, 0)]


def filtering(code: bytes, library: Library, header: object) -> None:
    """Check a struct sock_fprog: the number of instructions, and their address."""
    count, address = struct.unpack("HxxxxxxP", cast("bytes", header))
    assert count == len(code) // 8
    assert ctypes.string_at(address, len(code)) == code


def test_a_filter_is_applied_where_no_program_can_gain_rights() -> None:
    code = filter_program("x86_64", INET)
    assert code is not None
    library, prepared = Library(), seccomp.SeccompFilter(code)
    prepared.apply(cast("ctypes.CDLL", library))
    assert library.calls[0] == ("prctl", 38, 1, 0, 0, 0)
    (*words, header, _, _) = library.calls[1]
    assert words == ["prctl", 22, 2]
    filtering(code, library, header)


def test_a_filter_with_a_listener() -> None:
    code = filter_program("x86_64", INET, notify=True)
    assert code is not None
    library, prepared = Library(9), seccomp.SeccompFilter(code)
    assert prepared.apply_with_listener(cast("ctypes.CDLL", library), 317) == 9
    assert library.calls[0] == ("prctl", 38, 1, 0, 0, 0)
    (*words, header) = library.calls[1]
    assert words == ["syscall", 317, 1, 8], "SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_NEW_LISTENER"
    filtering(code, library, header)
    library.answer = 0
    assert prepared.apply_with_listener(cast("ctypes.CDLL", library), 317) == 0, "the lowest descriptor there is"


def test_a_filter_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EBUSY)
    library = cast("ctypes.CDLL", Library(-1))
    prepared = seccomp.SeccompFilter(bytes(8))
    for apply in (lambda: prepared.apply(library), lambda: prepared.apply_with_listener(library, 317)):
        with pytest.raises(OSError, match="the seccomp filter cannot be applied") as raised:
            apply()
        assert raised.value.errno == errno.EBUSY
    monkeypatch.setattr(Library, "prctl", lambda *_: -1)
    with pytest.raises(OSError, match="no_new_privs"):
        prepared.apply(library)
