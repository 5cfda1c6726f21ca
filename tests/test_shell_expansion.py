"""Expansion in package scripts: parameters, fields, substitutions, pathnames."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Unsupported
from imgkit.tree import Tree
from tests.test_scripts import run, said


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
        ("mkdir d; touch d/.h d/v; echo d/* d/.[!.]* d/.h* /d/*", ["d/v d/.h d/.h /d/v"]),
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
        ("set a; echo [${11111111111111111111}] ${1}", ["[] a"]),
        ("set a b; echo [${00}] [${01}] [${02}] [${03}]", ["[] [a] [b] []"]),
        ("echo etc/ //etc .//etc/motd 'etc'/", ["etc/ //etc .//etc/motd etc/"]),
        ("echo et? e*/ /e*//mot[d]", ["etc etc/ /etc//motd"]),
        ('x=\'a  b\'; set "${x}"; echo $# "${x}" "${#x}"', ["1 a  b 4"]),
        ('set \'a  b\'; echo "$1" "${1}" "$@" "$*"', ["a  b a  b a  b a  b"]),
        ("set a ''; echo $#; set $@; echo $#", ["2", "1"]),
        ('set \'*\' \'?x\'; echo "$@" "$*" "${u:-$1}" ${u:-"$1"}', ["* ?x * ?x * *"]),
        ("x='[a]*'; case '[a]*' in \"$x\") echo same; esac; case ab in $x) echo pattern; esac", ["same", "pattern"]),
        ("x='*a'; y='b*a'; echo \"${y%\"$x\"}\" ${y%$x}.", ["b b*."]),
        ('x=a:b; echo ${x%:*} ${x%z} "${x#*:}" ${x#z}.', ["a a:b b a:b."]),
        ('echo [${u:+s}] [${u+s}] ["${u:+s}"] ["${u+s}"]', ["[] [] [] []"]),
        ('x=; echo [${x:-}] [${x-d}] ["${x-d}"] ["${x:-d}"] ["${x+s}"] ["${x:+s}"]', ["[] [] [] [d] [s] []"]),
        ('x=v; echo "${x=w}" ${x:=w} ${x?e} ${x:?e} "${x:?e}"', ["v v v v v"]),
        ("true & echo [$!] ${!} ${#!}", ["[1001] 1001 4"]),
        ("false; echo ${?} ${#?}; echo ${#} ${##x}", ["1 1", "0 0"]),
    ],
)
def test_expansions_at_their_boundaries(text: str, lines: list[str]) -> None:
    assert said(text) == lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("echo et? e*/ e*//mot[d] ./e*// *//.", "etc etc/ etc//motd ./etc// d//. etc//."),
        ("echo nope*/ e1*/ e1*", "nope*/ e1*/ e1"),
        ("ln -s etc l; ln -s gone k; echo l*/ l* k*/ k*", "l/ l k*/ k"),
        ("echo */. */..", "d/. etc/. d/.. etc/.."),
        ("echo 'e'*/ \\e*/ \"e*\"/", "etc/ etc/ e*/"),
        ("cd d; echo ../e* /e*/", "../e1 ../etc /etc/"),
        ("ln -s l l; echo l*/ l*/x l/*", "l*/ l*/x l/*"),
    ],
)
def test_a_slash_after_a_pattern_asks_for_directories(text: str, line: str) -> None:
    """The lines that busybox's ash writes."""
    tree = Tree()
    run("mkdir etc d; touch etc/motd e1", tree)
    assert run(text, tree)[1].messages == (line,)


@pytest.mark.parametrize("pattern", [".*", "/etc/.*", "etc/.?", ".*/x"])
def test_patterns_that_match_the_directory_itself_are_refused(pattern: str) -> None:
    with pytest.raises(Unsupported, match=r"the pattern \.[*?], which matches \. or \.\."):
        run(f"echo {pattern}")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("case ${x:?gone} in *) ;; esac; echo never", ["x: gone"]),
        ("for i in ${x:?gone}; do :; done; echo never", ["x: gone"]),
        ("set -u; y=$x; echo never", ["x: parameter not set"]),
        ("echo ${x?}; echo never", ["x: parameter not set"]),
    ],
)
def test_an_expansion_that_fails_ends_the_script(text: str, lines: list[str]) -> None:
    outcome = run(text)[1]
    assert (outcome.status, list(outcome.messages)) == (2, lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x='p  q'; export y=$x; echo \"$y\"", "p  q"),
        ("x='p  q'; f() { local y=$x; echo \"$y\"; }; f", "p  q"),
        ("x='p  q'; readonly y=$x; echo \"$y\"", "p  q"),
        ('x=\'p  q\'; "export" y=$x; echo "$y"', "p  q"),
        ("x='p  q'; e=export; $e y=$x; echo \"$y\"", "p  q"),
        ("x='p  q'; export 'y'=$x; echo \"$y\"", "p"),
        ('x=\'p  q\'; export "y=$x"; echo "$y"', "p  q"),
        ("pair='a=1 b=2'; export $pair; echo \"$a $b\"", "1 2"),
        ('pair=\'a=1 b=2\'; export "$pair"; echo "$a"', "1 b=2"),
        ("x='p  q'; echo y=$x", "y=p q"),
        ("export x='*.conf'; cd etc; export y=$x z=*.conf; echo \"$y $z\"", "*.conf *.conf"),
    ],
)
def test_only_assignments_after_export_are_not_split(text: str, line: str) -> None:
    """The lines that busybox's ash writes."""
    assert said(text) == [line]
