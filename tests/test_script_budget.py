"""Package scripts that would exhaust the host: each ends soon, as bad input that names package and script."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from imgkit.errors import InputError
from imgkit.rootfs.scripts.budget import MAX_PATTERN, Budget, Exhausted, whole_number
from imgkit.rootfs.scripts.effects import Outcome, Unsupported, attempt, run_script
from imgkit.rootfs.scripts.grammar import parse
from imgkit.tree import Directory, Tree
from tests.test_scripts import base

pytestmark = pytest.mark.hostile

_SECONDS = 60  # of processor time, for a script that uses all of its budget on a slow machine; without one it is hours
_MEMORY = 1500 << 20


def rounds(body: str) -> str:
    """Return a loop that runs ``body`` a million times."""
    return f"for a in {'1 ' * 1000}; do for b in {'1 ' * 1000}; do {body}; done; done"


def numbered(body: str) -> str:
    """Return ``body`` 20,000 times with a different ``$a`` each time, so that no result can be cached."""
    return f"for a in {' '.join(map(str, range(20_000)))}; do {body}; done"


_LONG = "x=" + "a" * 3000 + "\nx=$x$x$x$x$x$x$x$x\n"
_FAR = [chr(0x4E00 + 2 * number) for number in range(999)]
_LINES = 'echo "' + "b a c\n" * 20_000 + '" >f\n'

ENDLESS = {
    "a loop": "while :; do :; done",
    "a doubling variable": "x=aaaaaaaaaaaaaaaa\n" + "x=$x$x\n" * 40,
    "a doubling argument list": "set -- a b\n" + 'set -- "$@" "$@"\n' * 40,
    "a doubling file": "echo aaaaaaaaaaaaaaaaaaaaaaaaa >f\n" + "cat f f f f f f f f >g; cat g g g g g g g g >f\n" * 9,
    "a file that grows": "echo a >f\n" + rounds("cat f >>f"),
    "copies of what is large": _LONG + rounds('echo "$x" >f$a; cp f$a g; echo >>f$a'),
    "doubling directories": "mkdir -p a/b/c/d\n" + "cp -r a b; mv b a/x; cp -r a b; mv b a/y\n" * 40,
    "paths upwards and down": "echo " + "*/../" * 30 + "*",
    "patterns": _LONG + rounds("case $x in *b*a*b*c*) ;; esac"),
    "prefixes": _LONG + rounds("y=${x##*a*b}"),
    "suffixes": _LONG + rounds("y=${x%%b*a*}"),
    "regular expressions": _LONG + "echo $x >f\n" + rounds("grep -E '(a|b)*(ab|ba)+c{3}$' f"),
    "large regular expressions": _LONG + "echo $x >f\n" + rounds("grep -E '(a?){200}a{200}b' f"),
    "long patterns": _LONG + "x=${x##$x*}",
    "here-documents": rounds("cat <<E >/dev/null\n" + "a" * 5000 + "\nE\n:"),
    "substitutions": rounds("x=$(echo $(echo $(echo a)))"),
    "functions that call each other": "\n".join(f"f{n}() {{ f{n + 1}; f{n + 1}; }}" for n in range(19))
    + "\nf19() { :; }; f0; f0; f0; f0",
    "a script that sources itself": "echo '. /f; . /f' >f\necho ':' >g\n" + rounds(". /g"),
    "find in find": f"mkdir d; cd d; touch {' '.join(map(str, range(700)))}\nfind . -exec find . -name 'a*b' \\;",
    "sort": _LINES + rounds("sort -V f >g"),
    "cut": _LINES + rounds("cut -d ' ' -f 1,3 f >g"),
    "accounts": "i=a\n" + rounds("adduser -S -D -H u$i; i=a$i"),
    "the commands of the system": rounds("update-ca-certificates"),
    "printf": rounds("printf '%s%s' " + "a " * 100 + ">/dev/null"),
    "output": _LONG + rounds("echo $x"),
    "option parsing": "set -- " + "a " * 100_000 + '\nrm -f "$@"',
    "a long script": "a;" * 1_100_000,
    "ranges in patterns": numbered(f"case x in $a{''.join(f'[a-{end}]' for end in _FAR[:500])}) ;; esac"),
    "ranges in one bracket": numbered(f"case x in $a[{''.join(f'a-{end}' for end in _FAR)}]) ;; esac"),
    "ranges of regular expressions": _LONG
    + "echo $x >f\n"
    + rounds(f"grep -i '{''.join(f'[a-{end}]' for end in _FAR[:800])}' f"),
    "pieces of patterns": "for a in "
    + " ".join(map(str, range(20_000)))
    + "; do case x in $a"
    + "*a" * 2000
    + ") ;; esac; done",
    "conditions": rounds("[ " + "a -a " * 200 + "a ]"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_script_without_end_is_bad_input(name: str) -> None:
    tree = base()
    before = dict(tree.items())
    started = time.process_time()
    with pytest.raises(InputError, match=r"^demo\.post-install, line \d+: the script (takes|needs|has)") as refusal:
        attempt(tree, f"#!/bin/sh\n{ENDLESS[name]}\n", package="demo", kind="post-install")
    assert time.process_time() - started < _SECONDS
    assert refusal.value.exit_status == 4
    assert refusal.value.hint == "if it need not run: skip_scripts = ['demo']"
    assert dict(tree.items()) == before


HARMLESS = {
    "a field far away": ("echo a:b | cut -d: -f 1-9999999999", ["a:b"]),
    "no backtracking in case": (f"case {'a' * 500} in {'*a' * 200}*b) echo no;; *) echo yes; esac", ["yes"]),
    "no backtracking in expansions": (f"x={'a' * 3000}; y=${{x##*a*a*a*a*b}}; echo ${{#y}}", ["3000"]),
    "no backtracking in grep": (f"echo {'a' * 500} | grep -E '^(a+)+$b' || echo no", ["no"]),
    "no backtracking in find": (f"find etc -name '{'*a' * 100}*b' -o -name motd", ["etc/motd"]),
    "nothing, repeated": (f"echo a >f; grep -E '(){'{255}' * 6}a' f; grep -E '(a{{0}}){'{255}' * 6}' f", ["a", "a"]),
    "a conversion that never ends": ("printf '%" + "0" * 50_000 + "!' | head -n 0", []),
    "a number of 5,000 digits": (f"exit {'9' * 5000} || echo no", [f"exit: Illegal number: {'9' * 80}", "no"]),
    "many here-documents": ("cat <<E >/dev/null\nE\n" * 5000 + "echo done", ["done"]),
    "a long word": (f"x={'a' * 100_000}; echo ${{#x}}", ["100000"]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_took_for_ever_takes_no_time(name: str) -> None:
    text, lines = HARMLESS[name]
    started = time.process_time()
    outcome = run_script(base(), f"#!/bin/sh\n{text}\n", package="demo", kind="post-install")
    assert list(outcome.messages) == lines
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (f"chmod {'u+x,' * 16}u+x etc/motd", "invalid mode 'u+x,u+x,"),
        (f"install -d -m {'u+x,' * 25_000}u+x {' '.join(f'd{number}' for number in range(999))}", "invalid mode"),
        ("basename", "basename: missing operand"),
        ("dirname", "dirname: missing operand"),
        ("command", ""),
        ("command -v", ""),
        ("> \"$(printf 'a\\001')\"", "control characters"),
        ("{ :; } > \"$(printf 'a\\001')\"", "control characters"),
        (f"mkdir {'a' * 256}", "File name too long"),
        (f"touch {'a/' * 2500}b", "File name too long"),
        (f"ln -s {'a' * 5000} l", "improper link target"),
        (f"chown {'9' * 5000} etc/motd", "unknown user 999"),
        ("chown 4294967295 etc/motd", "unknown user 4294967295"),
        (f"find etc -user {'9' * 5000}", "unknown user 999"),
        (f"find etc -maxdepth {'9' * 5000}", "invalid number '999"),
        (f"adduser -S -D -u {'9' * 5000} x", "invalid number '999"),
        (f"[ {'9' * 5000} -gt 1 ]", "bad number"),
        (f"printf %d {'9' * 5000}", "invalid number"),
        (f"echo a:b | cut -d: -f {'9' * 5000}", "invalid field"),
    ],
)
def test_what_was_a_bug_is_an_ordinary_failure(text: str, messages: str) -> None:
    outcome = run_script(base(), f"#!/bin/sh\n{text}\n", package="demo", kind="post-install")
    assert messages in "\n".join(outcome.messages)
    assert outcome.status != 0 or not messages


def test_a_mode_may_have_64_characters() -> None:
    outcome = run_script(base(), f"#!/bin/sh\nchmod {'u+x,' * 15}g+wx etc/motd\n", package="p", kind="post-install")
    assert outcome == Outcome(0)


@pytest.mark.parametrize(
    "text",
    [
        "umask ''",
        f"umask {'7' * 5000}",
        "echo a | cut -d '' -f 1",
        "printf %1000000000d 1",
        "printf %.1000000000d 1",
        f"printf %{'9' * 5000}s 1",
        f"sort -t : -k {'9' * 5000} etc/motd",
        f"head -n {'9' * 5000} etc/motd",
        "(" * 2000,
    ],
)
def test_what_was_a_bug_is_refused(text: str) -> None:
    with pytest.raises(Unsupported):
        run_script(base(), f"#!/bin/sh\n{text}\n", package="demo", kind="post-install")


def test_what_a_script_says_is_kept_within_bounds() -> None:
    outcome = run_script(base(), "#!/bin/sh\n" + "echo line\n" * 300, package="demo", kind="post-install")
    assert outcome == Outcome(0, ("line",) * 200)


def test_the_budget_of_one_script_is_not_that_of_the_next() -> None:
    tree = base()
    text = "#!/bin/sh\nfor a in " + "1 " * 200 + "; do for b in " + "1 " * 200 + "; do :; done; done\n"
    for _ in range(3):
        assert run_script(tree, text, package="demo", kind="trigger") == Outcome(0)


# ---- the budget itself -----------------------------------------------------------------------------------------------


def test_steps_and_bytes_are_counted_to_the_last() -> None:
    budget = Budget(10, 4096)
    budget.work(10)
    with pytest.raises(Exhausted, match="takes more than 10 steps"):
        budget.work(1)
    budget = Budget(10, 4096)
    budget.memory(4096)
    with pytest.raises(Exhausted, match="needs more than 0 MiB"):
        budget.memory(1)


@pytest.mark.parametrize(
    "charge",
    [
        lambda budget: budget.text("a" * 200_000),
        lambda budget: budget.lines("\n" * 10_000),
        lambda budget: budget.pieces(":" * 10_000, ":"),
        lambda budget: budget.words(1000),
        lambda budget: budget.scan(1000, 1000),
    ],
)
def test_every_way_of_charging_has_an_end(charge: Callable[[Budget], object]) -> None:
    with pytest.raises(Exhausted):
        charge(Budget(1000, 100_000))
    charge(Budget())


def test_a_pattern_may_be_as_long_as_a_path() -> None:
    assert Budget().pattern("a" * MAX_PATTERN)
    with pytest.raises(Exhausted, match=f"a pattern of more than {MAX_PATTERN} characters"):
        Budget().pattern("a" * (MAX_PATTERN + 1))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("12", 12), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("", None), ("-1", None), ("²", None)],
)
def test_numbers_of_scripts(text: str, value: int | None) -> None:
    assert whole_number(text) == value


# ---- reading scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a;" * 100_000, "a\n" * 100_000, "a<<E\nE\n" * 30_000, "`a`;" * 30_000, "'" * 99_999])
def test_scripts_are_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    with suppress(Unsupported):
        parse(text)
    assert time.process_time() - started < 20


def test_a_hostile_script_stays_within_memory() -> None:
    """In a process of its own, so that the limit is that of the script."""
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))\n"
        "from tests.test_script_budget import ENDLESS\n"
        "from tests.test_scripts import base\n"
        "from imgkit.errors import InputError\n"
        "from imgkit.rootfs.scripts.effects import attempt\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        attempt(base(), '#!/bin/sh\\n' + ENDLESS[name], package='p', kind='k')\n"
        "    except InputError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
    )
    names = ["a doubling variable", "a doubling file", "doubling directories", "copies of what is large"]
    assert subprocess.run([sys.executable, "-c", program, *names], timeout=300, check=False).returncode == 0


# ---- trees that scripts and packages make ----------------------------------------------------------------------------


def test_a_deep_tree_is_walked() -> None:
    tree = Tree()
    path = ""
    for _ in range(2000):
        path = f"{path}/d".removeprefix("/")
        tree.add(path, Directory())
    assert len(list(tree.walk("d"))) == 2000
    outcome = run_script(tree, "#!/bin/sh\nrm -rf d\n", package="demo", kind="post-install")
    assert outcome.status == 0
    assert "d" not in tree
