"""The budget of a package script: what each way of charging costs, and where the limits are."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from imgkit.rootfs.scripts.budget import COMPILED, MAX_PATTERN, PIECE, WIDE, Budget, Exhausted, whole_number
from imgkit.rootfs.scripts.state import ShellState, Streams
from imgkit.tree import Tree
from tests.test_scripts import base

STEPS, SIZE = 1_000_000, 100 << 20


def cost(charge: Callable[[Budget], object]) -> tuple[int, int]:
    """Return the steps and bytes that a call charges."""
    budget = Budget(STEPS, SIZE)
    charge(budget)
    return STEPS - budget.steps, SIZE - budget.bytes


@pytest.mark.parametrize(
    ("charge", "steps", "size"),
    [
        (lambda budget: budget.work(7), 7, 0),
        (lambda budget: budget.memory(1023), 0, 1023),
        (lambda budget: budget.memory(4096), 4, 4096),
        (lambda budget: budget.scan(63), 1, 0),
        (lambda budget: budget.scan(640), 11, 0),
        (lambda budget: budget.scan(64, 10), 11, 0),
        (lambda budget: budget.words(10), 10, 0),
        (lambda budget: budget.words(1000), 2000, 0),
        (lambda budget: budget.lines("a\nb\n"), 0, 4 + 2 * PIECE),
        (lambda budget: budget.lines(""), 0, 0),
        (lambda budget: budget.pieces("a:b:c", ":"), 0, 5 + 2 * PIECE),
        (lambda budget: budget.text("abc"), 0, sys.getsizeof("abc")),
        (lambda budget: budget.joined(["ab", "c"], ", "), 0, 3 + 4 + sys.getsizeof("ab, c")),
        (lambda budget: budget.pattern("abc"), 12 + COMPILED, 0),
        (lambda budget: budget.pattern("a*b*"), 16 + 3 * COMPILED, 0),
        (lambda budget: budget.pattern("[a-c]-"), 24 + COMPILED + 3 * COMPILED, 0),
        (lambda budget: budget.pattern("[ü-ÿ]"), 20 + COMPILED + 2 * WIDE, 0),
    ],
)
def test_costs(charge: Callable[[Budget], object], steps: int, size: int) -> None:
    assert cost(charge) == (steps, size)


@pytest.mark.parametrize(("text", "lines"), [("", []), ("a", ["a"]), ("a\n\nb\r\n", ["a", "", "b\r"]), ("\n", [""])])
def test_lines(text: str, lines: list[str]) -> None:
    assert Budget().lines(text) == lines


def test_results_are_those_of_the_plain_functions() -> None:
    assert Budget().pieces("a::b", ":") == ["a", "", "b"]
    assert Budget().joined(["a", "b"], "-") == "a-b"
    assert Budget().joined(["a", "b"]) == "ab"
    assert Budget().pattern("a*") == "a*"
    assert Budget().text("a") == "a"


def test_the_last_step_and_the_last_byte_may_be_used() -> None:
    budget = Budget(5, 3 << 20)
    budget.work(5)
    with pytest.raises(Exhausted, match=r"^takes more than 5 steps: it may never end$"):
        budget.work(1)
    budget = Budget(1 << 20, 3 << 20)
    budget.memory(3 << 20)
    with pytest.raises(Exhausted, match=r"^needs more than 3 MiB of memory$"):
        budget.memory(1)


def test_patterns_may_be_as_long_as_a_path() -> None:
    assert len(Budget().pattern("a" * MAX_PATTERN)) == MAX_PATTERN
    with pytest.raises(Exhausted, match=r"^has a pattern of more than 4096 characters$"):
        Budget().pattern("a" * (MAX_PATTERN + 1))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("012", 12),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("", None),
        ("-1", None),
        ("²", None),
        ("٣", None),
    ],
)
def test_numbers(text: str, value: int | None) -> None:
    assert whole_number(text) == value


# ---- what commands charge --------------------------------------------------------------------------------------------


def state_with(budget: Budget) -> ShellState:
    return ShellState(base(), budget=budget)


@pytest.mark.parametrize(
    ("action", "steps", "size"),
    [
        (lambda state: state.children("etc"), 6, 0),
        (lambda state: state.walk("etc"), 28, 0),
        (lambda state: state.path("etc"), 1, 0),
        (lambda state: state.path("/" + "x" * 254), 16, 0),
        (lambda state: state.write("x", "abc"), 0, 515),
        (lambda state: state.read("/etc/motd"), 1, 16),
        (lambda state: state.read("/dev/null"), 0, 0),
        (lambda state: state.matcher("a*")("x" * 64), 8 + 2 * COMPILED + 4, 0),
        (lambda state: (state.pattern("a*"), state.pattern("a*")), 8 + 2 * COMPILED + 2, 0),
        (lambda state: (state.pattern("a"), state.pattern("a", ignore_case=True)), 8 + 2 * COMPILED, 0),
        (lambda state: (state.pattern("a" * 256), state.pattern("a" * 256)), 1024 + COMPILED + 256, 0),
        (lambda state: (state.pattern("a" * 257), state.pattern("a" * 257)), 2 * (1028 + COMPILED), 0),
    ],
)
def test_costs_of_the_state(action: Callable[[ShellState], object], steps: int, size: int) -> None:
    assert cost(lambda budget: action(state_with(budget))) == (steps, size)


def test_256_patterns_are_kept() -> None:
    budget = Budget(STEPS, SIZE)
    state = state_with(budget)
    for number in range(257):
        state.pattern(f"p{number}")
    before = budget.steps
    state.pattern("p255")
    assert before - budget.steps == 4
    state.pattern("p256")
    assert before - budget.steps == 4 + 16 + COMPILED


def test_reading_accounts_is_charged_by_their_size() -> None:
    tree = Tree()
    tree.write("etc/passwd", "x" * 1600)
    tree.write("etc/group", "x" * 160)
    assert cost(lambda budget: ShellState(tree, budget=budget).accounts()) == (100 + 3 + 10, 3520)


def test_a_script_inside_a_script_needs_an_interpreter() -> None:
    state = ShellState(base())
    streams = Streams(None, print, print)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="a script inside a script"):
        state.interpret(state, "true", streams)
    with pytest.raises(Exception, match="a script inside a script"):
        state.execute(["true"], streams)
