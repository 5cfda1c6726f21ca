"""Say what this host can do, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from imgkit.cli.command import Invocation
from imgkit.cli.hostchecks import HostCheck, examine
from imgkit.host import terminal

NAME = "doctor"
HELP = "what this host can do, what is missing, the command that fixes it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where builds would write to")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Status 0 when nothing that is required is missing, else 5."""
    findings = examine(options.out)
    if options.json:
        print(terminal.as_json([asdict(finding) for finding in findings]))
    else:
        print(terminal.block(table(findings)))
    return 0 if all(finding.ok or not finding.required for finding in findings) else 5


def table(findings: list[HostCheck]) -> str:
    """One line a finding; what is wrong is followed by its fix."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok     " if finding.ok else "MISSING" if finding.required else "missing"
        lines.append(f"{mark}  {finding.name:<{width}}  {finding.detail}")
        if not finding.ok:
            lines.append(f"{'':<{width + 9}}  needed to {finding.purpose}; fix: {finding.fix}")
    return "\n".join(lines)
