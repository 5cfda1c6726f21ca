"""The tests of the JavaScript: which of them executes what, and how they are run.

A test is named like one of pytest's, ``tests/agentd/x.test.js::its name``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

_TESTS = "tests/agentd"
_REPORTER = ("--test-reporter=./mutation/reporter.js", "--test-reporter-destination=stdout")
_SLOW = 0.5  # seconds: slower tests are run only if none of the quicker ones fails


@dataclass(frozen=True)
class Batch:
    """Tests of one file that one process runs, and how many seconds they took when they were measured."""

    file: str
    names: tuple[str, ...]
    seconds: float

    @property
    def limit(self) -> float:
        """Return after how many seconds they hang."""
        return 5 + 5 * self.seconds

    def command(self) -> list[str]:
        """Return the command that runs them in a copy. It ends with the first test that fails, and names it."""
        pattern = "|".join(re.sub(r"[^\w ]", lambda sign: f"\\u{{{ord(sign[0]):x}}}", name) for name in self.names)
        return ["node", *_REPORTER, f"--test-name-pattern=/^(?:{pattern})$/u", self.file]


class Scripts:
    """Which test executes which part of which script, read from the file of :func:`measure`."""

    def __init__(self, file: Path) -> None:
        self._tests: dict[str, dict[str, Any]] = json.loads(file.read_text())

    def tests(self, path: str, source: bytes, start: int, most: int) -> list[str]:
        """Return the tests that execute the byte ``start`` of this script, the quickest first, at most ``most``."""
        at = len(source[:start].decode().encode("utf-16-le")) // 2
        executing = [
            name
            for name, test in self._tests.items()
            if any(first <= at < end for first, end in test["executed"].get(path, []))
        ]
        return sorted(executing, key=self._seconds)[:most]

    def batches(self, tests: Iterable[str]) -> list[Batch]:
        """Return how these tests are run: the quick ones of each file, then the slow ones of each file."""

        def group(test: str) -> tuple[bool, str]:
            return self._seconds(test) > _SLOW, test.partition("::")[0]

        groups = [(*key, list(names)) for key, names in groupby(sorted(tests, key=group), key=group)]
        batches = [
            (slow, Batch(file, tuple(name.partition("::")[2] for name in names), sum(map(self._seconds, names))))
            for slow, file, names in groups
        ]
        return [batch for _, batch in sorted(batches, key=lambda each: (each[0], each[1].seconds))]

    def _seconds(self, test: str) -> float:
        return float(self._tests[test]["seconds"])


def state(root: Path) -> str:
    """Return a name for what the tests execute: another one as soon as the scripts or the tests differ."""
    digest = hashlib.sha256()
    for path in sorted([*(root / "overlay").rglob("*"), *(root / _TESTS).iterdir()]):
        if path.is_file():
            digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"scripts-{digest.hexdigest()[:16]}.json"


def measure(root: Path, file: Path) -> None:
    """Run every test below ``root`` once, and write to ``file`` what each of them executes.

    Raises:
        SystemExit: a test fails on the unchanged code.
    """
    tests: dict[str, Any] = {}
    for path in sorted((root / _TESTS).glob("*.test.js")):
        name = path.relative_to(root).as_posix()
        with tempfile.TemporaryDirectory() as folder:
            command = ["node", "--require", "./mutation/recorder.js", *_REPORTER, name]
            variables = {**os.environ, "CI": "1", "RECORDS": folder}
            done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"error: {name} fails on the unchanged code:\n{done.stdout}{done.stderr}")
            tests |= _read(Path(folder), name)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(tests))
    unfinished.rename(file)


def _read(folder: Path, file: str) -> dict[str, Any]:
    """Return what the tests of one file execute. What a script executes while it is loaded counts for all of them."""
    listed = json.loads((folder / "tests.json").read_text())
    records = [list(_scripts(folder / str(number))) for number in range(len(listed) + 1)]
    loading = _executed((path, _top_level(functions)) for record in records for path, functions in record)
    loading = _merged(loading, _executed(records[0]))
    return {
        f"{file}::{test['name']}": {
            "seconds": test["seconds"],
            "executed": {path: _ranges(marks) for path, marks in _merged(loading, _executed(own)).items()},
        }
        for test, own in zip(listed, records[1:], strict=True)
    }


def _scripts(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Yield the path and V8's ``FunctionCoverage`` of each script of the overlay that a process has executed."""
    for file in sorted(folder.iterdir()):
        for script in json.loads(file.read_text())["result"]:
            if "/overlay/" in script["url"] and script["functions"]:
                yield f"overlay/{script['url'].partition('/overlay/')[2]}", script["functions"]


def _top_level(functions: list[Any]) -> list[Any]:
    """Return the same, as if only what is outside of functions had been executed."""
    if functions[0]["functionName"] or functions[0]["ranges"][0]["startOffset"]:
        return []  # the script was loaded before
    return [functions[0], *({"ranges": [{**function["ranges"][0], "count": 0}]} for function in functions[1:])]


def _executed(scripts: Iterable[tuple[str, list[Any]]]) -> dict[str, int]:
    """Return a number for each script whose bits are the executed characters: of nested ranges the innermost counts."""
    executed: dict[str, int] = {}
    for path, functions in scripts:
        marks = 0
        for block in (block for function in functions for block in function["ranges"]):
            first, end = block["startOffset"], block["endOffset"]
            bits = ((1 << (end - first)) - 1) << first
            marks = marks | bits if block["count"] else marks & ~bits
        executed[path] = executed.get(path, 0) | marks
    return executed


def _merged(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {path: one.get(path, 0) | other.get(path, 0) for path in {*one, *other}}


def _ranges(marks: int) -> list[tuple[int, int]]:
    """Return where the bits of a number are set, as pairs of the first one and the one after the last."""
    return [found.span() for found in re.finditer("1+", f"{marks:b}"[::-1])]
