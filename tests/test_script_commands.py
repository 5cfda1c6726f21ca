"""Programs that package scripts call: files, modes, owners, text, conditions, accounts and find, in every form."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Outcome, Unsupported
from imgkit.tree import Device, Directory, File, HardLink, Inline, Symlink, Tree
from tests.test_scripts import EPOCH, base, facts, run, said

# ---- test and [ ------------------------------------------------------------------------------------------------------


def files() -> Tree:
    """Return a Tree with a node of each kind below ``t``."""
    tree = base()
    tree.mkdir("t/d", mode=0o755)
    tree.write("t/f", "x", mode=0o644)
    tree.write("t/empty", "", mode=0o600)
    tree.write("t/suid", "x", mode=0o4755)
    tree.write("t/sgid", "x", mode=0o2755)
    tree.mkdir("t/sticky", mode=0o1777)
    tree.symlink("t/l", "f")
    tree.symlink("t/dangling", "none")
    tree.symlink("t/loop", "loop")
    for kind in "bcp":
        tree.add(f"t/{kind}", Device(kind=kind, major=1, minor=3, mode=0o600))
    return tree


NAMES = ["d", "f", "empty", "suid", "sgid", "sticky", "l", "dangling", "loop", "b", "c", "p", "none"]


@pytest.mark.parametrize(
    ("operator", "names"),
    [
        ("-e", "d f empty suid sgid sticky l b c p"),
        ("-r", "d f empty suid sgid sticky l b c p"),
        ("-w", "d f empty suid sgid sticky l b c p"),
        ("-f", "f empty suid sgid l"),
        ("-d", "d sticky"),
        ("-L", "l dangling loop"),
        ("-h", "l dangling loop"),
        ("-s", "d f suid sgid sticky l b c p"),
        ("-x", "d suid sgid sticky"),
        ("-u", "suid"),
        ("-g", "sgid"),
        ("-k", "sticky"),
        ("-b", "b"),
        ("-c", "c"),
        ("-p", "p"),
    ],
)
def test_conditions_of_files(operator: str, names: str) -> None:
    text = f"for i in {' '.join(NAMES)}; do if [ {operator} t/$i ]; then echo $i; fi; done"
    assert list(run(text, files())[1].messages) == names.split()


@pytest.mark.parametrize(
    ("expression", "status"),
    [
        ("1 -eq 1", 0), ("1 -eq 2", 1), ("1 -ne 1", 1), ("1 -ne 2", 0),
        ("1 -lt 2", 0), ("2 -lt 2", 1), ("2 -le 2", 0), ("3 -le 2", 1), ("2 -gt 1", 0), ("2 -gt 2", 1),
        ("2 -ge 2", 0), ("1 -ge 2", 1), ("-1 -lt 0", 0), ("10 -gt 9", 0),
        ("a == a", 0), ("a == b", 1), ("a = b", 1), ("a != b", 0),
        ("-n a", 0), ("-z a", 1), ("-n ''", 1), ("-z ''", 0), ("! a", 1), ("! -e /none", 0),
        ("-f ''", 1), ("-e /dev/null", 0), ("-c /dev/null", 0), ("-f /dev/null", 1), ("-s /dev/null", 1),
        ("-w /dev/null", 0), ("-d /dev/null", 1),
        ("a -a b", 0), ("a -a ''", 1), ("'' -a a", 1), ("a -o ''", 0), ("'' -o ''", 1), ("'' -o '' -o a", 0),
        ("a -a b -a ''", 1), ("'' -a '' -o a", 0), ("a -o '' -a ''", 0),
        ("'(' a ')'", 0), ("'(' '' ')' -o a", 0), ("! '(' a -a '' ')'", 0), ("'(' '' -o a ')' -a ''", 1),
        ("a -a '(' b ')'", 0), ("a -a '(' '' ')'", 1), ("a -a ')'", 0),
        ("-e = -e", 0), ("-n = x", 1), ("a b", 2), ("a -a", 2), ("1 -eq", 2), ("1 -eq ''", 2), ("1.0 -eq 1", 2),
    ],
)  # fmt: skip
def test_conditions(expression: str, status: int) -> None:
    assert run(f"[ {expression} ]")[1].status == status
    assert run(f"test {expression}")[1].status == status


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ a", "[: missing ]"),
        ("[", "[: missing ]"),
        ("[ a b ]", "[: b: unknown operand"),
        ("test '(' a b ')'", "test: closing paren expected"),
        ("test '(' ')'", "test: closing paren expected"),
        ("test a -a", "test: argument expected"),
        ("test x -lt 1", "test: bad number 'x' or '1'"),
    ],
)
def test_conditions_that_are_wrong(text: str, message: str) -> None:
    assert run(text)[1] == Outcome(2, (message,))


@pytest.mark.parametrize(("mode", "holds"), [("001", 0), ("010", 0), ("100", 0), ("666", 1), ("000", 1)])
def test_whoever_may_execute_a_file_it_is_executable(mode: str, holds: int) -> None:
    assert run(f"chmod {mode} etc/motd; [ -x etc/motd ]")[1].status == holds


def test_conditions_that_are_not_known() -> None:
    with pytest.raises(Unsupported, match="test -N"):
        run("[ -N etc/motd ]")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("ln", "ln: missing operand"),
        ("ln -s a etc/motd", "ln: etc/motd: File exists"),
        ("ln -s a b etc/motd", "ln: etc/motd: File exists|ln: etc/motd: File exists"),
        ("mkdir d; ln -sfn a d/../d; ln -sf x d; ln -sf d .", "ln: d: Is a directory"),
        ("ln none l", "ln: none: No such file or directory"),
        ("mkdir etc", "mkdir: can't create directory 'etc': File exists"),
        ("mkdir -p etc/motd", "mkdir: can't create directory 'etc/motd': File exists"),
        ("mkdir a/b", "mkdir: can't create directory 'a/b': No such file or directory"),
        ("mkdir etc/motd/b", "mkdir: can't create directory 'etc/motd/b': No such file or directory"),
        ("ln -s none l; mkdir l; mkdir -p l; [ -e none ] || echo no",
         "mkdir: can't create directory 'l': File exists|mkdir: can't create directory 'l': File exists|no"),
        ("ln -s tmp l; rmdir l; [ -d tmp ] && echo kept", "rmdir: 'l': No such file or directory|kept"),
        ("rm none; rm -f none; rm etc",
         "rm: can't remove 'none': No such file or directory|rm: 'etc' is a directory"),
        ("rmdir none; rmdir etc/motd; rmdir etc",
         "rmdir: 'none': No such file or directory|rmdir: 'etc/motd': No such file or directory"
         "|rmdir: 'etc': Directory not empty"),
        ("mkdir -p d/e; rmdir --ignore-fail-on-non-empty d; rmdir -p d/e; [ -e d ] || echo gone", "gone"),
        ("mkdir -p d/e; touch d/f; rmdir -p d/e; [ -e d/e ] || echo gone",
         "rmdir: 'd': Directory not empty|gone"),
        ("mv none x; mv etc etc/x; mv etc etc/..",
         "mv: none: No such file or directory|mv: can't rename 'etc': Invalid argument"
         "|mv: can't rename 'etc': Invalid argument"),
        ("cp none x; cp etc x; cp etc/motd etc; cp -r etc etc/x",
         "cp: none: No such file or directory|cp: omitting directory 'etc'"
         "|cp: can't copy 'etc/motd' to itself|cp: can't copy 'etc' to itself"),
        ("cp etc/motd", "cp: missing operand"),
        ("install none x; install etc x", "install: can't stat 'none': No such file or directory"
         "|install: can't stat 'etc': No such file or directory"),
        ("touch none/f; touch -c g; [ -e g ] || echo no", "touch: /none/f: No such file or directory|no"),
        ("chmod 644; chmod; chown root; chgrp root; chmod +x; chmod z etc/motd",
         "chmod: missing operand|chmod: missing operand|chown: missing operand|chgrp: missing operand"
         "|chmod: missing operand|chmod: invalid mode 'z'"),
        ("chmod 644 none etc/motd/", "chmod: none: No such file or directory|chmod: etc/motd/: Not a directory"),
        ("chgrp none etc; chown :none etc; chown none: etc",
         "chgrp: unknown group none|chown: unknown group none|chown: unknown user none"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_changed(text: str, messages: str) -> None:
    assert said(text) == messages.split("|")


def test_several_operands_fail_or_succeed_each_for_itself() -> None:
    tree, outcome = run("touch a; rm none a; echo $?; mkdir x etc y; echo $?; cp a x; true")
    assert outcome.messages[1:] == ("1", "mkdir: can't create directory 'etc': File exists", "1",
                                    "cp: a: No such file or directory")  # fmt: skip
    assert "a" not in tree
    assert "x" in tree
    assert "y" in tree


def test_links_with_one_operand_are_made_here() -> None:
    tree, _ = run("cd tmp; ln -s /etc/motd; ln ../etc/a.conf; ln a.conf b; ln -f ../etc/b.conf b")
    assert tree["tmp/motd"] == Symlink(target="/etc/motd", mtime=EPOCH)
    assert tree["tmp/a.conf"] == HardLink(target="etc/a.conf")
    assert tree["tmp/b"] == HardLink(target="etc/b.conf")


def test_hard_links_have_the_mode_of_their_file() -> None:
    tree, _ = run("chmod 600 etc/motd; ln etc/motd a; ln a b")
    assert tree["a"] == tree["b"] == HardLink(target="etc/motd", mode=0o600)


def test_hard_links_to_what_is_no_file_are_refused() -> None:
    with pytest.raises(Unsupported, match="a hard link to /etc, which is no regular file"):
        run("ln etc x")
    with pytest.raises(Unsupported, match="a hard link to /l, which is no regular file"):
        run("ln -s etc/motd l; ln l x")


def test_copies_of_directories() -> None:
    tree, _ = run(
        """umask 027; mkdir -p s/in; echo 1 > s/in/f; chown bin:wheel s/in s/in/f; chmod 4777 s/in/f; ln -s f s/in/l
        cp -r s plain; cp -a s kept; mkdir into; cp -R s/in into; cp -rp s/in into/named; mv s moved"""
    )
    assert facts(tree, "plain/in/f") == ("4750", 0, 0)
    assert facts(tree, "kept/in/f") == ("4777", 1, 10)
    assert facts(tree, "kept/in") == ("750", 1, 10)
    assert facts(tree, "into/in/f") == ("4750", 0, 0)
    assert facts(tree, "into/named/f") == ("4777", 1, 10)
    assert facts(tree, "moved/in") == ("750", 1, 10)
    assert facts(tree, "plain/in/l") == ("777", 0, 0)
    assert tree["plain/in/l"] == Symlink(target="f", mtime=EPOCH)
    assert tree["plain/in/f"].mtime == EPOCH
    assert "s" not in tree
    assert "s/in/f" not in tree


def test_copies_of_links_and_over_files() -> None:
    tree, _ = run(
        """ln -s etc/motd l; cp l a; cp -d l b; cp -P l c; cp -a l d
        chown bin etc/b.conf; chmod 600 etc/b.conf; cp etc/a.conf etc/b.conf; cp -n etc/motd etc/a.conf
        mv -n etc/motd a; cp -p etc/b.conf p; cp -p etc/motd p"""
    )
    assert tree["a"] == File(content=Inline(b"Welcome\n"), mode=0o644, mtime=EPOCH)
    assert [tree[name] for name in "bcd"] == [Symlink(target="etc/motd", mtime=EPOCH)] * 2 + [tree["l"]]
    assert facts(tree, "etc/b.conf") == ("600", 1, 0)
    assert tree.text("etc/b.conf") == "a b\nc d\n"
    assert tree["etc/b.conf"].mtime == EPOCH
    assert tree.text("etc/a.conf") == "a b\nc d\n"
    assert "etc/motd" in tree
    assert facts(tree, "p") == ("644", 0, 0)
    assert tree["p"].mtime == 0


def test_what_is_copied_or_moved_to_a_link_replaces_the_link() -> None:
    tree, _ = run("ln -s motd etc/l; ln -s motd etc/m; cp etc/a.conf etc/l; mv etc/b.conf etc/m")
    assert [tree.text(f"etc/{name}") for name in ("l", "m", "motd")] == ["a b\nc d\n", "b\n", "Welcome\n"]


def test_only_the_link_is_removed() -> None:
    tree, outcome = run("ln -s etc/motd l; ln -s etc d; rm l; rm -r d")
    assert outcome == Outcome(0)
    assert "l" not in tree
    assert "d" not in tree
    assert "etc/motd" in tree


def test_rmdir_removes_the_parents_only_if_asked() -> None:
    tree, outcome = run("mkdir -p a/b c/d e/f/g; rmdir a/b; rmdir -p c/d/; rmdir e/f/g/; rmdir -p e/f")
    assert outcome == Outcome(0)
    assert [name for name in "ace" if name in tree] == ["a"]


def test_parents_that_are_there_stay_as_they_are() -> None:
    tree, _ = run("mkdir -m 700 a; chown bin a; mkdir -p a/b/c; install -d a/d/e; install -D etc/motd a/f/g")
    assert facts(tree, "a") == ("700", 1, 0)
    assert [tree[f"a/{name}"].mtime for name in ("b", "b/c", "d", "d/e", "f", "f/g")] == [EPOCH] * 6


def test_moves() -> None:
    tree, _ = run("mkdir d; touch x y; mv x y d; mv d/x z; mv etc/a.conf etc/b.conf; ln -s z l; mv l m")
    assert sorted(path for path, _ in tree.walk("d")) == ["d", "d/y"]
    assert tree.text("etc/b.conf") == "a b\nc d\n"
    assert isinstance(tree["m"], Symlink)
    assert "l" not in tree
    tree = base()
    tree.add("etc/hard", HardLink(target="etc/motd"))
    with pytest.raises(Unsupported, match="moving or copying the hard link /etc/hard"):
        run("mv etc/hard x", tree)
    run("cp etc/hard copy", tree)
    assert tree.text("copy") == "Welcome\n"


def test_installed_files() -> None:
    tree, _ = run(
        """umask 077; install etc/motd a; install -m 4711 -o bin -g wheel etc/motd b; install -D etc/motd x/y/z
        install -d d1/d2; install --directory --mode=1777 --owner=bin --group=42 d3; install etc/motd etc/a.conf d1
        install -m 600 /dev/null empty; mkdir -m 711 e; ln -s etc/motd l; install etc/a.conf l; install -d etc"""
    )
    assert facts(tree, "a") == ("755", 0, 0)
    assert facts(tree, "b") == ("4711", 1, 10)
    assert facts(tree, "x/y/z") == ("755", 0, 0)
    assert facts(tree, "x/y") == ("700", 0, 0)
    assert facts(tree, "d1/d2") == ("755", 0, 0)
    assert facts(tree, "d1") == ("700", 0, 0)
    assert facts(tree, "d3") == ("1777", 1, 42)
    assert tree.text("d1/a.conf") == "a b\nc d\n"
    assert tree.text("d1/motd") == "Welcome\n"
    assert (facts(tree, "empty"), tree.text("empty")) == (("600", 0, 0), "")
    assert facts(tree, "e") == ("711", 0, 0)
    assert said("mkdir -p d/motd; install etc/motd d; echo $?") == [
        "install: d/motd: a file cannot replace a directory",
        "1",
    ]
    assert tree["a"].mtime == EPOCH


@pytest.mark.parametrize(
    ("umask", "change", "mode"),
    [("077", "u+s", "4755"), ("027", "+w", "755"), ("000", "+w", "777"), ("077", "o=", "750"), ("022", "go-x", "744")],
)
def test_a_symbolic_mode_of_install_changes_755(umask: str, change: str, mode: str) -> None:
    tree, _ = run(f"umask {umask}; install -m {change} etc/motd f; install -d -m {change} d")
    assert facts(tree, "f")[0] == mode
    assert facts(tree, "d")[0] == mode


def test_new_files_obey_the_umask() -> None:
    tree, _ = run("umask 027; touch f; echo >g; mkdir d; mkdir -p p/q; mkdir -m 777 m; mkdir --mode=u=rwx,g=,o= n")
    modes = [facts(tree, name)[0] for name in ("f", "g", "d", "p", "p/q", "m", "n")]
    assert modes == ["640", "640", "750", "750", "750", "777", "700"]


def test_touch_changes_the_time_of_what_is_there() -> None:
    tree, _ = run("touch etc/motd; touch -c etc/a.conf; ln etc/b.conf h; touch h")
    assert [tree[f"etc/{name}"].mtime for name in ("motd", "a.conf", "b.conf")] == [EPOCH, EPOCH, 0]


# ---- modes and owners ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (0o000, "u+rwx", 0o700), (0o000, "g+rwx", 0o070), (0o000, "o+rwx", 0o007), (0o000, "a+rwx", 0o777),
        (0o000, "+rwx", 0o755), (0o777, "-rwx", 0o022), (0o777, "a-w", 0o555), (0o777, "go-rwx", 0o700),
        (0o777, "u=r", 0o477), (0o7777, "u=rwx", 0o3777), (0o7777, "g=rwx", 0o5777), (0o7777, "a=", 0),
        (0o644, "+X", 0o644), (0o744, "+X", 0o755), (0o644, "u+x,a+X", 0o755), (0o644, "u+x-r", 0o344),
        (0o755, "u+s", 0o4755), (0o755, "g+s", 0o2755), (0o755, "o+s", 0o755), (0o755, "+s", 0o6755),
        (0o755, "o+t", 0o755), (0o755, "a+t", 0o1755), (0o755, "+t", 0o1755), (0o1755, "-t", 0o755),
        (0o755, "0", 0), (0o755, "7777", 0o7777), (0o600, "=r", 0o444),
        (0o640, "+s", 0o6640), (0o640, "o+s", 0o640), (0o640, "+t", 0o1640), (0o640, "o+t", 0o640),
        (0o641, "a+X", 0o751), (0o604, "a+X", 0o604), (0o000, "u+w,g+r", 0o240),
        (0o755, "u-x+s", 0o4655), (0o070, "u=,g-w", 0o050),
    ],
)  # fmt: skip
def test_modes(before: int, change: str, after: int) -> None:
    tree = base()
    tree.change("etc/motd", mode=before)
    assert run(f"chmod {change} etc/motd", tree)[1] == Outcome(0)
    assert oct(tree["etc/motd"].mode) == oct(after)


def test_a_mode_has_64_characters() -> None:
    long = "u+x," * 15 + "g+wx"
    assert run(f"chmod {long} etc/motd")[1] == Outcome(0)
    assert said(f"chmod {long}r etc/motd") == [f"chmod: invalid mode '{long}…'"]


def test_only_one_mode_may_look_like_an_option() -> None:
    tree, _ = run("chmod 777 etc/motd; chmod -w -R etc/motd; chmod -R -x etc/motd")
    assert facts(tree, "etc/motd")[0] == "466"
    with pytest.raises(Unsupported, match="option 'w'"):
        run("chmod -x -w etc/motd")


@pytest.mark.parametrize("mode", ["", "8", "77777", "u", "+y", "x+r", "u+r,", "u+r,,g+r", "u r"])
def test_modes_that_are_none(mode: str) -> None:
    tree, outcome = run(f"chmod '{mode}' etc/motd")
    assert outcome == Outcome(1, (f"chmod: invalid mode '{mode}'",))
    assert facts(tree, "etc/motd") == ("644", 0, 0)


def test_whole_directories_change_but_not_their_links() -> None:
    tree, _ = run("mkdir -p d/e; touch d/e/f; ln -s ../etc/motd d/l; chmod -R 700 d; chmod -R a+X etc")
    assert [facts(tree, name)[0] for name in ("d", "d/e", "d/e/f", "d/l", "etc/motd")] == [
        "700", "700", "700", "777", "644",
    ]  # fmt: skip


def test_changing_the_owner_clears_set_id_bits_of_files() -> None:
    tree, _ = run("touch a b c; chmod 6755 a; chmod 2745 b; mkdir d; chmod 6755 d; chown bin a b d; chgrp 7 c")
    assert facts(tree, "a") == ("755", 1, 0)
    assert facts(tree, "b") == ("2745", 1, 0)
    assert facts(tree, "d") == ("6755", 1, 0)
    assert facts(tree, "c") == ("644", 0, 7)


def test_owners_of_links() -> None:
    tree, _ = run(
        """ln -s etc/motd l; ln -s etc/a.conf m; ln -s etc/b.conf n; mkdir d; ln -s ../etc d/l; ln -s d dd
        chown bin:wheel l; chown --no-dereference bin m; chgrp -h 42 n; chown --recursive 5: d; chown -R 6 dd"""
    )
    assert facts(tree, "etc/motd") == ("644", 1, 10)
    assert facts(tree, "l")[1:] == (0, 0)
    assert (facts(tree, "m")[1:], facts(tree, "etc/a.conf")[1:]) == ((1, 0), (0, 0))
    assert (facts(tree, "n")[1:], facts(tree, "etc/b.conf")[1:]) == ((0, 42), (0, 0))
    assert [facts(tree, name)[1] for name in ("d", "d/l", "dd", "etc")] == [5, 5, 6, 0]


def test_the_largest_number_of_an_owner() -> None:
    tree, outcome = run("chown 4294967294:0 etc/motd; chown 4294967295 etc/motd")
    assert facts(tree, "etc/motd")[1] == 4294967294
    assert outcome == Outcome(1, ("chown: unknown user 4294967295",))


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("echo -n; echo -ne 'a\\n'; echo -E 'b\\n'; echo -x; echo - a", ["a", "b\\n", "-x", "- a"]),
        ("echo -e '\\x41\\101\\0101\\q\\\\\\t.' | cat -", ["AAA\\q\\\t."]),
        ("printf 'a'; printf '\\n%s|%s\\n' x", ["a", "x|"]),
        ("printf '%d %i %u %x %o %c %b %s\\n' 10 0x10 3 255 8 xyz 'a\\tb' 'c\\td'", ["10 16 3 ff 10 x a\tb c\\td"]),
        ("printf '%s\\n' a b c; printf 'x\\n' a b; printf '%s %s\\n' a b c", ["a", "b", "c", "x", "a b", "c "]),
        ("printf '%-4s|%4s|%.2s|%04d|%+d\\n' a b cde 7 8", ["a   |   b|cd|0007|+8"]),
        ("echo -e '\\xg|\\x9|\\7|\\0|\\18|\\x414' | cat; echo -e 'a\\'", ["\\xg|\t|\a|\0|\x018|A4", "a\\"]),
        ("printf %.00000000000000002s abc; printf '%4s|%-4s|%.1s|\\n' a b cd", ["ab   a|b   |c|"]),
        ("echo a:b | cut -d: -f 1-9999999999999999999; echo a:b | cut -d: -f 9999999999999999999-; echo on",
         ["cut: invalid field '1-9999999999999999999'", "cut: invalid field '9999999999999999999-'", "on"]),
        ("echo a:b:c | cut -d: -f 2-2; echo a:b:c | cut -d: -f 3-2; echo a | cut -d: -f 2-", ["b", "", "a"]),
        ("head -n 1 etc/a.conf; head -2 etc/a.conf; head -n 3 etc/a.conf", ["a b", "a b", "c d", "a b", "c d"]),
        ("touch bin/x bin/y; chmod 001 bin/x; which x; which y; which bin; which bin/x etc", ["/bin/x", "bin/x"]),
        ("printf '%d|%s\\n' '' ''; printf '%%\\n'; printf '%5%|\\n'", ["0|", "%", "%|"]),
        ("printf %d x || echo $?; printf; echo $?", ["printf: invalid number 'x'", "1",
                                                  "printf: usage: printf FORMAT [ARGUMENT...]", "2"]),
        ("cat etc/b.conf /none etc/b.conf; echo $?", ["b", "cat: /none: No such file or directory", "b", "1"]),
        ("grep b etc/a.conf etc/b.conf; grep -h b etc/a.conf etc/b.conf",
         ["etc/a.conf:a b", "etc/b.conf:b", "a b", "b"]),
        ("grep -q b etc/b.conf; echo $?; grep -q z etc/b.conf; echo $?; grep z etc/b.conf /none; echo $?",
         ["0", "1", "grep: /none: No such file or directory", "2"]),
        ("grep b /none etc/b.conf; echo $?", ["grep: /none: No such file or directory", "etc/b.conf:b", "0"]),
        ("grep -x b etc/a.conf || grep -x b etc/b.conf; grep -vx b etc/b.conf; echo $?", ["b", "1"]),
        ("grep -c b etc/a.conf; grep -cv b etc/a.conf; grep -e a -h etc/a.conf", ["1", "1", "a b"]),
        ("printf 'ab\\nb a\\n' | grep -w a; printf 'a.b\\naxb\\n' | grep -F a.b; echo A | grep -i a",
         ["b a", "a.b", "A"]),
        ("printf 'x\\ny\\nz\\n' | grep 'x\nz'; printf 'x\\ny\\n' | egrep 'x|y'; echo 'x|y' | fgrep 'x|y'",
         ["x", "z", "x", "y", "x|y"]),
        ("grep", []),
        ("echo a:b:c:d | cut -d: -f 2-3; echo a:b:c:d | cut -d: -f 3-; echo a:b:c:d | cut -d: -f 1,4,9",
         ["b:c", "c:d", "a:d"]),
        ("printf 'a b\\nc\\n' | cut -d ' ' -f 2; printf 'a b\\nc\\n' | cut -s -d ' ' -f 2; "
         "printf 'a\\tb\\n' | cut -f 1",
         ["b", "c", "b", "a"]),
        ("echo a:b:c | cut -d: -f 3,1; cut -f 1 /none; echo $?", ["a:c", "cut: /none: No such file or directory", "1"]),
        ("printf '1\\n2\\n3' | head -n 2; printf '1\\n2' | head -n 2; echo; "
         "printf '1\\n2\\n' | head -1; head -n 0 etc/motd",
         ["1", "2", "1", "2", "1"]),
        ("for i in 1 2 3 4 5 6 7 8 9 10 11; do echo $i; done | head | { while read i; do x=$i; done; echo $x; }",
         ["10"]),
        ("basename /a/b/; basename / ; basename b.c c; basename .c .c; basename a", ["b", "/", "b.", ".c", "a"]),
        ("dirname /a/b; dirname a/b//c; dirname / ; dirname //a; dirname a//", ["/a", "a/b", "/", "/", "."]),
        ("readlink bin/sh; readlink -f var/run/x; readlink none || echo $?; readlink '' || echo $?; "
         "readlink || echo $?",
         ["/bin/busybox", "/run/x", "1", "1", "1"]),
        ("which sh none; echo $?; which sh; echo $?; which; echo $?; which /bin/busybox /etc/motd",
         ["/bin/sh", "1", "/bin/sh", "0", "1", "/bin/busybox"]),
        ("true; echo $?; false; echo $?; sync; echo $?; sleep 9; echo $?", ["0", "1", "0", "0"]),
    ],
)  # fmt: skip
def test_text(text: str, lines: list[str]) -> None:
    assert said(text) == lines


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grep -o a etc/motd", "grep -o"),
        ("grep '\\(a\\)\\1' etc/motd", "the regular expression '\\\\(a\\\\)\\\\1': escape \\1"),
        ("cut -d : etc/motd", "cut without a list of fields"),
        ("cut -f a etc/motd", "cut without a list of fields"),
        ("cut -d ab -f 1 etc/motd", "cut with the delimiter 'ab'"),
        ("head -n x etc/motd", "this form of head"),
        ("head etc/motd etc/motd", "this form of head"),
        ("printf %4097d 1", "printf with a width of 4097"),
        ("printf %.99999s 1", "printf with a width of 99999"),
        ("cat -n etc/motd", "option 'n': option -n not recognized"),
        ("mkdir -m", "option 'm': option -m requires argument"),
        ("mkdir --nope x", "option 'nope': option --nope not recognized"),
        ("case a in [[:x:]]) ;; esac", "the pattern '[[:x:]]': character class 'x'"),
    ],
)
def test_text_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        run(text)
    assert refusal.value.construct == reason


def test_a_width_may_have_4096_characters() -> None:
    assert said("x=$(printf %4096d 1); echo ${#x}") == ["4096"]


# ---- find ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("-type f -perm 644", "t/f"), ("-type f -perm -100", "t/sgid t/suid"), ("-perm /4000", "t/suid"),
        ("-perm +6000", "t/sgid t/suid"), ("-type f -perm /000", "t/empty t/f t/sgid t/suid"),
        ("-perm -1777", "t/sticky"), ("-type f -perm /001", "t/sgid t/suid"), ("-type f -perm 0644", "t/f"),
        ("-type f -perm -644", "t/f t/sgid t/suid"), ("-type f -perm +020", ""),
        ("-type d", "t t/d t/sticky"), ("-type l", "t/dangling t/l t/loop"), ("-type b", "t/b"), ("-type c", "t/c"),
        ("-type p", "t/p"), ("-type s", ""), ("-empty", "t/d t/empty t/sticky"), ("-name f", "t/f"),
        ("-iname F", "t/f"), ("-name F", ""), ("-path 't/s*d'", "t/sgid t/suid"), ("-ipath 'T/S*D'", "t/sgid t/suid"),
        ("-path 'T/f'", ""), ("-path f", ""), ("-maxdepth 0", "t"), ("-mindepth 1 -maxdepth 1 -type d", "t/d t/sticky"),
        ("-name f -o -name l", "t/f t/l"), ("-type f ! -name 's*'", "t/empty t/f"),
        ("'(' -name f -o -name l ')' -type l", "t/l"), ("-name f -o -name l -type f", "t/f"),
        ("-user bin", ""), ("-user root -name f", "t/f"), ("-group 0 -name f", "t/f"), ("-user 1", ""),
        ("-type d -name d -prune -o -type d", "t t/d t/sticky"), ("-name f -print -name g -print", "t/f"),
        ("-not -type d -a -name '?'", "t/b t/c t/f t/l t/p"),
    ],
)  # fmt: skip
def test_find(expression: str, lines: str) -> None:
    assert list(run(f"find t {expression}", files())[1].messages) == lines.split()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("find etc -name '*.conf' -exec echo {} + ; find etc -name '*.conf' -exec echo '<{}>' ';'",
         ["etc/a.conf etc/b.conf", "<etc/a.conf>", "<etc/b.conf>"]),
        ("find etc/motd -exec false {} ';' -o -print; echo $?", ["etc/motd", "0"]),
        ("find etc/motd -exec false {} +; echo $?", ["1"]),
        ("find etc -name z -exec false {} +; echo $?", ["0"]),
        ("find none etc/motd; echo $?", ["find: none: No such file or directory", "etc/motd", "1"]),
        ("cd var; find; find run; find run/; find -H run -maxdepth 0; find -L . -name run",
         [".", "./run", "run", "run/", "run", "./run"]),
        ("mkdir -p d/e; touch d/e/f; find d -depth; find d -delete; [ -e d ] || echo gone",
         ["d/e/f", "d/e", "d", "gone"]),
        ("mkdir -p d/e; touch d/e/f; find d -name e -delete; echo $?; ls d",
         ["find: d/e: Directory not empty", "0", "e"]),
        ("mkdir -p d/e; find d -name e -exec rmdir {} ';'; echo $?", ["find: d/e: No such file or directory", "1"]),
        ("mkdir d; ln -s /etc/motd d/l; ln -s /etc d/m; find d -type l -delete; find d etc/motd",
         ["d", "etc/motd"]),
        ("find etc/motd -print0 | { read x; echo $x; }", ["etc/motd\0"]),
        ("find etc/motd -print -print -name x -print; find etc/motd -exec true {} + -print", ["etc/motd"] * 3),
        ("find etc/motd -print0 -name motd -print | { read x; echo $x; }", ["etc/motd\0etc/motd"]),
        ("cd tmp; touch a; find a -delete -print; mkdir -p d/e; find d -name d -delete -o -print",
         ["a", "d/e", "find: d: Directory not empty", "d"]),
        ("cd tmp; mkdir a; find . -delete -print; cd /; [ -d tmp ] && ls tmp", ["./a", "."]),
        ("ln -s etc l; ln -s none k; mkdir d; ln -s ../etc d/m; find -H l k d -type l; find -L l k d -type l",
         ["k", "d/m", "k"]),
        ("ln -s etc l; find l -follow -name motd; find l -name motd; find l/ -name motd", ["l/motd", "l/motd"]),
        ("ln -s motd etc/l; find etc -name l -type f; find etc -follow -name l -type f", ["etc/l"]),
        ("find etc/motd -exec ';'", ["find: -exec requires an argument"]),
        ("find etc/motd -exec echo {} + -exec echo b {} ';'", ["b etc/motd", "etc/motd"]),
        ("mkdir d; touch d/b d/a; find d -mindepth 1; find d -maxdepth 0", ["d/a", "d/b", "d"]),
        ("mkdir -p d/e/f; find d -mindepth 2 -maxdepth 2; find d -depth -maxdepth 1; find d -prune",
         ["d/e/f", "d/e", "d", "d"]),
        ("find / -maxdepth 0; find /etc/ -name motd", ["/", "/etc/motd"]),
        ("mkdir -p d/x d/y; find d -name x -prune -o -print", ["d", "d/y"]),
        ("mkdir d; touch d/f; ln d/f d/h; find d -type f; : >d/f; find d -type f -empty",
         ["d/f", "d/h", "d/f", "d/h"]),
        ("find etc '(' -name motd; echo $?", ["find: unpaired '('", "1"]),
        ("find etc -name motd ')'; echo $?", ["find: unpaired ')'", "1"]),
        ("find etc -name; echo $?", ["find: -name requires an argument", "1"]),
        ("find etc -type x; find etc -user none; find etc -maxdepth x; find etc -exec echo",
         ["find: invalid argument 'x' to '-type'", "find: unknown user none", "find: invalid number 'x'",
          "find: -exec requires an argument"]),
    ],
)  # fmt: skip
def test_find_and_what_it_does(text: str, lines: list[str]) -> None:
    assert said(text) == lines


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("find etc -newer x", "find -newer"),
        ("find etc !", "find"),
        ("find etc -perm u+x", "find -perm u+x"),
        ("find etc -maxdepth 1 -o -name x", "find with an option such as -maxdepth alone on one side of -o"),
        ("mkdir d; ln -s . d/l; find -L d", "find -L in a circle of links: d/l"),
        ("find dev", "what is in /dev, which only a running system knows"),
    ],
)
def test_find_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        run(text)
    assert refusal.value.construct == reason


def test_find_by_owner_and_group() -> None:
    text = "mkdir d; touch d/a d/b; chown bin d/a; chgrp wheel d/b"
    text += "; find d -user bin; find d -group wheel; find d -group 10"
    assert said(text) == ["d/a", "d/b", "d/b"]
    assert said("find etc -user wheel; find etc -group root -name motd") == ["find: unknown user wheel", "etc/motd"]
    assert said("find etc -group shadow; find etc -group none; find etc -group 42; find etc -user 0 -name motd") == [
        "find: unknown group none",
        "etc/motd",
    ]


def test_find_goes_100_levels_deep() -> None:
    tree = base()
    tree.mkdir("/".join("d" * 100))
    assert len(run("find d", tree)[1].messages) == 100
    tree.mkdir("/".join("d" * 101))
    with pytest.raises(Unsupported, match="find deeper than 100 levels"):
        run("find d", tree)


# ---- accounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("id; id root; id -u; id -g; id -un bin; id -gn bin", ["uid=0(root)", "uid=0(root)", "0", "0", "bin", "bin"]),
        ("id -G root; id -Gn root; id none; echo $?", ["0 10", "root wheel", "id: unknown user none", "1"]),
        ("getent passwd bin 0; echo $?; getent group nogroup; getent passwd none; echo $?",
         ["bin:x:1:1:bin:/bin:/sbin/nologin", "root:x:0:0:root:/root:/bin/sh", "0", "nogroup:x:65533:", "2"]),
        ("getent passwd none bin; echo $?", ["bin:x:1:1:bin:/bin:/sbin/nologin", "2"]),
        ("getent passwd; echo $?", ["root:x:0:0:root:/root:/bin/sh", "bin:x:1:1:bin:/bin:/sbin/nologin", "0"]),
        ("passwd -l bin; passwd -u root; passwd -l none",
         ["passwd: password for bin is already locked", "passwd: password for root is already unlocked",
          "passwd: unknown user none"]),
        ("addgroup; addgroup a b c; adduser -D; adduser -D a b",
         ["addgroup: usage: addgroup [-g GID] [-S] [USER] GROUP"] * 2
         + ["adduser: usage: adduser [OPTIONS] USER [GROUP]"] * 2),
        ("addgroup -g 700 a; addgroup --system --gid 701 b; addgroup c; getent group a b c; addgroup a",
         ["a:x:700:", "b:x:701:", "c:x:1000:", "addgroup: group 'a' in use"]),
        ("adduser -D u; id -u u; adduser -S -u 300 v; id -u v; getent passwd v", ["1000", "300", None]),
        ("add-shell /a /b /a; add-shell /b /c; cat etc/shells; add-shell; echo $?", ["/a", "/b", "/c", "0"]),
    ],
)  # fmt: skip
def test_accounts(text: str, lines: list[str | None]) -> None:
    found = said(text)
    assert len(found) == len(lines)
    assert [line for line, expected in zip(found, lines, strict=True) if expected is not None] == [
        line for line in lines if line is not None
    ]


def test_passwords() -> None:
    tree, _ = run(
        "passwd -u bin; passwd -l root; passwd -d bin; passwd -l bin; echo 'root:$6$x' | chpasswd --encrypted"
    )
    assert tree.text("etc/shadow").splitlines() == ["root:$6$x:20777:0:::::", "bin:!:20777:0:::::"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("adduser u", "adduser that asks for a password"),
        ("passwd bin", "passwd that asks for a password"),
        ("passwd -l", "passwd that asks for a password"),
        ("passwd -l -u bin", "passwd that asks for a password"),
        ("passwd -l bin root", "passwd that asks for a password"),
        ("chpasswd -e x", "chpasswd with a password in plain text (its hash would be random)"),
        ("chpasswd", "chpasswd with a password in plain text (its hash would be random)"),
        ("getent", "getent "),
        ("getent hosts x", "getent hosts x"),
        ("id -un -G bin", "id -un -G bin"),
    ],
)
def test_accounts_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        run(text)
    assert refusal.value.construct == reason


def test_a_users_home_is_made_or_not() -> None:
    tree, _ = run(
        """mkdir -p etc/skel skel; echo a >etc/skel/.profile; echo b >skel/.x
        adduser -D u; adduser -D --skel /skel v; adduser -D -H w; adduser -S s
        adduser --disabled-password --uid 77 x"""
    )
    assert tree.text("home/u/.profile") == "a\n"
    assert tree.text("home/v/.x") == "b\n"
    assert "home/w" not in tree
    assert tree["home/x"].uid == 77


# ---- the state of a shell --------------------------------------------------------------------------------------------


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_the_directory_that_a_script_made_is_a_directory() -> None:
    assert isinstance(run("mkdir d")[0]["d"], Directory)


def test_accounts_have_the_time_of_the_build() -> None:
    names = ("passwd", "group", "shadow")
    for text in ("addgroup g", "addgroup bin wheel", "adduser bin wheel", "adduser -S -D -H u", "passwd -u bin"):
        tree, outcome = run(text)
        assert outcome == Outcome(0)
        assert EPOCH in {tree[f"etc/{name}"].mtime for name in names}
        assert {tree[f"etc/{name}"].mtime for name in names} <= {0, EPOCH}
