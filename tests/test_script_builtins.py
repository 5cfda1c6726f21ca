"""Commands of the shell itself in package scripts: their status, their effect, and what they refuse."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Unsupported
from imgkit.tree import Tree
from tests.test_scripts import base, run, said


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
