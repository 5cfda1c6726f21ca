"""Which accelerator a guest can really use here.

``/dev/kvm`` proves little: there are hosts where it opens, answers every ioctl, and then aborts QEMU or runs guests a
hundred times slower than plain emulation, and ``accel=kvm:tcg`` falls back from neither. So a tiny firmware of our own
is run with the very accelerator and CPU that would be used later: it counts in a register and powers the machine off.
Real hardware acceleration needs a few hundredths of a second for that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from platformdirs import user_cache_path

from imgkit.errors import HostError, UsageError
from imgkit.host import process, scratch, wholefile
from imgkit.vm.qemu.machines import Machine, host_arch, machine
from imgkit.vm.sandbox.identity import Identity, may_open

log = logging.getLogger("imgkit.vm")

FIRMWARE_SIZE = 64 << 10
COUNT = 20_000_000
"""Loop turns. Two million would do for most, but an emulating KVM was seen to need only 1.2 s for those."""
LIMIT = 1.0
"""Seconds within which the loop must be done; process start included."""
EXIT_VALUE = 0x31
KVM = Path("/dev/kvm")
AcceleratorChoice: TypeAlias = Literal["auto", "kvm", "hvf", "tcg"]
REQUESTS: tuple[AcceleratorChoice, ...] = get_args(AcceleratorChoice)
_SCHEMA = 1  # of the cache; raise it when the firmware or the limit changes


@dataclass(frozen=True)
class Accelerator:
    """``name`` is "kvm", "hvf" or "tcg", ``cpu`` the model to use with it, ``reason`` one phrase why."""

    name: str
    cpu: str
    reason: str

    @property
    def argument(self) -> str:
        """The value of QEMU's ``-accel``."""
        return "tcg,thread=multi" if self.name == "tcg" else self.name


def x86_firmware(count: int = COUNT) -> bytes:
    """64 KiB that QEMU maps below 4 GiB: count down from ``count``, write 0x31 to port 0xF4, halt.

    16-bit real mode: the reset vector is 16 bytes before the end, in the segment that covers the whole image.
    """
    program = (
        b"\x66\xb9" + struct.pack("<I", count)  # mov ecx, count
        + b"\x66\x49"  # again: dec ecx
        + b"\x75\xfc"  # jnz again
        + bytes((0xB0, EXIT_VALUE))  # mov al, 0x31
        + b"\xe6\xf4"  # out 0xf4, al
        + b"\xf4\xeb\xfd"  # hlt, for ever
    )  # fmt: skip
    reset = FIRMWARE_SIZE - 16
    jump = b"\xe9" + struct.pack("<H", -(reset + 3) & 0xFFFF)  # jmp near, to offset 0
    return (program.ljust(reset, b"\xff") + jump).ljust(FIRMWARE_SIZE, b"\xff")


def arm64_firmware(count: int = COUNT) -> bytes:
    """64 KiB for the flash at address 0: count down from ``count``, then PSCI SYSTEM_OFF (HVC, 0x84000008)."""
    words = (
        0xD2800000 | (count & 0xFFFF) << 5,  # movz x0, #low
        0xF2A00000 | (count >> 16 & 0xFFFF) << 5,  # movk x0, #high, lsl 16
        0xF1000400,  # subs x0, x0, #1
        0x54FFFFE1,  # b.ne -4
        0xD2800100,  # movz x0, #8
        0xF2B08000,  # movk x0, #0x8400, lsl 16
        0xD4000002,  # hvc #0
        0x14000000,  # b .
    )
    return struct.pack("<8I", *words).ljust(FIRMWARE_SIZE, b"\xff")


