"""Measure how fast the host's time stamp counter (TSC) runs, which is also an emulated x86 guest's.

An emulated microvm needs to be told. It has no second clock, and its kernel measures the counter in a busy wait that a
host with anything else to do disturbs: with two busy processors 3 of 4 kernels then waited for ever for a first tick.
QEMU's emulation reads the host's counter (``cpu_get_host_ticks`` in ``include/qemu/timer.h``).

The kernel must also trust the counter. Otherwise its clock is its count of timer interrupts, which lost a fifth to a
half of the time on a busy host. The likely reason: QEMU's interrupt controller has one flag for all interrupts of a
kind that the processor has not taken yet (``irr`` in ``hw/intc/apic.c``).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time
from collections.abc import Callable

from imgkit.vm.qemu.machines import host_arch

_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_INTERVAL = 0.05  # seconds; two readings are then exact to some thousandths of a percent
_TRIES = 20  # readings of which the quickest is taken, because it was not interrupted


@functools.cache
def tsc_khz() -> int | None:
    """Return the counter's frequency in kHz; None where it cannot be read (another processor, a hardened host)."""
    if host_arch() != "amd64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ_TSC)
    code = ctypes.c_char.from_buffer(page)
    read: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
    first_time, first_count = _reading(read)
    time.sleep(_INTERVAL)
    last_time, last_count = _reading(read)
    return frequency(last_count - first_count, last_time - first_time)


def frequency(ticks: int, nanoseconds: int) -> int | None:
    """Return the frequency in kHz of a counter; None if the ticks are not those of a TSC (100 MHz to 20 GHz)."""
    khz = round(ticks * 1_000_000 / nanoseconds) if nanoseconds > 0 else 0
    return khz if 100_000 <= khz <= 20_000_000 else None


def _reading(read: Callable[[], int]) -> tuple[int, int]:
    """Return a time in nanoseconds and the counter at that time."""
    readings = []
    for _ in range(_TRIES):
        before = time.perf_counter_ns()
        count = read()
        after = time.perf_counter_ns()
        readings.append((after - before, (before + after) // 2, count))
    _, at, count = min(readings)
    return at, count
