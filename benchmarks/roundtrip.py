"""Measure how long a trivial request takes on a booted image, and what waiting costs the idle guest.

    python -m benchmarks.roundtrip IMAGE [--count N] [--idle SECONDS] [--accel tcg] [--serial]

The round trip lasts from before the host's write until after its read of the result. It includes the polling of the
host (50 ms) and of the guest (250 ms). "node" starts Node in the guest, which is what most agents do first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from imgkit.vm import VM
from imgkit.vm.qemu.machines import guess_arch

COMMANDS = {"true": ["true"], "sh": ["/bin/sh", "-c", "echo hello"], "node": ["node", "-e", "0"]}


def trips(vm: VM, command: Sequence[str], count: int) -> list[float]:
    """Return the seconds of ``count`` round trips, sorted, without the first one, which loads the program."""
    times = []
    for _ in range(count + 1):
        begun = time.monotonic()
        vm.run(command).check()
        times.append(time.monotonic() - begun)
        time.sleep(0.037)  # so that the two sides' polling does not fall into step
    return sorted(times[1:])


def idle(vm: VM, seconds: float) -> tuple[float, float]:
    """Return the shares of one CPU that agentd and the whole guest use while nothing happens."""
    beat = vm.heartbeat()
    if beat is None:
        raise SystemExit("no heartbeat")
    script = f"cat /proc/{beat.pid}/stat /proc/stat; sleep {seconds}; cat /proc/{beat.pid}/stat /proc/stat"
    lines = vm.run(script, timeout=seconds + 60).text.splitlines()
    agentd = [
        sum(map(int, line.rpartition(")")[2].split()[11:13])) for line in lines if line.startswith(f"{beat.pid} (")
    ]
    busy = [busy_ticks(line) for line in lines if line.startswith("cpu ")]
    return ((agentd[1] - agentd[0]) / 100 / seconds, (busy[1] - busy[0]) / 100 / seconds)


def busy_ticks(line: str) -> int:
    """Return the ticks of user, nice, system, irq and softirq in the first line of /proc/stat (proc_stat(5))."""
    fields = list(map(int, line.split()[1:]))
    return sum(fields[:3]) + sum(fields[5:7])


def main() -> None:
    """Boot an image, and print the times of requests and the load of the idle guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--idle", type=float, default=30.0)
    parser.add_argument("--accel", default="auto")
    parser.add_argument("--serial", action="store_true", help="over the virtio-serial port instead of the share")
    options = parser.parse_args()
    ipc = "serial" if options.serial else "file"
    arch = guess_arch(options.image)
    firmware = "bios" if arch == "amd64" else "uefi"
    with VM.boot(options.image, arch=arch, firmware=firmware, accelerator=options.accel, ipc=ipc) as vm:
        time.sleep(15)  # what starts after agentd
        print(f"| request ({ipc} mode, {vm.accelerator.name}) | median | p95 | max |")
        print("|---|---|---|---|")
        for name, command in COMMANDS.items():
            times = trips(vm, command, options.count)
            picked = [times[len(times) // 2], times[len(times) * 95 // 100], times[-1]]
            print(f"| {name} | " + " | ".join(f"{seconds:.2f} s" for seconds in picked) + " |")
        agentd, guest = idle(vm, options.idle)
        print(f"\nidle for {options.idle:g} s: agentd {agentd:.1%} of one CPU, the whole guest {guest:.1%}")


if __name__ == "__main__":
    main()