def arguments(record: Machine, accelerator: str, cpu: str, firmware: Path) -> list[str]:
    """QEMU's arguments for one probe run."""
    words = [record.binary, "-machine", record.machine, "-accel", accelerator, "-cpu", cpu, "-m", "32"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", str(firmware)]
    if record.arch == "amd64":
        words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    return words


def expected_status(arch: str) -> int:
    """What QEMU leaves with after a good run: isa-debug-exit makes an odd number of the value written."""
    return EXIT_VALUE << 1 | 1 if arch == "amd64" else 0


def measure(record: Machine, accelerator: str, cpu: str, *, limit: float = LIMIT) -> str:
    """Run the firmware; an empty string if it came through in time, else one phrase that says what went wrong.

    Raises:
        HostError: the QEMU binary is missing.
    """
    image = x86_firmware() if record.arch == "amd64" else arm64_firmware()
    with scratch.folder() as folder:
        path = folder / "probe.bin"
        path.write_bytes(image)
        with process.start(arguments(record, accelerator, cpu, path), stderr=subprocess.PIPE) as child:
            try:
                _, stderr = child.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                return f"a loop of {COUNT:,} turns was not done in {limit:g} s"
    if child.returncode == expected_status(record.arch):
        return ""
    last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"QEMU {process.ending(child.returncode)}" + (f": {last}" if last else "")


def probe(arch: str, requested: str = "auto", *, cache: Path | None = None) -> Accelerator:
    """The accelerator for guests of ``arch``.

    Args:
        arch: "amd64" or "arm64".
        requested: "auto", or one of "kvm", "hvf", "tcg".
        cache: folder of remembered measurements; None means the user's cache folder.

    Raises:
        HostError: the requested accelerator does not work here (says why), or QEMU is missing.
        UsageError: the request is not known.
    """
    record = machine(arch)
    if requested not in REQUESTS:
        raise UsageError(f"{requested}: unknown accelerator", hint=f"known are {', '.join(REQUESTS)}")
    if shutil.which(record.binary) is None:
        raise process.missing(record.binary)
    if requested == "tcg":
        return Accelerator("tcg", record.tcg_cpu, "as requested")
    candidate = requested if requested != "auto" else ("hvf" if sys.platform == "darwin" else "kvm")
    problem = _obstacle(record, candidate) or _measured(record, candidate, cache)
    if not problem:
        return Accelerator(candidate, record.native_cpu, "it passed the timed probe")
    if requested == "auto":
        return Accelerator("tcg", record.tcg_cpu, f"no {candidate}: {problem}")
    raise HostError(f"accelerator {candidate} does not work here: {problem}", hint="--accel tcg always works")


def allowed(verdict: Accelerator, arch: str, requested: str, user: Identity | None, device: Path = KVM) -> Accelerator:
    """The accelerator for a QEMU that is ``user``, whom root starts: what root measured may be closed to it.

    Raises:
        HostError: it is, and it was asked for.
    """
    if verdict.name != "kvm" or user is None or may_open(user, device):
        return verdict
    problem = f"{device} is closed to {user}, as whom QEMU runs"
    advice = f"chgrp kvm {device} && chmod 660 {device} opens it (a rule of udev's: for good)"
    if requested != "auto":
        raise HostError(f"accelerator kvm does not work here: {problem}", hint=advice)
    log.warning("no kvm, so the guest is emulated and slow: %s; %s", problem, advice)
    return Accelerator("tcg", machine(arch).tcg_cpu, f"no kvm: {problem}")


def _obstacle(record: Machine, accelerator: str) -> str:
    """What speaks against the accelerator without running anything."""
    if host_arch() != record.arch:
        return f"{record.arch} guests are emulated on a host of another architecture"
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing" if not Path("/dev/kvm").exists() else "/dev/kvm may not be opened by this user"
    return ""


def _measured(record: Machine, accelerator: str, cache: Path | None) -> str:
    """:func:`measure`, remembered. Only what the clock had no part in, or a second look confirmed, is remembered."""
    folder = cache or user_cache_path("imgkit") / "probe"
    path = folder / f"{_key(record, accelerator)}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(path.read_text())["problem"]
        if isinstance(known, str):
            return known
    problem = measure(record, accelerator, record.native_cpu)
    if "was not done in" in problem:  # the machine may have been busy just then
        problem = measure(record, accelerator, record.native_cpu)
    with suppress(OSError):  # no cache is no error
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({"problem": problem, "when": int(time.time())}))
        wholefile.place({partial: path})
    return problem


def _key(record: Machine, accelerator: str) -> str:
    """Names a measurement by all that it depends on: the binary, the CPU arguments, this boot of this kernel."""
    binary = Path(shutil.which(record.binary) or record.binary).resolve()
    status = binary.stat()
    inputs = [str(binary), str(status.st_size), str(status.st_mtime_ns)]
    inputs += [record.arch, record.machine, accelerator, record.native_cpu, str(os.getuid()), str(_SCHEMA)]
    inputs += [platform.release(), _boot_id()]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:32]


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
