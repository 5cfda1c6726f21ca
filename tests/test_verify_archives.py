"""Archives of an image's files, compared with the records of a manifest."""

from __future__ import annotations

import hashlib
import tarfile
import time
from typing import Any

import pytest

from imgkit.engines.engineerrors import LimitError
from imgkit.rootfs.digest import NodeRecord, records
from imgkit.tree import Device, File, HardLink, Inline, Tree
from imgkit.verification import contents as contents_module
from imgkit.verification.contents import Contents, compare_archive, with_one_leader
from tests.verifying import tar_of

FOREVER = float("inf")


def tree_of_all_kinds() -> Tree:
    tree = Tree()
    tree.write("a", b"text", uid=5, gid=6, mode=0o640)
    tree.add("b", HardLink(target="a"))
    tree.add("c", HardLink(target="a"))
    tree.symlink("link", "/etc/x")
    tree.mkdir("dir", mode=0o1777)
    tree.add("null", Device(kind="c", major=1, minor=3, mode=0o666))
    tree.add("disk", Device(kind="b", major=8, minor=17, mode=0o660))
    tree.add("pipe", Device(kind="p"))
    tree.add("x", File(content=Inline(b"x"), xattrs={"user.b": b"2", "user.a": b"\1"}))
    return tree


def test_an_archive_of_all_kinds_is_as_its_records() -> None:
    tree = tree_of_all_kinds()
    assert compare_archive([tar_of(tree)], records(tree), FOREVER) == Contents((), len(tree))


def test_the_records_of_an_archive_are_those_of_its_members() -> None:
    """Compared with nothing else than the kind, every path differs in what the manifest would have."""
    tree = tree_of_all_kinds()
    wanted = records(tree)
    kinds = {path: {"type": record["type"]} for path, record in wanted.items()}
    lines = compare_archive([tar_of(tree)], kinds, FOREVER).lines
    hashed = hashlib.sha256(b"text").hexdigest()
    assert f"/a: gid is 6, should be None, mode is 0640, should be None, sha256 is {hashed}" in lines[1]
    assert "/b: gid is 6" in lines[2]
    assert "link is /a, should be None" in lines[2]
    assert lines[5] == (
        "/disk: device is b 8:17, should be None, gid is 0, should be None, mode is 0660, should be None,"
        " uid is 0, should be None"
    )
    assert [line.partition(":")[0] for line in lines] == sorted(wanted)
    assert "xattrs is {'user.a': '01', 'user.b': '32'}, should be None" in lines[-1]


def member(name: str, **more: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("name", "path"), [("./a/b", "/a/b"), ("a/b/", "/a/b"), (".", "/"), ("./", "/"), ("/a", "/a"), ("./.", "/")]
)
def test_the_paths_of_members(name: str, path: str) -> None:
    assert compare_archive([member(name)], {}, FOREVER).lines == (f"{path}: not in the manifest",)


def test_a_link_to_what_was_not_archived_is_a_file_of_its_own() -> None:
    data = member("./b", type=tarfile.LNKTYPE, linkname="./a")
    assert compare_archive([data], {"/b": {"type": "file", "link": "/a"}}, FOREVER).lines == ()
    other = member("./b", type=tarfile.LNKTYPE, linkname="./Z")
    assert compare_archive([other], {"/b": {"type": "file", "link": "/a"}}, FOREVER).lines == (
        "/b: link is /Z, should be /a",
    )


def test_unexpected_paths_are_counted_from_some_number_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "_MOST_UNEXPECTED", 2)
    data = b"".join(member(f"./{name}") for name in "abcd") + member("./z", mode=0o600)
    known: NodeRecord = {"type": "file", "mode": "0600", "uid": 0, "gid": 0, "size": 0}
    expected = {"/z": {**known, "sha256": hashlib.sha256(b"").hexdigest()}}
    assert compare_archive([data], expected, FOREVER) == Contents(
        ("/a: not in the manifest", "/b: not in the manifest"), 5, 2
    )
    assert compare_archive([data[:1024]], {}, FOREVER).more == 0


def test_an_archive_that_is_damaged_says_why() -> None:
    data = member("./a", size=1000)
    found = compare_archive([data], {"/b": {"type": "file"}}, FOREVER)
    assert found.lines[-1] == "/b: missing"
    assert found.fault.startswith("the archive of its files ")
    assert found.fault != "the archive of its files "


def test_comparing_files_has_a_deadline() -> None:
    with pytest.raises(LimitError) as caught:
        compare_archive([member("./a")], {}, time.monotonic() - 1)
    assert caught.value.message == "the files of the image could not be compared in time"
    assert caught.value.hint == "--timeout gives it more"


def test_any_name_of_a_file_can_be_its_first() -> None:
    facts: NodeRecord = {"type": "file", "size": 1}
    linked = {"/z": facts, "/y": {**facts, "link": "/z"}, "/k": {**facts, "link": "/z"}, "/other": facts}
    assert with_one_leader(linked) == {
        "/z": {**facts, "link": "/k"}, "/y": {**facts, "link": "/k"}, "/k": facts, "/other": facts,
    }  # fmt: skip
    unknown = {"/b": {**facts, "link": "/a"}, "/c": {**facts, "link": "/a"}}
    assert with_one_leader(unknown) == unknown
    odd = {"/a": {**facts, "link": 5}}
    assert with_one_leader(odd) == odd
