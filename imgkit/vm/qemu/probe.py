"""Find out which accelerator guests can really use on this host.

    accelerator = probe("amd64")    # Accelerator(name="kvm", cpu="host", reason="it passed the timed probe")

``/dev/kvm`` proves little: on some hosts it opens and answers every ioctl, but then aborts QEMU or runs guests a
hundred times slower than plain emulation, and ``accel=kvm:tcg`` does not fall back in either case. So a tiny firmware
is run with the accelerator and the CPU that would be used later. It counts in a register and powers the machine off,
which takes real hardware acceleration a few hundredths of a second.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from platformdirs import user_cache_path

from imgkit.errors import HostError, UsageError
from imgkit.host import process, scratch, wholefile
from imgkit.vm.qemu.machines import Machine, host_arch, machine
from imgkit.vm.sandbox.identity import Identity, can_open

log = logging.getLogger("imgkit.vm")

FIRMWARE_SIZE = 64 << 10
COUNT = 20_000_000
"""Iterations of the loop. Two million would be too few: an emulated KVM was observed to need only 1.2 s for them."""
LIMIT = 1.0
"""Seconds within which the loop must end, including the start of the process."""
EXIT_VALUE = 0x31
"""Value that the firmware writes to QEMU's exit device at the end."""
KVM = Path("/dev/kvm")
AcceleratorChoice: TypeAlias = Literal["auto", "kvm", "hvf", "tcg"]
REQUESTS: tuple[AcceleratorChoice, ...] = get_args(AcceleratorChoice)
_SCHEMA = 1  # of the cache; raise it when the firmware or the limit changes


@dataclass(frozen=True)
class Accelerator:
    """The accelerator and the CPU model that QEMU runs guests with.

    Attributes:
        name: "kvm", "hvf" or "tcg" (emulation).
        cpu: the CPU model to use with it.
        reason: why it was chosen, as a phrase.
    """

    name: str
    cpu: str
    reason: str

    @property
    def argument(self) -> str:
        """The value of QEMU's ``-accel``."""
        return "tcg,thread=multi" if self.name == "tcg" else self.name


def x86_firmware(count: int = COUNT) -> bytes:
    """Return a firmware of 64 KiB, which QEMU maps below 4 GiB.

    It counts down from ``count``, writes 0x31 to port 0xF4 and halts. It runs in 16-bit real mode: the reset vector is
    16 bytes before the end, in the segment that covers the whole image.
    """
    program = (
        b"\x66\xb9" + struct.pack("<I", count)  # mov ecx, count
        + b"\x66\x49"  # again: dec ecx
        + b"\x75\xfc"  # jnz again
        + bytes((0xB0, EXIT_VALUE))  # mov al, 0x31
        + b"\xe6\xf4"  # out 0xf4, al
        + b"\xf4\xeb\xfd"  # hlt; jmp back to it
    )  # fmt: skip
    reset = FIRMWARE_SIZE - 16
    jump = b"\xe9" + struct.pack("<H", -(reset + 3) & 0xFFFF)  # jmp near, to offset 0
    return (program.ljust(reset, b"\xff") + jump).ljust(FIRMWARE_SIZE, b"\xff")


def arm64_firmware(count: int = COUNT) -> bytes:
    """Return a firmware of 64 KiB for the flash at address 0.

    It counts down from ``count`` and calls PSCI SYSTEM_OFF, which is function 0x84000008, by HVC (Arm DEN 0022).
    """
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
    """Return QEMU's command line for one run of the probe."""
    words = [record.binary, "-machine", record.machine, "-accel", accelerator, "-cpu", cpu, "-m", "32"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", str(firmware)]
    if record.arch == "amd64":
        words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    return words


def expected_status(arch: str) -> int:
    """Return QEMU's exit status after a successful run: isa-debug-exit turns the value into an odd number."""
    return EXIT_VALUE << 1 | 1 if arch == "amd64" else 0


def measure(record: Machine, accelerator: str, cpu: str, *, limit: float = LIMIT) -> str:
    """Run the firmware with this accelerator and CPU.

    Returns:
        An empty string if the firmware ended in time, else a phrase that says what went wrong.

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
    """Return the accelerator for guests of ``arch``.

    Args:
        arch: "amd64" or "arm64".
        requested: "auto", or the accelerator to use.
        cache: folder of earlier results; None means the user's cache folder.

    Raises:
        HostError: QEMU is missing, or the requested accelerator does not work here, which the message explains.
        UsageError: the architecture or the requested accelerator is unknown.
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


def allowed(
    accelerator: Accelerator, arch: str, requested: str, user: Identity | None, device: Path = KVM
) -> Accelerator:
    """Return the accelerator that QEMU can use as ``user``, who may lack access to a device that root can use.

    Args:
        accelerator: the result of :func:`probe`.
        arch: the guest's architecture.
        requested: the argument ``requested`` of :func:`probe`.
        user: the user that QEMU runs as; None for the user of this process.
        device: path of the KVM device.

    Raises:
        HostError: ``requested`` is "kvm", and its device is closed to ``user``.
    """
    if accelerator.name != "kvm" or user is None or can_open(user, device):
        return accelerator
    problem = f"{device} is closed to {user}, the user that QEMU runs as"
    advice = f"chgrp kvm {device} && chmod 660 {device} opens it (a rule of udev's: for good)"
    if requested != "auto":
        raise HostError(f"accelerator kvm does not work here: {problem}", hint=advice)
    log.warning("no kvm, so the guest is emulated and slow: %s; %s", problem, advice)
    return Accelerator("tcg", machine(arch).tcg_cpu, f"no kvm: {problem}")


def _obstacle(record: Machine, accelerator: str) -> str:
    """Return a phrase that says what rules the accelerator out; empty if nothing does. No program is run."""
    if host_arch() != record.arch:
        return f"{record.arch} guests are emulated on a host of another architecture"
    if accelerator == "kvm" and not os.access(KVM, os.R_OK | os.W_OK):
        return f"{KVM} may not be opened by this user" if KVM.exists() else f"{KVM} is missing"
    return ""


def _measured(record: Machine, accelerator: str, cache: Path | None) -> str:
    """Return the cached result of :func:`measure`, or measure now. A loop that took too long is run a second time."""
    folder = cache or user_cache_path("imgkit") / "probe"
    path = folder / f"{_key(record, accelerator)}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        cached = json.loads(path.read_text())["problem"]
        if isinstance(cached, str):
            return cached
    problem = measure(record, accelerator, record.native_cpu)
    if "was not done in" in problem:  # the machine may have been busy just then
        problem = measure(record, accelerator, record.native_cpu)
    with suppress(OSError):  # it works without a cache
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({"problem": problem}))
        wholefile.place({partial: path})
    return problem


def _key(record: Machine, accelerator: str) -> str:
    """Return a name made of everything that a measurement depends on: binary, CPU, kernel and this boot of it."""
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
