"""Change the code in small ways, one at a time, and report the changes that no test notices (docs/testing.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from mutation import python
from mutation.change import Change
from mutation.covering import RINGS, Covering, measure

ROOT = Path(__file__).parents[1]
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
    """Return the lines of docs/testing.md that name an accepted survivor, without their line numbers."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return {_numberless(line) for line in re.findall(r"^\| `+ ?(.*?) ?`+ \|", text, re.MULTILINE)}


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


class Copy:
    """A copy of the repository in which one change at a time is made and tested."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self.root = folder / "imgkit"
        ignored = shutil.ignore_patterns(".venv", ".git", "out", ".hypothesis", "corpus")
        shutil.copytree(ROOT, self.root, ignore=ignored, symlinks=True)
        self._python = _environment(folder / "venv", self.root)
        self._timeout = timeout
        self._trusted: set[str] = set()

    def noticed(self, change: Change, tests: Sequence[str]) -> bool:
        """Return True if one of the tests fails, or does not end, with this change made.

        Raises:
            SystemExit: the test that failed does so on the unchanged code as well, so that it proves nothing.
        """
        target = self.root / change.path
        original = (ROOT / change.path).read_bytes()
        target.write_bytes(change.apply(original))
        try:
            noticed = self.fails(tests)
        finally:
            shutil.copy2(ROOT / change.path, target)
        if noticed:
            self._check(self._failed(tests))
        return noticed

    def _failed(self, tests: Sequence[str]) -> str:
        """Return the test that failed last, or the first one if none could be run."""
        lines = self._output.read_text(errors="replace").splitlines()
        named = (test for test in tests for line in lines if line.startswith((f"FAILED {test}", f"ERROR {test}")))
        return next(named, tests[0])

    def _check(self, test: str) -> None:
        if test not in self._trusted and self.fails([test]):
            raise SystemExit(f"error: {test} fails in a copy of the unchanged code")
        self._trusted.add(test)

    @property
    def _output(self) -> Path:
        return self.root.parent / "output.txt"

    def fails(self, tests: Sequence[str]) -> bool:
        """Return True if one of the tests fails, or does not end, with the code as it is in the copy."""
        if tests and tests[0].endswith(".js"):
            command = ["sh", "-c", " && ".join(f"node --test {shlex.quote(test)}" for test in tests)]
        else:
            listed = self.root.parent / "tests.txt"
            listed.write_text("".join(f"{test}\n" for test in tests))
            command = [str(self._python), "-m", "pytest", "-q", "-x", "-n", "0", "--timeout", "60", f"@{listed}"]
            command += ["-m", "", "-p", "no:cacheprovider", f"--basetemp={self.root.parent / 'folders'}"]
        if os.geteuid() == 0:  # changed code of root's could end all processes of this computer
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        variables = {**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(self.root.parent)}
        with self._output.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=self.root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            return child.wait(self._timeout) != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _environment(folder: Path, root: Path) -> Path:
    """Make a virtual environment that has the packages of the running one, and imgkit from ``root``."""
    venv.create(folder, system_site_packages=True, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    present = [path for path in sys.path if path.endswith("site-packages")]
    (site / "imgkit-changed.pth").write_text("".join(f"{path}\n" for path in [str(root), *present]))
    return folder / "bin" / "python"


def sample(candidates: Sequence[Change], percent: float, seed: int) -> list[Change]:
    """Return ``percent`` of the changes of each file, at least one of a file that has any."""
    chosen: list[Change] = []
    for path in sorted({change.path for change in candidates}):
        in_file = [change for change in candidates if change.path == path]
        count = max(1, round(len(in_file) * percent / 100))
        chosen += random.Random(f"{seed} {path}").sample(in_file, count)
    return sorted(chosen)


def scripts_for(change: Change) -> list[str]:
    """Return the tests of the JavaScript, those named after the module first."""
    tests = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "agentd").glob("*.test.js"))
    return sorted(tests, key=lambda name: Path(change.path).stem not in name)


def run(chosen: Sequence[Change], options: argparse.Namespace, covering: Covering | None) -> dict[Change, str]:
    """Try every change, and return the result of each."""
    known = accepted()
    copies: queue.Queue[Copy] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="imgkit-mutation-", ignore_cleanup_errors=True) as base:
        for number in range(options.jobs):
            copies.put(Copy(Path(base) / str(number), options.timeout))

        def attempt(change: Change) -> str:
            """Return the result of one change."""
            shown = change.shown((ROOT / change.path).read_bytes())
            if _numberless(shown) in known:
                return ACCEPTED
            if change.path.endswith(".js"):
                tests: Sequence[str] = scripts_for(change)
            else:
                assert covering is not None
                tests = covering.tests(change.path, change.line, options.most)
            if not tests:
                return UNCOVERED
            copy = copies.get()
            try:
                result = NOTICED if copy.noticed(change, tests) else SURVIVED
            finally:
                copies.put(copy)
            if result == SURVIVED:
                tqdm.write(shown)
            return result

        with ThreadPoolExecutor(options.jobs) as pool:
            results = tqdm(pool.map(attempt, chosen), total=len(chosen), unit="change", disable=options.quiet)
            return dict(zip(chosen, results, strict=True))


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
    parser.add_argument("--most", type=int, default=400, help="tests that are run for one change (default: 400)")
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
    results = run(chosen, options, covering)
    for change, result in results.items():
        if result == UNCOVERED:
            sys.stdout.write(f"{result}: {change.shown((ROOT / change.path).read_bytes())}\n")
    sys.stdout.write(report(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
