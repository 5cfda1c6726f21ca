"""Commands of the shell itself in package scripts: their status, their effect, and what they refuse."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Outcome, Unsupported, run_script
from imgkit.tree import Tree
from tests.test_scripts import EPOCH, base, run, said


def outcome(text: str, tree: Tree | None = None) -> tuple[int, list[str]]:
    """Return the status of a script, and the lines that it writes."""
    result = run(text, tree)[1]
    return result.status, list(result.messages)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (":; echo $?", ["0"]),
        ("false; :; echo $?", ["0"]),
        ("cd /etc; echo $? $(pwd)", ["0 /etc"]),
        ("cd etc; pwd; cd ..; pwd", ["/etc", "/"]),
        ("cd /var/run; pwd", ["/run"]),
        ("cd /etc/motd; echo $? $(pwd)", ["cd: can't cd to /etc/motd: No such file or directory", "2 /"]),
        ("false; export a=1; echo $? $a", ["0 1"]),
        ("export a=$(exit 3); echo $?", ["0"]),
        ("f() { local a=$(exit 3); echo $?; }; f", ["0"]),
        ("local a; echo $?", ["0"]),
        ("export a='x  y' b; echo \"$a\"", ["x  y"]),
        ("x='a b'; export y=$x; echo $y", ["a b"]),
        ("echo 'a b  c ' | { read -r x y; echo \"$x|$y|$?\"; }", ["a|b  c|0"]),
        ("printf 'a b' | { read -r x y z; echo \"$x|$y|$z|$?\"; }", ["a|b||1"]),
        ("read x </dev/null; echo \"$?[$x]\"", ["1[]"]),
        ("printf '  a\\tb \\n' | { read x; echo \"[$x]\"; }", ["[a\tb]"]),
        ("set a b; echo $# $1 $?", ["2 a 0"]),
        ("set -- -x; echo $1 $?", ["-x 0"]),
        ("set a; set --; echo $#", ["0"]),
        ("set a; set -e; echo $#", ["1"]),
        ("set -e b c; echo $1 $#", ["b 2"]),
        ("set -o nounset; set +u; echo [$x] $?", ["[] 0"]),
        ("set -eu; set +eu; false; echo $x on", ["on"]),
        ("set -x; echo quiet", ["quiet"]),
        ("set a b c d; shift; echo $* $?; shift 2; echo $*", ["b c d 0", "d"]),
        ("set a b; shift 2; echo $# $?", ["0 0"]),
        ("set a; shift 2; echo $# $?", ["shift: can't shift that many", "1 1"]),
        ("umask 27; umask; umask 0; umask; echo $?; umask 0077; umask", ["0027", "0000", "0", "0077"]),
        ("x=1 y=2; unset x y z; echo [$x$y] $?", ["[] 0"]),
        ("true & false & wait 1001; echo $?; wait $!; echo $?; wait 1003; echo $?; wait; echo $?",
         ["0", "1", "127", "0"]),
        ("wait 1000; echo $?", ["127"]),
        ("(exit 3) & wait 1001 || echo $?", ["3"]),
        ("for i in 1 2; do for j in a b; do echo $i$j; break 2; done; done; echo $?", ["1a", "0"]),
        ("for i in 1 2; do for j in a b; do echo $i$j; continue; done; done", ["1a", "1b", "2a", "2b"]),
        ("for i in 1 2; do for j in a b; do echo $i$j; break; done; echo -; done", ["1a", "-", "2a", "-"]),
        ("for i in 1 2; do false; continue; done; echo $?", ["0"]),
        ("f() { return 30; }; f; echo $?", ["30"]),
        ("f() { false; return; }; f; echo $?", ["1"]),
        ("f() { for i in 1 2; do echo $i; return; done; }; f", ["1"]),
        ("command echo x; command; echo $?; command -v; echo $?", ["x", "0", "127"]),
        ("f() { echo mine; }; command -v f; command -V cd; command -v test", ["f", "cd", "test"]),
        ("echo() { :; }; command echo program", ["program"]),
        ("true() { false; }; command true; \\echo $?", ["0"]),
        ("exec false; echo never", []),
        ("exec 2>/dev/null; echo on", None),
    ],
)  # fmt: skip
def test_builtins(text: str, lines: list[str] | None) -> None:
    if lines is None:
        with pytest.raises(Unsupported, match="exec without a command"):
            run(text)
    else:
        assert said(text) == lines


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cd", "cd without a directory"),
        ("cd -", "cd without a directory"),
        ("cd /etc /tmp", "cd without a directory"),
        ("export -n x", "the option -n"),
        ("read", "this form of read"),
        ("read -r", "this form of read"),
        ("read -p x y", "this form of read"),
        ("set -f", "set -f"),
        ("set -o", "set -o"),
        ("set -o noclobber", "set -o"),
        ("umask u=rwx", "umask u=rwx"),
        ("umask 00000", "umask 00000"),
        ("umask 8", "umask 8"),
        ("unset -f x", "unset -f"),
        ("wait %1", "wait %1"),
        ("wait -n", "wait -n"),
        (".", "sourcing a file from PATH"),
        (". file", "sourcing a file from PATH"),
        ("PATH=/x", "a value of its own for PATH"),
        ("IFS=:", "a value of its own for IFS"),
        ("IFS=: read x", "a value of its own for IFS"),
        ("echo $RANDOM", "the parameter $RANDOM"),
        ("echo $$", "the parameter $$"),
        ("echo x 3>f", "the redirection of descriptor 3"),
        ("cat 3<etc/motd", "the redirection 3<"),
        ("echo x >&3", "the redirection 1>&3"),
        ("cat <&3", "the redirection 0>&3"),
    ],
)
def test_builtins_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        run(text)
    assert refusal.value.construct == reason
    assert str(refusal.value) == f"demo.post-install, line 2: {reason}"


def test_a_refusal_in_a_file_that_is_sourced_names_the_file() -> None:
    tree = base()
    tree.write("lib.sh", "true\nfrob\n")
    with pytest.raises(Unsupported, match=r"in /lib\.sh: line 0: the command frob"):
        run(". /lib.sh", tree)


def test_the_path_may_be_set_to_what_it_is() -> None:
    assert said("PATH=/usr/sbin:/usr/bin:/sbin:/bin; echo on") == ["on"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x=abc; echo ${x%z} ${x#z} ${x%%z*} ${x##z*}", ["abc abc abc abc"]),
        ("x=abcabc; echo ${x#*b} ${x##*b} ${x%b*} ${x%%b*}", ["cabc c abca a"]),
        ("x=; echo [${x:-d}] [${x-d}] [${x:+s}] [${x+s}]", ["[d] [] [] [s]"]),
        ("echo [${u:-d}] [${u-d}] [${u:+s}] [${u+s}]", ["[d] [d] [] []"]),
        ("x=v; echo [${x:-d}] [${x-d}] [${x:+s}] [${x+s}]", ["[v] [v] [s] [s]"]),
        ("x=v; echo \"[${x:-d}] [${x-d}] [${x:+s}] [${x+s}] [${u+s}]\"", ["[v] [v] [s] [s] []"]),
        ("x=; echo ${x=a}${x:=b}$x ${u=c}$u", ["bb cc"]),
        ("set a b; echo \"${1}${2}${3}\" ${#1} ${#} $# ${#x}", ["ab 1 2 2 0"]),
        ("set a b c d e f g h i j k; echo ${10} ${11} $10", ["j k a0"]),
        ("set a 'b c'; for i in \"$@\"; do echo \"[$i]\"; done; for i in $@; do echo $i; done",
         ["[a]", "[b c]", "a", "b", "c"]),
        ("set a 'b c'; for i in \"$*\" x\"$@\"y; do echo \"[$i]\"; done", ["[a b c]", "[xa]", "[b cy]"]),
        ("set a 'b c'; x=\"$@\"; y=$*; echo \"$x|$y|${@}|${*:-d}|${@:+s}\"", ["a b c|a b c|a b c|a b c|s"]),
        ("set --; echo [\"$*\"] [$*] [\"$@\"] [${*:-d}]", ["[] [] [] [d]"]),
        ("x=' a  b '; set $x; echo $#; set p$x; echo $# $1; set $x$x; echo $#", ["2", "3 p", "4"]),
        ("x=' '; set $x; echo $#; set \"$x\"; echo $#; set ''$x; echo $#", ["0", "1", "1"]),
        ("set ${u:-a b} \"${u:-c d}\" ${u:-\"e f\"}; echo $# $3 $4", ["4 c d e f"]),
        ("x='a b'; set ${x:-c}; echo $#; set ${x-c} ${u:+d e} ${x:+d e}; echo $#", ["2", "4"]),
        ("echo ${x:?} || echo never", ["x: parameter not set"]),
        ("echo ${x?is missing}; echo never", ["x: is missing"]),
        ("x=; (echo ${x?never}); (echo ${x:?empty}); echo $?", ["", "x: empty", "2"]),
        ("set -u; echo ${x-d} ${x:+s} $# \"$@\"; echo ${#x}; echo never", ["d 0", "x: parameter not set"]),
        ("true & echo $!; true & echo $!", ["1001", "1002"]),
        ("echo [$!]", ["[]"]),
        ("x='*'; echo \"$x\" '*' \\*; cd etc; echo *.conf \"*\".conf [ab].conf ?.conf",
         ["* * *", "a.conf b.conf *.conf a.conf b.conf a.conf b.conf"]),
        ("cd etc; x='*.conf'; echo $x; case a.conf in $x) echo yes;; esac; case a.conf in \"$x\") echo no;; esac",
         ["a.conf b.conf", "yes"]),
        ("mkdir d; touch d/.h d/v; echo d/* d/.* /d/*", ["d/v d/.h /d/v"]),
        ("echo /e*/m*; ln -s nowhere etc/mess; echo etc/me* etc/none", ["/etc/motd", "etc/mess etc/none"]),
        ("touch 'a*'; echo a'*' a\\** [a]\"*\"", ["a* a* a*"]),
        ("echo `echo a \\`echo b\\``c", ["a bc"]),
        ("echo \"$(printf 'a\\n\\n')\"b $(printf '\\n a')", ["ab a"]),
    ],
)  # fmt: skip
def test_expansions(text: str, lines: list[str]) -> None:
    assert said(text) == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("echo a >f; echo b >f; cat f", ["b"]),
        ("echo a >f; echo b >>f; cat f", ["a", "b"]),
        ("echo a >|f; cat <f", ["a"]),
        ("{ echo out; cat /none; } >f 2>&1; cat f", ["out", "cat: /none: No such file or directory"]),
        ("{ echo out; cat /none; } 2>&1 >f; cat f", ["cat: /none: No such file or directory", "out"]),
        ("cat /none 2>f; cat f; cat /none 2>&-; cat /none >/dev/null 2>&1", ["cat: /none: No such file or directory"]),
        ("{ echo out; cat /none; } &>f; cat f", ["out", "cat: /none: No such file or directory"]),
        ("echo x >/dev/stderr 2>/dev/null; echo y >/dev/stdout", ["x", "y"]),
        ("cat /none 2>/dev/stdout | cut -d: -f 2", [" /none"]),
        ("echo x 1>&2 2>/dev/null", ["x"]),
        ("cat <etc/none; echo $?", ["etc/none: No such file or directory", "1"]),
        ("echo x >etc; echo $?", ["etc: a file cannot replace a directory", "1"]),
        ("echo x >none/f; echo $?", ["/none/f: No such file or directory", "1"]),
        ("{ echo never; } >none/f; echo $?", ["/none/f: No such file or directory", "1"]),
        ("cat <<A; cat <<-B\na\nA\n\tb\n\tB", ["a", "b"]),
        ('while read x; do echo "<$x>"; done <<E\n1\n2\nE', ["<1>", "<2>"]),
        ("if true; then echo a; fi >f; cat f", ["a"]),
        ("f() { echo a; }; f >f; cat f", ["a"]),
        ("f() { echo a; cat /none; } 2>/dev/null; f", ["a"]),
        (">f; cat f; echo $?", ["0"]),
        ("echo a | cat - etc/a.conf", ["a", "a b", "c d"]),
        ("echo a | { cat; echo b; } | { cat; echo c; }", ["a", "b", "c"]),
        ("echo a | cat </dev/null", []),
        ("{ echo a | cat; cat; } <etc/b.conf", ["a", "b"]),
        ("cat & echo on", ["on"]),
    ],
)
def test_redirections(text: str, lines: list[str]) -> None:
    assert said(text) == lines


def test_a_file_is_emptied_even_if_nothing_is_written() -> None:
    tree, _ = run(">etc/motd; : >>etc/a.conf; false >etc/b.conf")
    assert [tree.text(f"etc/{name}") for name in ("motd", "a.conf", "b.conf")] == ["", "a b\nc d\n", ""]
    assert tree["etc/motd"].mtime == EPOCH


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
