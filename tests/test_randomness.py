"""No test is random without saying how to repeat it: random numbers have a seed, or are hypothesis' own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# file → why its random values cannot make a test fail in one run and pass in the next, or how a run is repeated.
ALLOWED = {
    "containers.py": "names of containers, which must differ between runs that go on at the same time",
    "hostapp.py": "identities of requests, as the host application makes them",
    "test_secrets.py": "secrets that are searched for in everything, which must not be there from an earlier run",
}
SEEDED = {"random": {"Random", "seed"}, "secrets": set[str](), "uuid": {"UUID", "uuid5"}}  # what they may be used for


def unseeded(source: str) -> Iterator[int]:
    """Yield the lines of a module that take random values which no seed repeats."""
    tree = ast.parse(source)
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _takes_random_values(node, imported):
            yield node.lineno


def _takes_random_values(call: ast.Call, imported: set[str]) -> bool:
    name = ast.unparse(call.func)
    module, _, function = name.rpartition(".")
    if name in ("Random", "random.Random"):
        return not call.args
    return name == "os.urandom" or (module in imported and function not in SEEDED.get(module, {function}))


@pytest.mark.slow
def test_no_test_takes_random_values_that_no_seed_repeats() -> None:
    assert {
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        if path.name not in ALLOWED
        for line in unseeded(path.read_text())
    } == set()


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import os\nos.urandom(3)", [2]),
        ("import random\nrandom.Random(1).random()\nrandom.Random()\nrandom.shuffle([])", [3, 4]),
        ("from random import Random\nRandom(3)\nRandom()", [3]),
        ("import secrets, uuid\nsecrets.token_hex(4)\nuuid.uuid4()\nuuid.UUID(int=5)", [2, 3]),
        ("def test(random: object) -> None:\n    random.shuffle([])", []),
    ],
)
def test_the_checker_says_no(source: str, lines: list[int]) -> None:
    assert [*unseeded(source)] == lines


PROPERTY = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_small(number: int) -> None:
    print("tried", number)
    assert number < 1_000_000
"""


def failing_property(folder: Path, ci: str) -> str:
    """Return what a run of pytest says of a property that fails, under the settings of this folder's conftest."""
    (folder / "conftest.py").write_text("import sys\nfrom tests.conftest import CI  # noqa\n")
    (folder / "test_property.py").write_text(PROPERTY)
    environment = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)],
        cwd=folder,
        env={**environment, "CI": ci, "PYTHONPATH": str(TESTS.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout
    return ran.stdout


def tried(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("tried")]


@pytest.mark.slow
def test_ci_tries_the_same_examples_each_time(tmp_path: Path) -> None:
    first, second = (failing_property(tmp_path, "1") for _ in range(2))
    assert len(tried(first)) > 10
    assert tried(first) == tried(second)
    assert "@reproduce_failure" in first


@pytest.mark.slow
def test_a_laptop_tries_new_examples_and_says_how_to_repeat_them(tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        outputs.append(failing_property(tmp_path / name, ""))
    first, second = outputs
    assert tried(first) != tried(second)
    assert "@reproduce_failure" in first
    assert "@reproduce_failure" in second
