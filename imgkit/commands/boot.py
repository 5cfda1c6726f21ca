"""Boot an image, wait until its agent answers, say how long that took, and power it off."""

from __future__ import annotations

import argparse
import json
import logging

from imgkit.commands import machine

NAME = "boot"
HELP = "boot an image and wait for its agent"
log = logging.getLogger("imgkit")


def arguments(parser: argparse.ArgumentParser) -> None:
    machine.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    with machine.boot(options) as vm:
        beat = vm.heartbeat()
        seconds = vm.seconds_to_ready
        clean = vm.power_off()
        stages = vm.stages()
    if options.json:
        facts = {
            **(dict(beat.extra) if beat else {}),  # the guest's words first: ours hold
            "image": str(options.image),
            "secondsToReady": seconds,
            "secondsToSettled": vm.seconds_to_settled,
            "stages": stages,
            "accelerator": vm.verdict.accelerator,
            "memoryMiB": vm.memory_mib,
            "poweredOffCleanly": clean,
        }
        print(json.dumps(facts, indent=2))
    else:
        print(f"{options.image}: agent ready after {seconds:.1f} s ({vm.verdict.accelerator})")
    if not clean:
        log.warning("the guest did not power off by itself and was switched off")
    return 0
