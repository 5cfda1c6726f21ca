"""Records of a Tree: whatever changes shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from imgkit.rootfs.digest import differences, fingerprint, records
from imgkit.tree import Device, Directory, HardLink, Symlink, Tree


def sample() -> Tree:
    tree = Tree()
    tree.write("etc/passwd", "root")
    tree.symlink("bin/sh", "/bin/busybox")
    tree.add("etc/hard", HardLink(target="etc/passwd"))
    tree.mkdir("dev")
    tree.add("dev/null", Device(kind="c", major=1, minor=3))
    return tree


def test_equal_trees_have_equal_records_whatever_their_times() -> None:
    other = sample()
    other.write("etc/passwd", "root", mtime=99)
    assert differences(records(sample()), records(other)) == []
    assert fingerprint(records(sample())) == fingerprint(records(other))


def test_the_records_of_a_hard_link_are_its_files_with_the_path_of_it() -> None:
    tree = sample()
    tree.change("etc/passwd", mode=0o4711, uid=5)
    facts = records(tree)
    assert facts["/etc/hard"] == {**facts["/etc/passwd"], "link": "/etc/passwd"}
    assert facts["/etc/passwd"] == {
        "type": "file",
        "mode": "4711",
        "uid": 5,
        "gid": 0,
        "size": 4,
        "sha256": hashlib.sha256(b"root").hexdigest(),
    }
    assert facts["/dev/null"] == {"type": "device", "mode": "0600", "uid": 0, "gid": 0, "device": "c 1:3"}


def test_a_large_file_has_the_hash_of_all_of_it() -> None:
    tree, data = Tree(), bytes(range(256)) * 9000
    tree.write("x", data)
    assert records(tree)["/x"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_differences_are_sorted_and_name_all_that_differs() -> None:
    tree = sample()
    tree.change("etc/passwd", mode=0o600, uid=7)
    tree.remove("bin/sh")
    tree.write("a", "")
    assert differences(records(sample()), records(tree)) == [
        "/a: not in the manifest",
        "/bin/sh: missing",
        "/etc/hard: mode is 0600, should be 0644, uid is 7, should be 0",
        "/etc/passwd: mode is 0600, should be 0644, uid is 7, should be 0",
    ]


CHANGES: dict[str, Callable[[Tree], None]] = {
    "/etc/passwd: sha256 is": lambda tree: tree.write("etc/passwd", "toor"),
    "/etc/passwd: mode is 0600, should be 0644": lambda tree: tree.change("etc/passwd", mode=0o600),
    "/etc/passwd: uid is 7, should be 0": lambda tree: tree.change("etc/passwd", uid=7),
    "/dev/null: gid is 7, should be 0": lambda tree: tree.change("dev/null", gid=7),
    "/bin/sh: target is dash, should be /bin/busybox": lambda tree: tree.symlink("bin/sh", "dash"),
    "/dev/null: device is c 1:5, should be c 1:3": lambda tree: tree.add(
        "dev/null", Device(kind="c", major=1, minor=5)
    ),
    "/bin/sh: missing": lambda tree: tree.remove("bin/sh"),
    "/new: not in the manifest": lambda tree: tree.add("new", Symlink(target="x")),
    "/etc: xattrs is {'user.a': '01'}, should be None": lambda tree: tree.add(
        "etc", Directory(xattrs={"user.a": b"\x01"})
    ),
}


@pytest.mark.parametrize(("line", "change"), CHANGES.items())
def test_each_change_is_named(line: str, change: Callable[[Tree], None]) -> None:
    tree = sample()
    change(tree)
    lines = differences(records(sample()), records(tree))
    assert any(found_line.startswith(line) for found_line in lines), lines
    assert fingerprint(records(sample())) != fingerprint(records(tree))
