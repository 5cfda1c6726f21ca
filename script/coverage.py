"""Measure which code the tests execute: lines and branches of the package, statements and branches of agentd.

    python -m script.coverage            the fast, the slow and the hostile tests
    python -m script.coverage --boots    the tests that boot as well: what guests execute is fetched from them

Programs that tests start as processes of their own are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import coverage

ROOT = Path(__file__).parents[1]
_RINGS = {False: "not mirror and not vm", True: "not mirror"}


def main() -> int:
    """Run the tests and print two tables; return the exit status of the tests."""
    parser = argparse.ArgumentParser(prog="python -m script.coverage", description=__doc__)
    parser.add_argument("--boots", action="store_true", help="also run the tests that boot")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "coverage", help="folder for the data")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    variables = {**os.environ, "NODE_V8_COVERAGE": str(out / "node"), "IMGKIT_COVERAGE": str(out / "guests")}
    shutil.rmtree(out, ignore_errors=True)  # figures of an earlier run do not count
    (out / "guests").mkdir(parents=True)
    scripts = sorted(str(path) for path in (ROOT / "tests" / "agentd").glob("*.test.js"))
    status = subprocess.run(
        ["node", "--test", *scripts], cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, check=False
    ).returncode
    variables.pop("NODE_V8_COVERAGE")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", "-m", _RINGS[options.boots]]
    command += ["-p", "mutation.tracing", f"--covered={out / 'python'}"]
    status |= subprocess.run(command, cwd=ROOT, env=variables, stdout=sys.stderr, check=False).returncode
    sys.stdout.write(table("package", ("lines", "branches"), python_counts(out / "python")) + "\n\n")
    sys.stdout.write(table("overlay", ("statements", "branches"), script_counts(out)) + "\n")
    return status


def table(title: str, columns: tuple[str, str], rows: Mapping[str, tuple[int, int, int, int]]) -> str:
    """Return a table of executed and all lines (or statements), executed and all branches."""
    total = tuple(sum(row[column] for row in rows.values()) for column in range(4))
    lines = [f"| {title} | {columns[0]} | {columns[1]} |", "|---|---|---|"]
    for name, row in [*sorted(rows.items()), ("all", total)]:
        lines.append(f"| `{name}` | {_share(row[0], row[1])} | {_share(row[2], row[3])} |")
    return "\n".join(lines)


def _share(executed: int, count: int) -> str:
    return f"{executed / count:.0%} of {count}" if count else ""


def python_counts(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return the counts of each package, from the data of coverage.py in ``folder``."""
    measured = coverage.Coverage(data_file=str(folder / "data"), branch=True, source=["imgkit"], config_file=False)
    measured.combine([str(path) for path in folder.glob("data.*")], keep=True)
    report = folder / "report.json"
    measured.json_report(outfile=str(report))
    packages: dict[str, Counter[str]] = {}
    for name, file in json.loads(report.read_text())["files"].items():
        parts = Path(name).parts
        inside = parts[parts.index("imgkit") + 1 :]
        packages.setdefault(inside[0].removesuffix(".py"), Counter()).update(file["summary"])
    keys = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    return {
        name: (counts[keys[0]], counts[keys[1]], counts[keys[2]], counts[keys[3]]) for name, counts in packages.items()
    }


def script_counts(out: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return the counts of each script of the overlay, from what Node wrote in tests and in guests."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "overlay").rglob("*.js"))]
    command = ["node", "--expose-internals", "script/positions.js", *paths]
    listed = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    executed: dict[str, bytearray] = {path: bytearray(len((ROOT / path).read_text())) for path in paths}
    for script in recorded(out):
        path = next((path for path in paths if script["url"].endswith(path.removeprefix("overlay"))), None)
        if path is not None:
            _add(executed[path], script["functions"])
    return {
        path: (
            sum(executed[path][start] for start in positions["statements"]),
            len(positions["statements"]),
            sum(executed[path][start] for start in positions["branches"]),
            len(positions["branches"]),
        )
        for path, positions in listed.items()
    }


def recorded(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of scripts (V8's ``ScriptCoverage``) of all processes, on the host and in guests."""
    texts: list[bytes] = [path.read_bytes() for path in (out / "node").glob("*.json")]
    for archive in (out / "guests").glob("*.tar.gz"):
        if archive.stat().st_size:
            with tarfile.open(archive) as members:
                texts += [file.read() for member in members if (file := members.extractfile(member)) is not None]
    for text in texts:
        yield from json.loads(text)["result"]


def _add(executed: bytearray, functions: Iterable[Mapping[str, Any]]) -> None:
    """Mark the characters that a process executed: of ranges inside one another the innermost counts."""
    own = bytearray(len(executed))
    for function in functions:
        for block in function["ranges"]:
            end = min(block["endOffset"], len(own))
            own[block["startOffset"] : end] = bytes([block["count"] > 0]) * max(0, end - block["startOffset"])
    for index, value in enumerate(own):
        executed[index] |= value


if __name__ == "__main__":
    sys.exit(main())
