"""The budget of a package script: what each way of charging costs, and where the limits are."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from imgkit.rootfs.scripts.budget import (
    COMMAND,
    COMPILED,
    HEAVY,
    MAX_PATTERN,
    NODE,
    PARSED,
    PIECE,
    WIDE,
    Budget,
    Exhausted,
    whole_number,
)
from imgkit.rootfs.scripts.redirections import discard
from imgkit.rootfs.scripts.regex import compile_expressions
from imgkit.rootfs.scripts.shellprogram import Shell, environment
from imgkit.rootfs.scripts.state import Failed, Hooks, ShellState, Streams
from imgkit.rootfs.scripts.triggers import matching_directories
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


# ---- what scripts pay for --------------------------------------------------------------------------------------------

_MOTD = "etc/motd"  # eight characters, as what is in it


def charged(text: str, arguments: Sequence[str] = (), tree: Tree | None = None) -> tuple[int, int]:
    """Return the steps and bytes that a script is charged, without those of reading it."""
    budget = Budget(1 << 40, 1 << 50)
    hooks = Hooks(mkinitfs=lambda *_: None)
    shell = Shell(ShellState(tree or base(), budget=budget, hooks=hooks), arguments, environment("p", "k"))
    shell.run_text(text, Streams(io.StringIO(), discard, discard))
    reading = PARSED * len(text)
    return (1 << 40) - budget.steps - len(text) - reading // 1024, (1 << 50) - budget.bytes - reading


def word(text: str) -> int:
    """Return the bytes that a word costs which becomes an argument."""
    return PIECE + len(text) + sys.getsizeof(text)


def test_a_limit_is_named_as_the_default_has_it() -> None:
    with pytest.raises(Exhausted, match=r"^takes more than 4000000 steps: it may never end$"):
        Budget().work(4_000_001)
    with pytest.raises(Exhausted, match=r"^needs more than 256 MiB of memory$"):
        Budget().memory((256 << 20) + 1)
    budget = Budget()
    budget.memory(256 << 20)
    budget.work(4_000_000 - (256 << 10))
    assert (budget.steps, budget.bytes) == (0, 0)


def test_reading_a_script_costs_a_step_and_memory_for_each_character() -> None:
    text = "#" * 999
    state = state_with(Budget(STEPS, SIZE))
    Shell(state, (), {}).run_text(text, Streams(io.StringIO(), discard, discard))
    assert STEPS - state.budget.steps == 999 + PARSED * 999 // 1024
    assert SIZE - state.budget.bytes == PARSED * 999


@pytest.mark.parametrize(
    ("text", "steps", "size"),
    [
        ("x=$1", 0, 2),
        ("y=${x:-$1}", 0, 4),
        ("y=${1:-b}", 0, 2),
        (': "$1"', 0, 2),
        (": $1", 0, 4),
        (": ${x:-$1}", 0, 4),
        ('echo "$1"', 0, 4),
        ('echo -e "$1"', 64, 4),
        ('printf "$1"', 3 * 64, 2),
        ('printf %s "$1"', 0, 3),
        ("x=${1#b}", 17, 3),
        ("x=${1##bbbb}", 20, 3),
        ("x=${1%b}", 17, 3),
        ("x=${1%%bb}", 18, 3),
        ('x=$(echo "$1")', 0, 9),
        ("case $1 in b*) ;; esac", 3, 2),
        ("case $1 in b) ;; *) ;; esac", 2 + 2, 2),
        ('echo "$1" >f', 0, 5),
        ('echo "$1" >f; cat f', 0, 8),
        ('echo "$1" >f; cat <f', 0, 14),
        ('echo "$1" >f; echo >>f', 0, 6),
        ('echo "$1" >f; read x <f', 0, 14),
        ('echo "$1" >f; grep b f', 32, 9),
        ('echo "$1" >f; cut -d: -f1 f', 0, 10),
        ('echo "$1" >f; sort f', 64, 9),
        ('echo "$1" >f; sort -t: -k1,1 -k2 f', 96, 9),
        ('echo "$1" >f; head f', 0, 9),
        ('echo "$1" >f; cp f g', 0, 5),
        ('echo "$1" | cat', 0, 12),
        ("cat <<E\n$1\nE", 0, 9),
        ('echo "$1" >etc/passwd; getent passwd', 4, 7),
        ('find etc/motd -exec true "{}$1" ";"', 0, 4),
        ('find "$1"', 0, 4),
    ],
)
def test_costs_of_long_texts(text: str, steps: int, size: int) -> None:
    """The steps for 64 more characters of an argument, besides those of filling memory, and the bytes for each."""
    count = 1 << 16
    less, more = charged(text, ["a" * count]), charged(text, ["a" * 2 * count])
    assert more[1] - less[1] == size * count
    assert more[0] - less[0] == steps * count // 64 + size * count // 1024


@pytest.mark.parametrize(
    ("text", "longer", "steps", "size"),
    [
        (":", ":\n:", COMMAND + 1, word(":")),
        (":", ":\ntrue", 2 * COMMAND + 1, word("true")),
        (":", ":\n: &", 3 * COMMAND + 1, word(":")),
        (":", ":\n(:)", 2 * COMMAND + 1, word(":")),
        (":", ":\n:|:", 4 * COMMAND + 2, 2 * word(":") + 2 * sys.getsizeof("")),
        (":", ":\nx=$(:)", 3 * COMMAND + 1, word(":") + 2 * sys.getsizeof("") + 1),
        (":", ":\nwhile false; do :; done", 3 * COMMAND + 1, word("false")),
        ("for i in a; do :; done", "for i in a b; do :; done", 2 * COMMAND + 1, word("b") + word(":") + 1),
        ("f() { :; }; f", "f() { :; }; f; f", 2 * COMMAND + 2, 2 * word("f")),
        (":", ": a", 1, word("a")),
        ("true", "true a", 2, word("a")),
        ("x=a", "xx=a", 0, 1),
        ("touch f", "touch f g", 3, word("g") + NODE + 1),
        ("mkdir d", "mkdir d e", 4, word("e") + NODE + 1),
        ("cp etc/motd m", "cp etc/motd mm", 0, 2 + 1),
        ("mv etc/motd m", "mv etc/motd mm", 0, 2 + 1),
        (
            "mv etc/motd m",
            "mv etc/motd m; mv m n",
            2 * COMMAND + 3 + 8 + 5,
            word("mv") + word("m") + word("n") + NODE + 1,
        ),
        ("rm -rf none", "rm -rf sbin", 4, 0),
        ("cat etc/motd", "cat etc/motd etc/motd", 3, word(_MOTD) + 2 * 8 + sys.getsizeof("Welcome\n")),
        ("ls tmp", "ls etc", 6, 2 * len("a.conf b.conf group motd passwd shadow\n")),
        ("getent passwd root", "getent passwd root root", 2 + 2, word("root")),
        ("find etc/motd", "find etc/motd etc/motd", 2 + COMMAND // 4 + 1, word(_MOTD) + PIECE + 2 * 8),
        ("find etc/motd", "find etc/motd -depth", 2 + 1, word("-depth")),
        ("find etc/motd -exec true {} ';'", "find etc/motd -exec true {}{} ';'", 0, 2 * 2 + 2 + 8 + 8),
        ("sort etc/passwd", "sort -t: -k1 -k2 etc/passwd", 2 * 3 + 63, 2 * word("-k1") + word("-t:")),
        ("cut -d: -f1 etc/passwd", "cut -d: -f1,2,3,4,5,6,7,8 etc/passwd", 2 * (7 * 8 // 8), 2 * 14),
        ("printf %s a", "printf %s a b", 2 + 3, word("b") + sys.getsizeof("b")),
        ("case a in b) ;; esac", "case a in b) ;; c) ;; esac", 4 + COMPILED + 1, 4),
        ("x=a; : ${x#b}", "x=a; : ${x#bb}", 4, 4),
    ],
)
def test_costs_of_more_work(text: str, longer: str, steps: int, size: int) -> None:
    less, more = charged(text), charged(longer)
    assert (more[0] - less[0], more[1] - less[1]) == (steps, size)


@pytest.mark.parametrize(
    "text",
    [
        "set 1 2 3 4 5 6",
        "a=; b=; c=; d=; e=; f=",
        "".join(f"{name}() {{ :; }}; " for name in "abcdef") + ":",
        "for i in 1 2 3 4 5; do : & done",
    ],
)
def test_a_subshell_pays_for_what_it_copies(text: str) -> None:
    """A step for ten variables, functions, arguments and jobs; the environment has four."""
    assert charged(f"{text}; (:)")[0] - charged(f"{text}; :")[0] == COMMAND + 1


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("depmod 6.1", HEAVY),
        ("mkinitfs -o /i 6.1", HEAVY),
        ("update-ca-certificates", HEAVY),
        ("c_rehash etc", HEAVY),
        ("busybox --install -s", HEAVY // 4),
    ],
)
def test_what_is_computed_as_a_whole_costs_a_lump_sum(text: str, steps: int) -> None:
    tree = base()
    tree.mkdir("lib/modules/6.1")
    tree.write("etc/ca-certificates.conf", "")
    tree.write("etc/busybox-paths.d/busybox", "usr/bin/telnet\n")
    assert steps <= charged(text, tree=tree)[0] < steps + 10 * COMMAND


def test_costs_of_pathnames() -> None:
    def expanded(count: int) -> tuple[int, int]:
        tree = base()
        for number in range(10, 10 + count):
            tree.mkdir(f"d/{number}")
        return charged("x=; for i in d/*; do :; done", tree=tree)

    rounds = 2 * COMMAND + 1, word(":") + 1
    less, more = expanded(10), expanded(20)
    assert more[0] - less[0] == 10 * (rounds[0] + 1 + 1 + 1) + 1  # listed, matched, looked for; and a KiB is filled
    assert more[1] - less[1] == 10 * (rounds[1] + len("d/") + len("10") + PIECE)


def test_costs_of_looking_into_many_directories() -> None:
    def looked(count: int) -> tuple[int, int]:
        tree = base()
        for number in range(10, 10 + count):
            tree.mkdir(f"d/{number}")
        return charged(": d/*/x", tree=tree)

    less, more = looked(10), looked(20)
    assert more[0] - less[0] == 10 * (1 + 1 + 1 + 2 + 1) + 1  # listed, matched, a directory; two and x looked for
    assert more[1] - less[1] == 10 * (len("d/") + len("10") + PIECE + len("d/10/") + len("x") + PIECE)


def test_costs_of_regular_expressions() -> None:
    budget = Budget(STEPS, SIZE)
    expression = compile_expressions(["ab"], budget)
    # the pattern; a choice, a sequence and two items; two characters; two states
    assert STEPS - budget.steps == (4 * 2 + COMPILED) + 4 + 2 * COMPILED + 4 * 2
    before = budget.steps
    assert not expression.search("xx", budget)
    assert before - budget.steps == (2 // 2 + 1) + 2 * (1 + 1) + 1
    before = budget.steps
    assert not expression.search("xx", budget)
    assert before - budget.steps == 2 // 2 + 1
    assert cost(lambda budget: compile_expressions(["aa"], budget))[0] == (4 * 2 + COMPILED) + 4 + COMPILED + 4 * 2


def test_costs_of_a_trigger() -> None:
    compiled = 4 * len("/ab*") + 2 * COMPILED
    for directories, steps in (([], 0), (["a/b"], 1), (["x"], 1 + 1), (["x" * 63], 1 + 5), (["x", "y/z"], 3)):
        spent = cost(lambda budget, directories=directories: matching_directories(directories, ["/ab*"], budget=budget))  # type: ignore[misc]
        assert spent == (compiled + steps, 0)


def test_what_is_not_there_costs_no_memory() -> None:
    def read_nothing(budget: Budget) -> None:
        with suppress(Failed):
            state_with(budget).read("/none")

    assert cost(read_nothing) == (1, 0)
    assert cost(lambda budget: ShellState(Tree(), budget=budget).accounts()) == (0, 0)
