"""Expansion in package scripts: parameters, fields, substitutions, pathnames."""

from __future__ import annotations

import pytest

from tests.test_scripts import said


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
