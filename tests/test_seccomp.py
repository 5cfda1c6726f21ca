"""The decisions of the filter of system calls, by an interpreter of its instructions: for both architectures."""

from __future__ import annotations

import errno
import struct

import pytest

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
