"""Say what this host can do, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imgkit.cli.command import Invocation
from imgkit.cli.hostchecks import HostCheck, examine
from imgkit.errors import HostError
from imgkit.host import terminal

NAME = "doctor"
HELP = "what this host can do, what is missing, the command that fixes it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where builds would write to")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print the checks. The status is 5 if something that is required is missing, else 0."""
    checks = examine(options.out)
    if options.json:
        print(terminal.as_json([asdict(check) for check in checks]))
    else:
        print(terminal.block(table(checks)))
    missing = any(check.required and not check.ok for check in checks)
    return HostError.exit_status if missing else 0


def table(checks: Sequence[HostCheck]) -> str:
    """Return one line for each check, and below it the fix of what is missing or the advice."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok     " if check.ok else "MISSING" if check.required else "missing"
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}")
        if not check.ok:
            lines.append(f"{'':<{width + 9}}  needed to {check.purpose}; fix: {check.fix}")
        elif check.advice:
            lines.append(f"{'':<{width + 9}}  {check.advice}")
    return "\n".join(lines)
