"""How long images take from QEMU's start to the agent's first heartbeat, and to power off.

    python -m benchmarks.boot out/linux-amd64.qcow2 out/linux-arm64.qcow2 --tries 3

Every firmware that the architecture has. Seconds are wall time, "CPU" is the processor time of QEMU until the
heartbeat, which says more on a busy machine; medians of all tries. The stages are what shows on the console,
"settled" is when the host name, the loopback device and the network are there as well.
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
FIRMWARE = {"amd64": ("bios", "uefi", "direct"), "arm64": ("uefi", "direct")}


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
    """User and system time of a process (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def boot(image: Path, arch: str, firmware: str, options: argparse.Namespace) -> Measured:
    """Boot once, switch off once everything has started."""
    chosen: dict[str, Any] = {"arch": arch, "firmware": firmware, "accelerator": options.accel}
    chosen |= {
        "memory_mib": options.memory,
        "cpus": options.cpus,
        "adapt": STYLES[options.style],
        "timeout": options.timeout,
    }
    chosen["settle"] = False
    if firmware == "direct":
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
    return f"{statistics.median(values):.1f}" if values else "–"


def row(image: Path, firmware: str, measured: list[Measured]) -> str:
    stages = (median([one.stages[name] for one in measured if name in one.stages]) for name in STAGES)
    off = [one.off for one in measured if one.off is not None]
    ready = median([one.ready for one in measured])
    settled = median([one.settled for one in measured if one.settled is not None])
    cells = (image.stem, firmware, *stages, ready, settled, median([one.cpu for one in measured]), median(off))
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    made.add_argument("--firmware", action="append", help="only these")
    made.add_argument("--tries", type=int, default=3)
    made.add_argument("--accel", default="auto")
    made.add_argument("--style", default="harness", choices=sorted(STYLES))
    made.add_argument("--memory", type=int, default=None, metavar="MIB")
    made.add_argument("--cpus", type=int, default=2)
    made.add_argument(
        "--settle", type=float, default=8.0, metavar="S", help="between the settled system and the power button"
    )
    made.add_argument("--timeout", type=float, default=300.0, metavar="S")
    return made


def main() -> int:
    options = parser().parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, medians of {options.tries}\n")
    titles = ("image", "firmware", *STAGES, "ready s", "settled s", "CPU s", "off s")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    for image in options.images:
        arch = guess_arch(image)
        for firmware in options.firmware or FIRMWARE[arch]:
            try:
                measured = [boot(image, arch, firmware, options) for _ in range(options.tries)]
                print(row(image, firmware, measured), flush=True)
            except ImgkitError as error:
                print(f"| {image.stem} | {firmware} | {error.message} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
