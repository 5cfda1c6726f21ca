"""``sort``, ``ls``, ``find``, commands in the background and scripts for dash: outcomes measured with busybox 1.37."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.rootfs.scripts.effects import Outcome, Unsupported, run_script
from imgkit.rootfs.scripts.sorting import version_order
from imgkit.tree import Directory, File, Inline, Symlink, Tree
from tests.test_scripts import base, run, said


def jvm() -> Tree:
    """Java as Alpine has it, beside something hidden and links."""
    tree = base()
    for name in ("java-1.8-openjdk/bin", "java-11-openjdk/bin", "java-9", "empty"):
        tree.mkdir(f"usr/lib/jvm/{name}")
    for name in ("java", "keytool"):
        tree.write(f"usr/lib/jvm/java-11-openjdk/bin/{name}", "\x7fELF", mode=0o755)
    tree.write("usr/lib/jvm/.x", "")
    tree.symlink("usr/lib/jvm/link", "java-11-openjdk")
    tree.symlink("usr/lib/jvm/dangling", "nowhere")
    return tree


def lines(text: str) -> list[str]:
    return list(run(f"cd /usr/lib/jvm\n{text}", jvm())[1].messages)


# ---- sort ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "result"),
    [
        ("", "b a B A 10 9 -3", "-3 10 9 A B a b"),
        ("-r", "b a 1", "b a 1"),
        ("-n", "b a B A 10 9 1 -3 1", "-3 A B a b 1 1 9 10"),
        ("-rn", "b a B A 10 9 1 -3 1", "10 9 1 1 b a B A -3"),
        ("-u", "b a b", "a b"),
        ("-nu", "b a B A 10 9 1 -3 1", "-3 A 1 9 10"),
        ("-n", "1x +3 -1 .5 1e1 x", "-1 x .5 1x +3 1e1"),
        ("-f", "b a B A 1", "1 A a B b"),
        ("-V", "java-11 java-1.8 java-9", "java-1.8 java-9 java-11"),
        ("-Vr", "java-11 java-1.8 java-9", "java-11 java-9 java-1.8"),
        ("-V", "1.10 1.9 1.0 1.01 1.1 010 09 1 01 a1 a01", "01 010 09 1 1.01 1.0 1.1 1.9 1.10 a01 a1"),
        ("-t: -k2", "a:3 b:1 c:2 d:10", "b:1 d:10 c:2 a:3"),
        ("-t : -k 2n", "a:3 b:1 c:2 d:10", "b:1 c:2 a:3 d:10"),
        ("-t: -k2,2nr", "a:3 b:1 c:2 d:10", "d:10 a:3 c:2 b:1"),
        ("-t: -k1,1", "a:b a:a", "a:a a:b"),
        ("-s -t: -k1,1", "a:b a:a", "a:b a:a"),
        ("-t: -k2,2 -k1r", "x:10 y:9 z:9", "x:10 z:9 y:9"),
        ("-t: -k1,1 -u", "B:1 a:2 a:1", "B:1 a:1"),
    ],
)
def test_sort(options: str, given: str, result: str) -> None:
    assert " ".join(said(f"printf '%s\\n' {given} | sort {options}")) == result


def test_sort_reads_and_writes_files() -> None:
    tree, _ = run("printf 'c\\na' >/tmp/a; echo b | sort /tmp/a - >/tmp/b; sort -o /tmp/a -r /tmp/a; sort /dev/null")
    assert tree.text("tmp/b") == "a\nb\nc\n"
    assert tree.text("tmp/a") == "c\na\n", "read before it is written"
    assert said("sort /nope; echo $?") == ["sort: /nope: No such file or directory", "2"]
    tree, outcome = run("umask 077; sort -o new etc/motd; sort -o etc/motd etc/motd; sort -o x/y new")
    assert outcome == Outcome(1, ("sort: /x/y: No such file or directory",))
    assert [oct(tree[name].mode) for name in ("new", "etc/motd")] == ["0o600", "0o644"]


@pytest.mark.parametrize(
    ("options", "given", "result"),
    [
        ("-r", "a b a", "b a a"),
        ("-rs -t: -k1,1", "a:1 b:1 a:0", "b:1 a:1 a:0"),
        ("-r -t: -k1,1", "a:1 b:1 a:2", "b:1 a:2 a:1"),
        ("-u", "b a b a c", "a b c"),
        ("-ru", "b a b a c", "c b a"),
        ("-t: -k2,2 -k1,1", "b:1 a:2 a:1", "a:1 b:1 a:2"),
        ("-n", "-1.5 1e-1 .5 -.5 +2 0.05", "-1.5 -.5 0.05 1e-1 .5 +2"),
        ("-V", "a00 a0 a000 a001 a01 a0a a00a", "a000 a001 a00 a00a a01 a0 a0a"),
        ("-V", "1 01 001 1a 01a 10 010", "001 01 010 01a 1 1a 10"),
        ("-f", "a A b B aA Aa", "A a Aa aA B b"),
    ],
)
def test_sort_at_its_boundaries(options: str, given: str, result: str) -> None:
    assert " ".join(said(f"printf '%s\\n' {given} | sort {options}")) == result


def test_names_are_compared_by_their_bytes() -> None:
    names = ["\udc80", "é", "\udcff", "z"]
    text = "; ".join(f"touch 'd{name}'" for name in names)
    in_order = ["dz", "d\udc80", "dé", "d\udcff"]
    assert said(f"cd tmp; {text}; ls") == in_order
    assert said(f"cd tmp; {text}; ls d*") == in_order
    assert said(f"cd tmp; {text}; ls | sort -r") == in_order[::-1]


@pytest.mark.parametrize(
    "options",
    ["-c", "-h", "-z", "--unique", "-k2", "-t: -k2.3", "-t: -k0", "-t ab -k1", "-t: -k1,9999999999999999999"],
)
def test_sort_that_is_not_understood(options: str) -> None:
    with pytest.raises(Unsupported, match=r"demo\.post-install, line 2: (option|sort)"):
        run(f"echo a | sort {options}")


def test_sort_refuses_odd_numbers() -> None:
    with pytest.raises(Unsupported, match="sort -n of '0x10'"):
        run("printf '0x10\\n1\\n' | sort -n")


NAMES = st.text("01.9a-", max_size=8).map(str.encode)


@given(NAMES, NAMES, NAMES)
def test_version_order_is_an_order(a: bytes, b: bytes, c: bytes) -> None:
    assert version_order(a, b) == -version_order(b, a)
    assert (version_order(a, b) == 0) == (a == b)
    if version_order(a, b) <= 0 and version_order(b, c) <= 0:
        assert version_order(a, c) <= 0


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_in_names_are_numbers(a: int, b: int) -> None:
    assert version_order(b"v%d.x" % a, b"v%d.x" % b) == (a > b) - (a < b)


# ---- ls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("ls", "dangling empty java-1.8-openjdk java-11-openjdk java-9 link"),
        ("ls -a .", ". .. .x dangling empty java-1.8-openjdk java-11-openjdk java-9 link"),
        ("ls -A | head -n 1", ".x"),
        ("ls -d java-*", "java-1.8-openjdk java-11-openjdk java-9"),
        ("ls -1dr java-9 link", "link java-9"),
        ("ls -p", "dangling empty/ java-1.8-openjdk/ java-11-openjdk/ java-9/ link"),
        ("ls link/bin", "java keytool"),
        ("ls link", "bin"),
        ("ls -d link java-9/", "java-9/ link"),
        ("ls empty; echo $?", "0"),
        ("ls -d", "."),
        ("ls -r", "link java-9 java-11-openjdk java-1.8-openjdk empty dangling"),
        ("ls -ra empty", ".. ."),
        ("ls -rA | head -n 7", "link java-9 java-11-openjdk java-1.8-openjdk empty dangling .x"),
        ("ls -dp link empty", "empty/ link/"),
        ("ls -p link", "bin/"),
        ("ls -1 empty empty | head -n 1", "empty:"),
    ],
)
def test_ls(text: str, result: str) -> None:
    assert lines(text) == result.split()


def test_ls_of_several() -> None:
    assert lines("ls nope java-9 .x link; echo $?") == [
        "ls: nope: No such file or directory", ".x", "", "java-9:", "", "link:", "bin", "1"
    ]  # fmt: skip
    assert lines("ls nope java-11-openjdk") == ["ls: nope: No such file or directory", "java-11-openjdk:", "bin"]
    assert lines("ls -d dangling; echo $?") == ["ls: dangling: No such file or directory", "1"]
    assert lines("ls .x/") == ["ls: .x/: Not a directory"]


@pytest.mark.parametrize("text", ["ls -l", "ls -t", "ls -R", "ls --color=never", "ls -F", "ls /dev"])
def test_ls_that_is_not_understood(text: str) -> None:
    with pytest.raises(Unsupported):
        run(text)


# ---- find ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("find java-11-openjdk", "X X/bin X/bin/java X/bin/keytool"),
        ("find java-11-openjdk/ -type f", "X/bin/java X/bin/keytool"),
        ("find . -maxdepth 1 -name '*9'", "./java-9"),
        ("find -name java-9", "./java-9"),
        ("find . -name '.*'", ". ./.x"),
        ("find . -mindepth 2 -type d", "./java-1.8-openjdk/bin ./X/bin"),
        ("find . -type l", "./dangling ./link"),
        ("find -L . -type l -print", "./dangling"),
        ("find link", "link"),
        ("find -H link -type f", "link/bin/java link/bin/keytool"),
        ("find link/ -type d", "link/ link/bin"),
        ("find . ! -name 'java*' -type d", ". ./empty ./java-1.8-openjdk/bin ./X/bin"),
        ("find . -type l -o -type f -name '.x'", "./.x ./dangling ./link"),
        ("find . \\( -name link -o -name .x \\) -print", "./.x ./link"),
        ("find . -name bin -prune -o -type f -print", "./.x"),
        ("find . -path './java-1*/bin'", "./java-1.8-openjdk/bin ./X/bin"),
        ("find . -empty", "./.x ./empty ./java-1.8-openjdk/bin ./java-9"),
        ("find . -iname 'JAVA-9'", "./java-9"),
        ("find link/bin -perm 755 -type f", "link/bin/java link/bin/keytool"),
        ("find . -maxdepth 1 -type f -not -perm -100", "./.x"),
        ("find link/bin -type f -perm /6000", ""),
        ("find X/bin -depth", "X/bin/java X/bin/keytool X/bin"),
        ("find . -user root -name link; find . -user 7; find . -group root -name link", "./link ./link"),
        ("find X/bin -type f -exec echo x{}y {} \\;", "xX/bin/javay X/bin/java xX/bin/keytooly X/bin/keytool"),
        ("find X/bin -type f -exec echo all {} +", "all X/bin/java X/bin/keytool"),
        ("find X/bin -type f -exec false {} \\; -print; echo $?", "0"),
        ("find X/bin -type f -exec false {} +; echo $?", "1"),
        ("find X/bin -type f -exec test -x {} \\; -print", "X/bin/java X/bin/keytool"),
        ("find X -name nothing -exec false {} +; echo $?", "0"),
        ("find X/bin -print0", "X/bin\0X/bin/java\0X/bin/keytool\0"),
        ("find X -xdev -maxdepth 0 -follow", "X"),
    ],
)
def test_find(text: str, result: str) -> None:
    found = " ".join(lines(text.replace("X", "java-11-openjdk")))
    assert found.replace("java-11-openjdk", "X") == result


def test_find_deletes() -> None:
    tree, outcome = run(
        "cd /usr/lib/jvm; find java-11-openjdk -delete; find . -name .x -delete; find . -type l -delete", jvm()
    )
    assert tree.children("usr/lib/jvm") == [f"usr/lib/jvm/{name}" for name in ("empty", "java-1.8-openjdk", "java-9")]
    assert outcome == Outcome(0)
    assert lines("find . -name 'java-11*' -delete; echo $?") == ["find: ./java-11-openjdk: Directory not empty", "0"]


def test_find_whose_action_takes_the_directory_away() -> None:
    tree, outcome = run("cd /usr/lib/jvm; find java-11-openjdk -exec rm -rf {} \\; ; echo $?", jvm())
    assert "usr/lib/jvm/java-11-openjdk" not in tree
    assert outcome.messages == ("find: java-11-openjdk: No such file or directory", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("find nope", "nope: No such file or directory"),
        ("find .x/", ".x/: Not a directory"),
        ("find . -type x", "invalid argument 'x' to '-type'"),
        ("find . -exec", "-exec requires an argument"),
        ("find . -exec echo {}", "-exec requires an argument"),
        ("find . -name", "-name requires an argument"),
        ("find . \\( -name x", "unpaired '('"),
        ("find . -maxdepth x", "invalid number 'x'"),
        ("find . -user nobody-here", "unknown user nobody-here"),
    ],
)
def test_find_that_fails(text: str, message: str) -> None:
    assert lines(f"{text}; echo $?") == [f"find: {message}", "1"]


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        ("find . -newer /etc/motd", "find -newer"),
        ("find . -mtime +1", "find -mtime"),
        ("find . -size 0", "find -size"),
        ("find . -quit", "find -quit"),
        ("find . -ok rm {} \\;", "find -ok"),
        ("find . -perm u=rw", "find -perm u=rw"),
        ("find . -exec frob {} \\;", "the command frob"),
        ("find . -exec sh -c 'rm x' \\;", "the command sh"),
        ("find . -name x -o -maxdepth 1", "alone on one side of -o"),
        ("find /", "what is in /dev, which only a running system knows"),
        ("mkdir /tmp/a; ln -s .. /tmp/a/up; find -L /tmp", "a circle of links"),
    ],
)
def test_find_that_is_not_understood(text: str, construct: str) -> None:
    with pytest.raises(Unsupported, match=construct.replace("+", r"\+")):
        run(text)


# ---- together ------------------------------------------------------------------------------------------------------

NEWEST = """\
cd /usr/lib/jvm
newest=`ls -d java-* | sort -Vr | head -1`
[ "$newest" ] && ln -sfn $newest default-jvm
for link in $(find -L /usr/bin -type l -print); do
    case "$(readlink $link)" in ../lib/jvm/*) rm "$link" ;; esac
done
cd /usr/bin
find ../lib/jvm/default-jvm/bin -mindepth 1 -type f -exec ln -sfn {} . \\;
"""


def test_the_newest_of_several_versions() -> None:
    """What the trigger of java-common is about."""
    tree = jvm()
    tree.symlink("usr/bin/javac", "../lib/jvm/default-jvm/bin/javac")
    tree.symlink("usr/bin/other", "../lib/gone")
    run(NEWEST, tree)
    links = {path: node.target for path, node in tree.walk("usr") if isinstance(node, Symlink)}
    assert links["usr/lib/jvm/default-jvm"] == "java-11-openjdk"
    assert links["usr/bin/java"] == "../lib/jvm/default-jvm/bin/java"
    assert links["usr/bin/other"] == "../lib/gone"
    assert "usr/bin/javac" not in links


# ---- in the background ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("echo a & echo b; wait", "a b"),
        ("false & echo $?; wait $!; echo $?; wait; echo $?; wait 99999; echo $?", "0 1 0 127"),
        ("(exit 3) & a=$!; (exit 4) & b=$!; wait $a; echo $?; wait $b; echo $?; wait $b $a; echo $?", "3 4 3"),
        ("set -e; false & wait; echo on; { false; echo never; } & wait", "on"),
        ("x=1; x=2 & wait; { x=3; cd /etc; } & wait; echo $x $(pwd)", "1 /"),
        ("echo in | { cat & wait; }; echo out", "out"),
        ("f() { echo f $1; return 3; }; f 1 & wait $!; echo $?", "f 1 3"),
        ("for i in 1 2 3; do break & done; wait; echo $i", "3"),
        ("for i in a b; do echo $i >>/tmp/l & done; wait; cat /tmp/l", "a b"),
        ("case a in a) echo c & ;; esac; if true; then echo t & fi; wait", "c t"),
        ("false && echo no & wait $!; echo $?; true || x & echo [${!:+set}]", "1 [set]"),
        ("exit 5 & wait $!; echo $?", "5"),
        ("echo [$!]; (true & ); echo [$!]", "[] []"),
        ("echo a >/tmp/x 2>&1 & cat /tmp/x", "a"),
    ],
)
def test_background(text: str, result: str) -> None:
    assert " ".join(said(text)) == result


def test_an_unset_job_is_an_unset_parameter() -> None:
    assert said("set -u; echo $!; echo never") == ["!: parameter not set"]


@pytest.mark.parametrize("text", ["frob &", "wait %1", "kill $! &", "echo $$ &"])
def test_background_that_is_not_understood(text: str) -> None:
    with pytest.raises(Unsupported):
        run(text)


@pytest.mark.parametrize("text", ["& a", "a & ; b", "a & & b", "a | & b", "a & && b"])
def test_background_with_wrong_syntax(text: str) -> None:
    with pytest.raises(Unsupported, match="syntax error"):
        run(text)


# ---- dash ----------------------------------------------------------------------------------------------------------


def dash(text: str, first: str = "#!/usr/bin/dash") -> tuple[Tree, Outcome]:
    tree = base()
    return tree, run_script(tree, f"{first}\n{text}", package="dash", kind="post-install")


def test_a_script_for_dash() -> None:
    tree, outcome = dash("add-shell '/usr/bin/dash'\nexit 0\n")
    assert (tree.text("etc/shells"), outcome) == ("/usr/bin/dash\n", Outcome(0))
    assert dash("false; echo never", "#!/bin/dash -e")[1] == Outcome(1)
    assert dash("echo -n a 2>&1; echo; echo b -n")[1].messages == ("a", "b -n")


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        ("echo 'a\\tb'", "echo of options or backslashes in a script for dash"),
        ("echo -e a", "echo of options"),
        ("true\nfrob &>/dev/null", "line 3: &> in a script for dash"),
        ("[ a == a ]", "== in a script for dash"),
        ("set -o pipefail", "pipefail in a script for dash"),
    ],
)
def test_what_dash_does_otherwise(text: str, construct: str) -> None:
    with pytest.raises(Unsupported, match=construct):
        dash(text)
    if "frob" not in text:
        run(text)


@pytest.mark.parametrize("first", ["#!/usr/local/bin/dash", "#!/usr/bin/dashed", "#!/usr/bin/dash -l", "#!/bin/bash"])
def test_other_interpreters(first: str) -> None:
    with pytest.raises(Unsupported, match=r"line 1: the interpreter"):
        dash("true", first)


# ---- busybox-extras ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["bin", "usr/bin"])
def test_the_links_of_busybox_extras(folder: str) -> None:
    """A list of its own. Where /usr is merged the links lead through /bin, which is the path that busybox knows."""
    tree = base()
    if folder == "usr/bin":
        for name in ("busybox", "sh"):
            tree.remove(f"bin/{name}")
        tree.remove("bin")
        tree.symlink("bin", "usr/bin")
    tree.add(f"{folder}/busybox-extras", File(content=Inline(b"\x7fELF"), mode=0o755))
    tree.write("etc/busybox-paths.d/busybox-extras", "usr/bin/telnet\nusr/sbin/httpd\nsbin/no/such\n")
    tree.write("usr/sbin/httpd", "theirs")
    _, outcome = run(f"[ -e /{folder}/busybox-extras ] && exec /{folder}/busybox-extras --install -s", tree)
    assert outcome == Outcome(0)
    assert tree["usr/bin/telnet"] == Symlink(target="/bin/busybox-extras", mtime=20777 * 86400)
    assert tree.text("usr/sbin/httpd") == "theirs"
    assert isinstance(tree["sbin"], Directory)


@pytest.mark.parametrize(
    "text", ["busybox-extras --install", "/usr/bin/busybox-extras telnetd", "busybox-extras --list"]
)
def test_busybox_extras_that_is_not_understood(text: str) -> None:
    with pytest.raises(Unsupported, match="busybox-extras"):
        run(text)
