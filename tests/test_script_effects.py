"""A whole run of a package script: its arguments, interpreter, messages and effects."""

from __future__ import annotations

import pytest

from imgkit.errors import InputError
from imgkit.rootfs.scripts.effects import Hooks, Outcome, Pending, Unsupported, attempt, run_script
from tests.test_scripts import base, run, said


def test_an_attempt_passes_everything_on() -> None:
    text = "#!/bin/sh -x\necho $1 $2 $APK_SCRIPT $PWD; mkinitfs -o /boot/i 6.1; touch f\n"
    calls: list[tuple[str, str]] = []
    hooks = Hooks(mkinitfs=lambda _, release, path: calls.append((release, path)))
    tree = base()
    result = attempt(tree, text, package="p", kind="trigger", args=["a", "b c"], epoch=7, hooks=hooks)
    assert result == Outcome(0, ("a b c trigger /",))
    assert calls == [("6.1", "boot/i")]
    assert tree["f"].mtime == 7
    assert attempt(tree, text, package="p", kind="trigger") == Pending(
        "p", "trigger", text, (), "p.trigger, line 2: mkinitfs"
    )


@pytest.mark.parametrize(
    ("first", "lines"),
    [
        ("#!/bin/sh -e", ["a"]),
        ("#!/bin/sh -eu", ["a"]),
        ("#! /bin/ash -x", ["a", "b"]),
        ("#!/bin/busybox  ash", ["a", "b"]),
        ("#!/bin/dash", ["a", "b"]),
        ("#!/usr/bin/dash -e", ["a"]),
    ],
)
def test_options_of_the_interpreter(first: str, lines: list[str]) -> None:
    text = f"{first}\necho a; false; echo b\n"
    assert list(run_script(base(), text, package="p", kind="k").messages) == lines


def test_the_last_200_lines_are_kept() -> None:
    digits = "0 1 2 3 4 5 6 7 8 9"
    count = f"for i in 1 2; do for j in {digits}; do for k in {digits}; do echo $i$j$k; done; done; done"
    assert said(f"echo first; {count}")[0] == "100"
    assert len(said(f"echo first; {count}")) == 200


def test_without_a_date_a_script_is_run_in_1970() -> None:
    tree = base()
    text = "#!/bin/sh\ntouch f; adduser -S -D -H u\n"
    assert attempt(tree, text, package="p", kind="k") == Outcome(0)
    assert tree["f"].mtime == 0
    assert tree.text("etc/shadow").splitlines()[-1] == "u:!:0:0:99999:7:::"
    assert run_script(tree, "#!/bin/sh\ntouch g\n", package="p", kind="k") == Outcome(0)
    assert tree["g"].mtime == 0


def test_a_script_that_is_too_long_is_not_read() -> None:
    text = "#!/bin/sh\n" + "#" * (2 << 20)
    with pytest.raises(InputError, match=r"^p\.k, line 0: the script needs more than 256 MiB of memory$"):
        run_script(base(), text, package="p", kind="k")


def test_a_file_that_sources_itself_is_refused() -> None:
    tree = base()
    tree.write("lib.sh", "\n. /lib.sh\n")
    with pytest.raises(Unsupported, match=r"^demo\.post-install, line .*nesting without end$"):
        run("true; . /lib.sh", tree)


def test_what_a_script_sources_may_return() -> None:
    tree = base()
    tree.write("lib.sh", "x=1; false\n")
    assert run(". /lib.sh; echo $? $x; . /none; echo $?", tree)[1].messages == (
        "1 1",
        ".: /none: No such file or directory",
        "1",
    )
