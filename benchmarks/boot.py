"""Measure how long images take from QEMU's start to the agent's first heartbeat, and to power off.

    python -m benchmarks.boot out/linux-amd64.qcow2 out/linux-arm64.qcow2 --tries 3

Every firmware of the architecture is measured, and for amd64 QEMU's machine microvm as well; the figures are the
medians of all tries. Seconds are wall time; "CPU"
is the processor time of QEMU until the heartbeat, which says more on a busy machine. The stages are recognised on the
console; "settled" is when the host name, the loopback device and the network are ready as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgkit.errors import ImgkitError
from imgkit.vm import VM
from imgkit.vm.qemu.machines import guess_arch
from tests.vmspecs import STYLES

STAGES = ("boot_loader", "kernel", "initramfs", "init", "agent")
FIRMWARE = {"amd64": ("bios", "uefi", "direct", "microvm"), "arm64": ("uefi", "direct")}


@dataclass(frozen=True)
class Measured:
    """One boot: seconds to the heartbeat and until the system is settled, QEMU's CPU seconds, the stages.

    ``off`` is the seconds of power-off, None if the machine did not switch itself off.
    """

    ready: float
    settled: float | None
    cpu: float
    off: float | None
    stages: Mapping[str, float]


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def boot(image: Path, arch: str, firmware: str, options: argparse.Namespace) -> Measured:
    """Boot once, and switch the machine off when everything has started.

    Args:
        firmware: one of :data:`FIRMWARE`; "microvm" is a direct boot of that machine.
    """
    chosen: dict[str, Any] = {"arch": arch, "accelerator": options.accel}
    chosen |= {"machine": "microvm"} if firmware == "microvm" else {"firmware": firmware}
    chosen |= {
        "memory_mib": options.memory,
        "cpus": options.cpus,
        "adapt": STYLES[options.style],
        "timeout": options.timeout,
    }
    chosen["settle"] = False
    if firmware in ("direct", "microvm"):
        chosen["kernel"] = image.parent / f"vmlinuz-virt-{arch}"
        chosen["initrd"] = image.parent / f"initramfs-virt-{arch}"
    with VM.boot(image, **chosen) as vm:
        cpu = cpu_seconds(vm.pid)
        ready = vm.seconds_to_ready or 0.0
        vm.settle(60)
        time.sleep(options.settle)
        started = time.monotonic()
        clean = vm.power_off(60)
        return Measured(ready, vm.seconds_to_settled, cpu, time.monotonic() - started if clean else None, vm.stages())


def median(values: list[float]) -> str:
    """Return the median for the table, or a dash if there are no values."""
    return f"{statistics.median(values):.1f}" if values else "–"


def row(image: Path, firmware: str, boots: list[Measured]) -> str:
    """Return a row of the table."""
    stages = (median([boot.stages[name] for boot in boots if name in boot.stages]) for name in STAGES)
    off = [boot.off for boot in boots if boot.off is not None]
    ready = median([boot.ready for boot in boots])
    settled = median([boot.settled for boot in boots if boot.settled is not None])
    cells = (image.stem, firmware, *stages, ready, settled, median([boot.cpu for boot in boots]), median(off))
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    options_parser.add_argument("--firmware", action="append", help="only these, or microvm")
    options_parser.add_argument("--tries", type=int, default=3)
    options_parser.add_argument("--accel", default="auto")
    options_parser.add_argument("--style", default="harness", choices=sorted(STYLES))
    options_parser.add_argument("--memory", type=int, default=None, metavar="MIB")
    options_parser.add_argument("--cpus", type=int, default=2)
    options_parser.add_argument(
        "--settle", type=float, default=8.0, metavar="S", help="between the settled system and the power button"
    )
    options_parser.add_argument("--timeout", type=float, default=300.0, metavar="S")
    return options_parser


def main() -> int:
    """Boot every image with every firmware, and print the table."""
    options = parser().parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, medians of {options.tries}\n")
    titles = ("image", "firmware", *STAGES, "ready s", "settled s", "CPU s", "off s")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    for image in options.images:
        arch = guess_arch(image)
        kinds = options.firmware or FIRMWARE[arch]
        boots: dict[str, list[Measured]] = {firmware: [] for firmware in kinds}
        for _ in range(options.tries):  # they take turns, since the host is not equally busy all the time
            for firmware in kinds:
                try:
                    boots[firmware].append(boot(image, arch, firmware, options))
                except ImgkitError as error:
                    print(f"| {image.stem} | {firmware} | {error.message} |", flush=True)
        for firmware in filter(boots.get, kinds):
            print(row(image, firmware, boots[firmware]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
