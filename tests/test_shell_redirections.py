"""Redirections in package scripts, and where what a command writes goes."""

from __future__ import annotations

import pytest

from tests.test_scripts import EPOCH, run, said


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
    ("text", "lines"),
    [
        ("echo a>f>g; cat f g", ["a"]),
        ("echo a >f 2>&1 >g; cat f; echo -; cat g", ["-", "a"]),
        ("cat </none >f; echo $?; [ -e f ] || echo no", ["/none: No such file or directory", "1", "no"]),
        ("cat >f </none; echo $?; [ -e f ] && echo made", ["/none: No such file or directory", "1", "made"]),
        ("cat <etc; echo $?", ["etc: not a regular file", "1"]),
        ("f() { cat; }; echo a | f; echo b >f; f <f", ["a", "b"]),
        ("if cat; then :; fi <<E\nx\nE", ["x"]),
        ("case a in a) echo b;; esac >f; for i in 1; do echo $i; done >>f; (echo 2) >>f; cat f", ["b", "1", "2"]),
        ("while read x; do echo $x; done <etc/none; echo $?", ["etc/none: No such file or directory", "1"]),
        ("x=1 >f; echo $x; cat f", ["1"]),
        ("x=1 >none/f; echo $? [$x]", ["/none/f: No such file or directory", "1 []"]),
        ("(exit 3) >none/f; echo $?", ["/none/f: No such file or directory", "1"]),
        ("echo a >&-; echo b 2>&-; echo c 1>&2; echo d 2>&1", ["b", "c", "d"]),
        ("f() { echo a >&2; }; f 2>g; cat g", ["a"]),
        ("echo $(echo a >&2) b 2>f; cat f", ["a", "b"]),
        ("cat <<E1 <<E2\na\nE1\nb\nE2", ["b"]),
    ],
)
def test_more_redirections(text: str, lines: list[str]) -> None:
    assert said(text) == lines
