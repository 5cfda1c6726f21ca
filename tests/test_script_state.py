"""The files that package scripts see: paths, limits of names, volatile folders, inherited groups."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Unsupported
from imgkit.rootfs.scripts.state import Failed, ShellState
from tests.test_scripts import base, facts, run, said


def test_what_a_running_system_has_is_not_used() -> None:
    for text in ("echo x >/dev/tty", "cat /proc/mounts", "[ -e /sys/firmware/efi ]", "touch dev/x"):
        with pytest.raises(Unsupported, match="which only a running system has"):
            run(text)
    assert said("[ -d /dev ] && [ -d /proc ] || echo no") == ["no"]


def test_names_have_the_limits_of_linux() -> None:
    state = ShellState(base())
    assert state.path("x" * 255) == "x" * 255
    assert state.path(f"/{'x' * 255}/") == "x" * 255
    long = "/".join(["x" * 99] * 41)[:4095]
    assert len(state.path(long)) == 4095
    for text in ("x" * 256, "ü" * 128, f"{long}y"):
        with pytest.raises(Exception, match="File name too long"):
            state.path(text)


def test_a_directory_with_set_group_id_hands_its_group_on() -> None:
    tree, _ = run("install -d -m 2755 -g wheel d; touch d/f; mkdir d/e; ln -s x d/l; cp etc/motd d; mkdir -p d/e/g")
    assert [facts(tree, f"d/{name}")[2] for name in ("f", "e", "l", "motd", "e/g")] == [10] * 5
    assert facts(tree, "d/e") == ("2755", 0, 10)
    assert facts(tree, "d/f")[0] == "644"


def test_only_set_group_id_hands_the_group_on() -> None:
    tree, _ = run("umask 027; install -d -m 755 -g wheel c; touch c/f; install -d -m 2755 -g wheel d; mkdir d/e")
    assert facts(tree, "c/f") == ("640", 0, 0)
    assert facts(tree, "d/e") == ("2750", 0, 10)


def test_without_a_date_files_are_from_1970() -> None:
    tree = base()
    ShellState(tree).write("f", "x")
    assert tree["f"].mtime == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("cat ''; echo $?", ["cat: '': No such file or directory", "1"]),
        ("touch ''; rm -f ''", ["touch: '': No such file or directory", "rm: '': No such file or directory"]),
        ("ls ''; echo x >''; echo $?", ["ls: '': No such file or directory", "'': No such file or directory", "1"]),
        ("ln -s a ''; [ -e '' ]; echo $?", ["ln: '': No such file or directory", "1"]),
        ("cat etc; cat none", ["cat: etc: not a regular file", "cat: none: No such file or directory"]),
        ("ls etc/motd/; ls -d etc/", ["ls: etc/motd/: Not a directory", "etc/"]),
    ],
)
def test_paths_that_lead_nowhere(text: str, lines: list[str]) -> None:
    assert said(text) == lines


def test_the_working_directory_counts_for_the_length_of_a_path() -> None:
    state = ShellState(base(), cwd="/" + "/".join(["d" * 99] * 41)[:4094])
    long = "/".join(["x" * 99] * 41)[:4095]
    assert len(f"{state.cwd}/{long}") == 2 * 4095 + 1
    with pytest.raises(Failed, match=r"^x{80}…: File name too long$"):
        state.path(long)
    state.cwd = state.cwd[:-1]
    assert len(state.path(long)) == 2 * 4095 - 1
