"""Boot an image, wait until agentd answers, say how long that took, and power it off.

What was seen is written beside a qcow2 image as its .boot.json: the record that imgkit publish asks for.
"""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from imgkit import __version__
from imgkit.cli.command import Invocation
from imgkit.cli.options import machineoptions
from imgkit.cli.terminals import stay
from imgkit.host import colours, terminal
from imgkit.image import bootrecord
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.running import VM

NAME = "boot"
HELP = "boot an image and wait for agentd"
log = logging.getLogger("imgkit")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    machineoptions.arguments(parser)
    parser.add_argument(
        "--wait", action="store_true", help="keep it running until Ctrl-C; imgkit shell IMAGE opens a terminal in it"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Boot the image, print how long it took, and keep the boot record."""
    with bootrecord.Evidence() as evidence:
        with machineoptions.boot(options, before=evidence.hold, terminals=options.wait) as vm:
            ready = datetime.now(timezone.utc)
            beat = vm.heartbeat()
            if options.wait:
                _say_ready(options, vm)
                stay.until_interrupted(options.image, vm)
            clean = vm.power_off()
            stages = vm.stages()
        facts = {
            "secondsToReady": vm.seconds_to_ready,
            "secondsToSettled": vm.seconds_to_settled,
            "accelerator": vm.accelerator.name,
            "memoryMiB": vm.memory_mib,
            "poweredOffCleanly": clean,
            **({} if options.machine == "standard" else {"machine": options.machine}),
        }
        _keep_record(options, evidence, vm, {**facts, **_about(beat, ready)})
    if options.json:
        # The guest's values come first, so that they cannot replace our own.
        print(terminal.as_json({**_extra(beat), "image": str(options.image), "stages": stages, **facts}))
    elif not options.wait:  # printed last, since the reader of our output may be gone, and the boot record must not be
        _say_ready(options, vm)
    if not clean:
        log.warning("the guest did not power off by itself and was switched off")
    return 0


def _say_ready(options: argparse.Namespace, vm: VM) -> None:
    """Print when agentd was ready, unless JSON is wanted."""
    if not options.json:
        line = f"{options.image}: agentd ready after {vm.seconds_to_ready:.1f} s ({vm.accelerator.name})"
        print(colours.paint(terminal.line(line), "green", sys.stdout), flush=True)


def _extra(beat: Heartbeat | None) -> dict[str, Any]:
    """Return what the agent reports about itself."""
    return dict(beat.extra) if beat else {}


def _about(beat: Heartbeat | None, ready: datetime) -> dict[str, Any]:
    """Return the part of a boot record that says which agent answered, and when."""
    agent = bootrecord.guest_facts(_extra(beat))
    time = ready.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": time, "imgkit": __version__, "buildId": agent.get("buildId"), "agent": agent}


def _keep_record(options: argparse.Namespace, evidence: bootrecord.Evidence, vm: VM, facts: dict[str, Any]) -> None:
    """Write the boot record of a qcow2 image. The boot has succeeded even if that fails, so a warning is enough."""
    try:
        if not evidence.publishable:
            return
        record = evidence.record(vm.arch, vm.firmware, facts)
        if bootrecord.keep(options.image, record) is None:
            log.info("%s: is part of a publication, whose boot records stay as they are", options.image)
    except bootrecord.ChangedError as changed:
        log.warning("%s, so there is no boot record of it", changed)
    except OSError as cause:
        log.warning("%s: no boot record could be written: %s", bootrecord.path_of(options.image), cause.strerror)
