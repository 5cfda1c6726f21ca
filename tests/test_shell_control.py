"""What the shell of package scripts runs, and when it ends: statuses, ``set -e``, subshells, functions, dash."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Outcome, Unsupported, run_script
from tests.test_scripts import base, run, said


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exit", 0),
        ("false; exit", 1),
        ("exit 300", 44),
        ("exit x; exit 7", 7),
        ("return 4; exit 5", 4),
        ("exec sh -c 'x'", None),
        ("(exit 3); exit", 3),
        ("f() { exit 6; }; f; exit 7", 6),
        ("echo a | exit 8", 8),
        ("x=$(exit 9)", 9),
        ("true; x=1", 0),
        ("false; x=1", 0),
        ("case a in b) false;; esac", 0),
        ("false; case a in a) ;; esac", 0),
        ("if false; then false; fi", 0),
        ("false; if true; then :; fi", 0),
        ("while false; do :; done", 0),
        ("for i in; do false; done", 0),
        ("for i in 1; do false; done", 1),
        ("! false", 0),
        ("! true", 1),
        ("! true | false", 0),
        ("false | true", 0),
        ("set -o pipefail; (exit 3) | (exit 4) | true", 4),
        ("set -o pipefail; (exit 3) | true", 3),
        ("set -o pipefail; true | true", 0),
        ("set -o pipefail; set +o pipefail; false | true", 0),
    ],
)
def test_statuses(text: str, status: int | None) -> None:
    if status is None:
        with pytest.raises(Unsupported, match="the command sh"):
            run(text)
    else:
        assert run(text)[1].status == status


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("false && true; echo on", ["on"]),
        ("false || false || true; echo on", ["on"]),
        ("true && false; echo never", []),
        ("true || x; false; echo never", []),
        ("{ false; echo never; }; echo never", []),
        ("if ! false; then echo a; fi; { false || echo b; }; echo c", ["a", "b", "c"]),
        ("while false; do :; done; until true; do :; done; echo on", ["on"]),
        ("for i in 1 2; do echo $i; false; done", ["1"]),
        ("false | true; echo on", ["on"]),
        ("true | false; echo never", []),
        ("(false; echo never); echo never", []),
        ("x=$(false); echo never", []),
        ("x=$(false; echo sub) && echo never; echo $x", [""]),
        ("f() { false; echo $1; }; f a || :; f b; echo never", ["a"]),
        ("! true; echo on", ["on"]),
        ("! { false; echo tested; }; echo on", ["tested", "on"]),
        ("false & echo on", ["on"]),
        ("{ false; echo never; } & wait 1001 || echo $?", ["1"]),
        ("if { false; echo never; } & then wait 1001 || echo $?; fi", ["1"]),
        ("(false; echo tested) || echo never", ["tested"]),
        ("(set +e; false; echo on); false; echo never", ["on"]),
    ],
)
def test_errexit(text: str, lines: list[str]) -> None:
    """When ``set -e`` ends a script; the same lines were measured with dash."""
    assert said(f"set -e; {text}") == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("cd /etc; x=2; set -u; umask 077; set a b; f() { :; }; export y=1", ["/ [] [] 0022 0 no"]),
        ("exit 3", ["/ [] [] 0022 0 no"]),
    ],
)
def test_a_subshell_changes_nothing_of_its_parent(text: str, lines: list[str]) -> None:
    report = 'echo "$(pwd) [$x] [$y] $(umask) $# $(command -v f || echo no)"'
    for command in (f"({text}); {report}", f"z=$({text}); {report}", f"{{ {text}; }} | :; {report}"):
        assert said(command) == lines
    assert said(f"{{ {text}; }} & {report}") == lines


def test_what_a_subshell_started_is_not_a_job_of_its_parent() -> None:
    assert said("(true & true & wait); wait 1001; echo $?") == ["127"]


def test_a_loop_is_not_left_from_the_background() -> None:
    assert said("for i in 1 2; do break & echo $i; done") == ["1", "2"]


def test_functions_have_arguments_of_their_own() -> None:
    assert said('set a b; f() { echo "$# $1"; shift; set x y z; }; f c; echo "$# $1"') == ["1 c", "2 a"]


def test_assignments_in_front_of_a_command_end_with_it() -> None:
    assert said("x=1; f() { echo $x $y; }; x=2 y=3 f; echo $x [$y]") == ["2 3", "1 []"]


def test_calls_have_a_limit() -> None:
    chain = "".join(f"f{n}() {{ f{n + 1}; }}\n" for n in range(1, 20))
    assert said(f"{chain}f20() {{ echo deep; }}\nf1") == ["deep"]
    with pytest.raises(Unsupported, match="function f: calls deeper than 20"):
        run("f() { f; }; f")


def test_the_path_may_be_set_to_what_it_is() -> None:
    assert said("PATH=/usr/sbin:/usr/bin:/sbin:/bin; echo on") == ["on"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo -e x", "echo of options or backslashes in a script for dash"),
        ("echo 'a\\tb'", "echo of options or backslashes in a script for dash"),
        ("echo a '\\'", "echo of options or backslashes in a script for dash"),
        ("[ a == a ]", "[ with == in a script for dash"),
        ("test a == a", "test with == in a script for dash"),
        ("set -o pipefail", "set -o pipefail in a script for dash"),
    ],
)
def test_differences_of_dash_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        run_script(base(), f"#!/bin/dash\n{text}\n", package="demo", kind="trigger")
    assert refusal.value.construct == reason
    run(text)


def test_what_dash_does_alike_is_computed() -> None:
    text = "#!/bin/dash -e\necho -n a; echo b - -e; echo; [ a = a ]; set -eu; false; echo never\n"
    assert run_script(base(), text, package="demo", kind="trigger") == Outcome(1, ("ab - -e", ""))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("false; f() { :; }; echo $?", ["0"]),
        ("for i in 1; do break & wait $!; echo $?; done", ["0"]),
        ("set -e; { false && true; }; echo on", ["on"]),
        ("set -e; if true; then false && true; fi; echo on", ["on"]),
        ("set -e; for i in 1; do false && true; done; echo on", ["on"]),
        ("set -e; (false && true); echo never", []),
        ("until(true); do echo never; done; echo on", ["on"]),
        ("while false; do :; done & wait $!; echo $?", ["0"]),
        ("false; { :; }; echo $?; { false; }; echo $?; (exit 3); echo $?", ["0", "1", "3"]),
        ("if true; then (exit 3); fi; echo $?; if false; then :; else (exit 4); fi; echo $?", ["3", "4"]),
        ("if false; then :; elif (exit 5); then :; else :; fi; echo $?", ["0"]),
        ("case a in b) ;; a) (exit 6);; esac; echo $?; case a in a) ;; esac; echo $?", ["6", "0"]),
        ('i=; while [ "$i" != xx ]; do i=x$i; (exit 7); done; echo $?', ["7"]),
        ("true && (exit 3) || (exit 4); echo $?; false && true; echo $?; true || false; echo $?", ["4", "1", "0"]),
        ("false || echo $?; (exit 9) && true || echo $?", ["1", "9"]),
        ("! (exit 3); echo $?; ! :; echo $?; ! false | true; echo $?", ["0", "1", "1"]),
        ("x=$(exit 3) y=$(true); echo $?; x=$(true) y=$(exit 4); echo $?; x=1; echo $?", ["0", "4", "0"]),
        ("echo $(exit 3); echo $?", ["", "0"]),
        ("$(exit 3); echo $?; $(:); echo $?", ["3", "0"]),
        ("f() { x=2; return 3; }; x=1; f; echo $? $x", ["3 2"]),
        ("x=1 y=2 :; echo [$x$y]; x=0; x=1 true; echo $x", ["[]", "0"]),
        ("f() { echo a; }; f() { echo b; }; f", ["b"]),
        ("(f() { :; }; set -e; false); f || echo $?", None),
    ],
)
def test_statuses_and_what_they_decide(text: str, lines: list[str] | None) -> None:
    if lines is None:
        with pytest.raises(Unsupported, match="the command f"):
            run(text)
    else:
        assert said(text) == lines


def test_calls_that_have_ended_do_not_count() -> None:
    chain = "".join(f"f{number}() {{ f{number + 1}; }}\n" for number in range(1, 21))
    assert said("g() { :; }\n" + "g\n" * 25 + "echo on") == ["on"]
    with pytest.raises(Unsupported, match=r"function f21: calls deeper than 20$"):
        run(f"g() {{ :; }}; {chain}f21() {{ :; }}\ng; g; g; f1")
