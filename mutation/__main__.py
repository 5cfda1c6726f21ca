"""Change the code in small ways, one at a time, and report those that no test notices (docs/development/testing.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
import queue
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mutation import nodetests, python
from mutation.change import Change
from mutation.copies import ROOT, Copy
from mutation.covering import RINGS, Covering, measure
from mutation.nodetests import Scripts

PAGE = ROOT / "docs" / "testing.md"
SEED = 9
NOTICED, SURVIVED, UNCOVERED, ACCEPTED = "noticed", "survived", "not executed", "accepted"


def find_changes(paths: Sequence[str]) -> list[Change]:
    """Return all changes to these files and folders of the repository."""
    listing = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listing.splitlines() if (ROOT / name).is_file()]
    changes = [
        change for name in files if name.endswith(".py") for change in python.changes(name, (ROOT / name).read_bytes())
    ]
    scripts = [name for name in files if name.endswith(".js") and name.startswith("overlay/")]
    if scripts:
        command = ["node", "--expose-internals", "mutation/javascript.js", *scripts]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        changes += [Change(**fields) for fields in json.loads(printed)]
    return changes


def accepted() -> set[str]:
    """Return the lines of docs/development/testing.md that name an accepted survivor, without their line numbers."""
    text = PAGE.read_text() if PAGE.exists() else ""
    listed = re.findall(r"^\| `+ ?(.*?) ?`+ \|", text, re.MULTILINE)
    return {_numberless(shown.replace("\\|", "|")) for shown in listed}


def _numberless(shown: str) -> str:
    return re.sub(r":\d+:", ":", shown, count=1)


def state(rings: str, tests: Sequence[str]) -> str:
    """Return a name for what these tests execute: another one as soon as the code, the tests or the choice differ."""
    listing = subprocess.run(["git", "ls-files", "-z", "imgkit", "tests"], cwd=ROOT, capture_output=True, check=True)
    digest = hashlib.sha256(json.dumps([rings, *tests]).encode())
    for name in listing.stdout.decode().split("\0")[:-1]:
        if (ROOT / name).is_file():
            digest.update(f"\0{name}\0".encode() + (ROOT / name).read_bytes())
    return f"executed-{digest.hexdigest()[:16]}"


def sample(candidates: Sequence[Change], percent: float, seed: int) -> list[Change]:
    """Return ``percent`` of the changes of each file, at least one of a file that has any."""
    chosen: list[Change] = []
    for path in sorted({change.path for change in candidates}):
        in_file = [change for change in candidates if change.path == path]
        count = max(1, round(len(in_file) * percent / 100))
        chosen += random.Random(f"{seed} {path}").sample(in_file, count)
    return sorted(chosen)


def scripts_for() -> Scripts:
    """Return which test of the JavaScript executes what; it is measured if that has not been done yet."""
    file = ROOT / "out" / "mutation" / nodetests.state(ROOT)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        nodetests.measure(ROOT, file)
    return Scripts(file)


def run(
    chosen: Sequence[Change], options: argparse.Namespace, covering: Covering | None, scripts: Scripts | None
) -> dict[Change, str]:
    """Try every change, and return the result of each."""
    known = accepted()
    copies: queue.Queue[Copy] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="imgkit-mutation-", ignore_cleanup_errors=True) as base:
        Path(base).chmod(0o755)  # tests start processes of other users, whose files are below
        every = [Copy(Path(base) / str(number), options.timeout, scripts) for number in range(options.jobs)]
        for copy in every:
            if covering is not None:
                copy.serve(options.tests or ["tests"])
            copies.put(copy)

        def attempt(change: Change) -> str:
            """Return the result of one change."""
            source = (ROOT / change.path).read_bytes()
            shown = change.shown(source)
            if _numberless(shown) in known:
                return ACCEPTED
            if change.path.endswith(".js"):
                assert scripts is not None
                tests: Sequence[str] = scripts.tests(change.path, source, change.start, options.most)
            else:
                assert covering is not None
                tests = covering.tests(change.path, change.line, options.most)
            if not tests:
                return UNCOVERED
            copy = copies.get()
            try:
                fork = covering is not None and not covering.on_import(change.path, change.line)
                result = NOTICED if copy.noticed(change, tests, fork=fork) else SURVIVED
            finally:
                copies.put(copy)
            if result == SURVIVED:
                tqdm.write(shown)
                sys.stdout.flush()
            return result

        try:
            with ThreadPoolExecutor(options.jobs) as pool:
                results = tqdm(pool.map(attempt, chosen), total=len(chosen), unit="change", disable=options.quiet)
                return dict(zip(chosen, results, strict=True))
        finally:
            for copy in every:
                copy.close()


def report(results: dict[Change, str]) -> str:
    """Return a table, a line for each folder, and the changes that no test executes."""
    folders: dict[str, Counter[str]] = {}
    for change, result in results.items():
        folders.setdefault(str(Path(change.path).parent), Counter())[result] += 1
    folders["all"] = Counter(results.values())
    lines = [
        "| folder | changes | noticed | survived | accepted | not executed by these tests | score |",
        "|---|" + "---|" * 6,
    ]
    for folder, counts in folders.items():
        tried = counts[NOTICED] + counts[SURVIVED]
        score = f"{counts[NOTICED] / tried:.0%}" if tried else ""
        cells = [counts.total(), counts[NOTICED], counts[SURVIVED], counts[ACCEPTED], counts[UNCOVERED], score]
        lines.append(f"| `{folder}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="script/mutate", description=__doc__)
    parser.add_argument(
        "paths", nargs="*", default=["imgkit", "overlay"], metavar="PATH", help="files and folders to change"
    )
    parser.add_argument("--percent", type=float, default=5, help="share of the changes that is tried (default: 5)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"decides which are tried (default: {SEED})")
    parser.add_argument("--jobs", type=int, default=2, help="changes that are tried at once (default: 2)")
    parser.add_argument("--most", type=int, default=1000, help="tests that are run for one change (default: 1000)")
    parser.add_argument(
        "--timeout", type=float, default=180, help="seconds for them; then it counts as noticed (default: 180)"
    )
    parser.add_argument("--only", metavar="REGEX", help="changes whose description matches")
    parser.add_argument(
        "--coverage",
        type=Path,
        metavar="FOLDER",
        help="which test executes which line, of an earlier run; made if it is missing",
    )
    parser.add_argument("--rings", default=RINGS, help=f"which tests, as pytest's -m says it (default: {RINGS})")
    parser.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="only these test files")
    parser.add_argument("--list", action="store_true", help="show the changes and try none")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    chosen = sample(find_changes(options.paths), options.percent, options.seed)
    if options.only:
        chosen = [
            change for change in chosen if re.search(options.only, change.shown((ROOT / change.path).read_bytes()))
        ]
    if options.list:
        for change in chosen:
            sys.stdout.write(change.shown((ROOT / change.path).read_bytes()) + "\n")
        return 0
    covering = None
    if any(change.path.endswith(".py") for change in chosen):
        data = options.coverage or ROOT / "out" / "mutation" / state(options.rings, options.tests)
        data.parent.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            measure(ROOT, data, options.rings, options.tests)
        covering = Covering(data)
    scripts = scripts_for() if any(change.path.endswith(".js") for change in chosen) else None
    results = run(chosen, options, covering, scripts)
    for change, result in results.items():
        if result == UNCOVERED:
            sys.stdout.write(f"{result}: {change.shown((ROOT / change.path).read_bytes())}\n")
    sys.stdout.write(report(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
