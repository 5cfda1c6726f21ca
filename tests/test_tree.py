"""The Tree: paths, links, invariants, and the archive it becomes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.tree import (
    MAX_READ,
    MAX_TEXT,
    Device,
    Directory,
    File,
    HardLink,
    Inline,
    Slice,
    Symlink,
    Tree,
    TreeError,
    check_path,
    parent,
    xattrs_of,
)


def tree_of(*paths: str) -> Tree:
    """Paths ending in ``/`` are directories, ``a -> b`` is a link, all else a file that holds its own name."""
    tree = Tree()
    for path in paths:
        name, arrow, target = path.partition(" -> ")
        if arrow:
            tree.symlink(name, target)
        elif path.endswith("/"):
            tree.mkdir(path[:-1])
        else:
            tree.write(path, path)
    return tree


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../b", "a//b", "a/", "./a", "a/.", "a\nb", "a\x7f", "\0"])
def test_improper_paths_are_refused(path: str) -> None:
    with pytest.raises(TreeError):
        check_path(path)
    with pytest.raises(TreeError):
        Tree().add(path, Directory())


def test_parents_come_first_and_order_is_by_bytes_of_parts() -> None:
    tree = tree_of("b/x", "a-b", "a/c", "a/b/c")
    assert list(tree) == ["", "a", "a/b", "a/b/c", "a/c", "a-b", "b", "b/x"]


def test_a_node_needs_a_directory_above_it() -> None:
    tree = tree_of("file", "link -> file")
    for path in ("no/where", "file/x", "link/x"):
        with pytest.raises(TreeError, match="parent"):
            tree.add(path, Directory())


def test_a_directory_and_something_else_do_not_replace_each_other() -> None:
    tree = tree_of("d/x", "f")
    with pytest.raises(TreeError, match="cannot replace"):
        tree.add("d", Symlink(target="f"))
    with pytest.raises(TreeError, match="cannot replace"):
        tree.add("f", Directory())


def test_a_directory_over_a_directory_keeps_what_is_in_it() -> None:
    tree = tree_of("d/x")
    tree.add("d", Directory(mode=0o700))
    assert tree["d"].mode == 0o700
    assert tree.children("d") == ["d/x"]


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("usr/bin/sh", "bin/busybox"),
        ("abs/x", "data/x"),
        ("up/x", "x"),
        ("dangling", "nowhere/at/all"),
        ("/etc/./passwd", "etc/passwd"),
        ("etc/../../../etc", "etc"),
        ("deep/b", "data/b"),
    ],
)
def test_links_are_resolved_inside_the_tree(path: str, where: str) -> None:
    tree = tree_of(
        "bin/busybox", "bin/sh -> /bin/busybox", "usr/bin -> ../bin", "abs -> /data", "data/x", "etc/passwd",
        "up -> ../../../..", "dangling -> nowhere/at/all", "deep -> abs/../abs",
    )  # fmt: skip
    assert tree.resolve(path) == where


def test_a_link_in_the_last_place_is_left_alone_when_asked() -> None:
    tree = tree_of("a -> b", "b -> c", "c")
    assert tree.resolve("a", follow=False) == "a"
    assert tree.resolve("a") == "c"


def test_circles_end() -> None:
    tree = tree_of("a -> b", "b -> a")
    with pytest.raises(TreeError, match="too many"):
        tree.resolve("a")


def test_hard_links_share_content_and_attributes() -> None:
    tree = tree_of("f")
    tree.add("g", HardLink(target="f"))
    tree.change("g", mode=0o600, uid=7)
    assert (tree["f"].mode, tree["f"].uid) == (0o600, 7)
    tree.write("g", "new")
    assert tree.read("f") == b"new"
    assert isinstance(tree["g"], HardLink)


def test_a_file_outlives_its_first_name() -> None:
    tree = tree_of("f")
    for name in ("h", "g"):
        tree.add(name, HardLink(target="f"))
    tree.remove("f")
    assert tree.read("g") == b"f"
    assert isinstance(tree["g"], File)
    assert tree["h"] == HardLink(target="g")


def test_a_new_file_in_place_of_one_with_other_names_leaves_those_alone() -> None:
    tree = tree_of("f", "other")
    tree.add("g", HardLink(target="f"))
    tree.symlink("f", "other")
    assert tree.read("g") == b"f"


def test_hard_links_to_nothing_are_refused() -> None:
    with pytest.raises(TreeError, match="not a regular file"):
        Tree().add("g", HardLink(target="f"))


def test_only_empty_directories_are_removed() -> None:
    tree = tree_of("d/x")
    with pytest.raises(TreeError, match="not empty"):
        tree.remove("d")
    tree.remove("d/x")
    tree.remove("d")
    assert list(tree) == [""]
    with pytest.raises(KeyError):
        tree.remove("d")
    with pytest.raises(TreeError):
        tree.remove("")


def test_writing_follows_links_and_keeps_owner_and_mode() -> None:
    tree = tree_of("etc/real", "etc/alias -> real")
    tree.change("etc/real", mode=0o640, uid=3, gid=4)
    tree.write("etc/alias", "text")
    node = tree["etc/real"]
    assert (node.mode, node.uid, node.gid, tree.text("etc/real")) == (0o640, 3, 4, "text")


def test_reading_what_is_no_file() -> None:
    tree = tree_of("d/")
    with pytest.raises(TreeError, match="no such file"):
        tree.read("x")
    with pytest.raises(TreeError, match="not a regular file"):
        tree.read("d")


def test_a_slice_is_a_window_and_says_when_its_file_shrank(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.write_bytes(b"0123456789")
    content = Slice(path, 2, 5)
    assert content.read() == b"23456"
    with content.open() as stream:
        assert (stream.read(3), stream.read(9), stream.read()) == (b"234", b"56", b"")
    assert stream.closed
    with pytest.raises(ValueError, match="closed"):
        stream.read()
    path.write_bytes(b"0123")
    with pytest.raises(EOFError, match=r"spool: file is shorter than it was$"):
        content.read()


def test_the_archive_holds_everything(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"--content--")
    tree = Tree()
    tree.add("", Directory(mode=0o711))
    tree.mkdir("a/b")
    tree.add("a/z", File(content=Slice(tmp_path / "spool", 2, 7), mode=0o4755, uid=100000, gid=5, mtime=7,
                         xattrs={"security.capability": b"\x01\x00\xff"}))  # fmt: skip
    tree.add("a/hard", HardLink(target="a/z"))
    tree.add("a/link", Symlink(target="/ü"))
    tree.add("a/null", Device(kind="c", major=1, minor=3, mode=0o666))
    tree.add("a/" + "long" * 60, File(content=Inline(b"")))
    sink = io.BytesIO()
    tree.write_tar(sink)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as archive:
        members = {member.name: member for member in archive}
        assert members["."].mode == 0o711
        file = members["./a/z"]
        assert (file.mode, file.uid, file.gid, file.mtime, file.size) == (0o4755, 100000, 5, 7, 7)
        stream = archive.extractfile(file)
        assert stream is not None
        assert stream.read() == b"content"
        assert file.pax_headers["SCHILY.xattr.security.capability"].encode(errors="surrogateescape") == b"\x01\x00\xff"
        assert members["./a/link"].linkname == "/ü"
        assert members["./a/hard"].linkname == "./a/z"
        assert (members["./a/null"].devmajor, members["./a/null"].devminor) == (1, 3)
        assert "./a/" + "long" * 60 in members


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=4).map("/".join)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("dir"), PATHS, TARGETS),
        st.tuples(st.just("file"), PATHS, TARGETS),
        st.tuples(st.just("link"), PATHS, st.tuples(st.sampled_from(["", "/"]), TARGETS).map("".join)),
        st.tuples(st.just("hard"), PATHS, PATHS),
        st.tuples(st.just("remove"), PATHS, TARGETS),
        st.tuples(st.just("write"), PATHS, TARGETS),
    ),
    max_size=25,
)


def play(tree: Tree, verb: str, path: str, other: str) -> None:
    try:
        if verb == "dir":
            tree.add(path, Directory())
        elif verb == "file":
            tree.add(path, File(content=Inline(path.encode())))
        elif verb == "link":
            tree.symlink(path, other)
        elif verb == "hard":
            tree.add(path, HardLink(target=other))
        elif verb == "remove":
            tree.remove(path)
        else:
            tree.write(path, other)
    except (TreeError, KeyError):
        pass


@pytest.mark.slow
@given(STEPS)
def test_whatever_happens_the_tree_stays_a_tree(steps: list[tuple[str, str, str]]) -> None:
    tree = Tree()
    for verb, path, other in steps:
        play(tree, verb, path, other)
    paths = list(tree)
    assert [path for path in paths if path and not isinstance(tree[parent(path)], Directory)] == []
    assert sorted(paths) == sorted(path for path, _ in tree.walk(""))
    for path, node in tree.items():
        if isinstance(node, HardLink):
            assert isinstance(tree[node.target], File), path
    sink = io.BytesIO()
    tree.write_tar(sink)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as archive:
        assert sorted(member.name for member in archive) == sorted(f"./{path}" if path else "." for path in paths)


@pytest.mark.slow
@given(STEPS, TARGETS)
def test_resolution_never_leaves_the_tree(steps: list[tuple[str, str, str]], path: str) -> None:
    tree = Tree()
    for verb, where, other in steps:
        play(tree, verb, where, other)
    try:
        where = tree.resolve("/" + path)
    except TreeError:
        return  # a circle
    assert check_path(where) == where


# ---- limits and corners ----------------------------------------------------------------------------------------------


def test_a_file_is_read_up_to_the_limit_and_not_beyond() -> None:
    tree = tree_of("f")
    tree.write("f", b"12345")
    assert tree.read("f", 5) == b"12345"
    with pytest.raises(InputError, match=r"^/f: a file of 5 bytes, where at most 4 are read$"):
        tree.read("f", 4)


def test_texts_have_a_lower_limit_than_files(tmp_path: Path) -> None:
    tree = Tree()
    for name, size in (("text", MAX_TEXT), ("file", MAX_READ)):
        tree.add(name, File(content=Slice(tmp_path / "nowhere", 0, size + 1)))
    with pytest.raises(InputError, match=r"^/text: a file of 67108865 bytes, where at most 67108864 are read$"):
        tree.text("text")
    with pytest.raises(InputError, match=r"^/file: a file of 536870913 bytes, where at most 536870912 are read$"):
        tree.read("file")
    tree.add("largest", File(content=Slice(tmp_path / "nowhere", 0, MAX_READ)))
    with pytest.raises(FileNotFoundError):  # it is within the limit
        tree.read("largest")


def test_an_empty_slice_has_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"x")
    assert Slice(tmp_path / "spool", 1, 0).read() == b""
    assert Slice(tmp_path / "spool", 0, 1).read() == b"x"
    with Slice(tmp_path / "spool", 0, 1).open() as stream:
        assert (stream.readable(), stream.read(5), stream.read(5)) == (True, b"x", b"")


def test_bytes_that_are_not_utf_8_survive() -> None:
    tree = Tree()
    tree.write("f", b"\xff\n")
    tree.write("g", tree.text("f"))
    assert tree.read("g") == b"\xff\n"


@pytest.mark.parametrize(
    ("path", "proper"),
    [
        ("", True),
        ("x" * 255, True),
        ("x" * 256, False),
        ("a/" + "x" * 256 + "/b", False),
        ("ü" * 127, True),
        ("ü" * 128, False),
        ("/".join(["x" * 255] * 16)[:4095], True),
        ("/".join(["x" * 200] * 21)[:4096], False),
        ("\x1f", False),
        (" ", True),
        ("~", True),
    ],
)
def test_which_paths_are_proper(path: str, proper: bool) -> None:
    if proper:
        assert check_path(path) == path
    else:
        with pytest.raises(TreeError, match=r"is longer than a path may be|has control characters in it"):
            check_path(path)


@pytest.mark.parametrize(
    ("target", "possible"), [("", False), ("a\0b", False), ("x" * 4095, True), ("x" * 4096, False)]
)
def test_which_targets_of_links_are_possible(target: str, possible: bool) -> None:
    tree = Tree()
    if possible:
        tree.symlink("l", target)
        assert tree["l"] == Symlink(target=target)
    else:
        with pytest.raises(TreeError, match=r"^l: improper link target "):
            tree.symlink("l", target)


def test_40_links_are_followed_and_no_more() -> None:
    tree = tree_of("40", *(f"{number} -> {number + 1}" for number in range(40)))
    assert tree.resolve("0") == "40"
    assert tree.read("0") == b"40"
    tree.symlink("first", "0")
    with pytest.raises(TreeError, match=r"^first: too many levels of symbolic links$"):
        tree.resolve("first")


def test_a_hard_link_needs_another_file() -> None:
    tree = tree_of("f", "d/", "l -> f")
    for target in ("d", "l", "none"):
        with pytest.raises(TreeError, match=f"^h: hard link to {target}, which is not a regular file$"):
            tree.add("h", HardLink(target=target))
    with pytest.raises(TreeError, match=r"^f: hard link to f, "):
        tree.add("f", HardLink(target="f"))


def test_what_cannot_replace_what_is_named() -> None:
    tree = tree_of("d/", "f")
    tree.add("p", Device(kind="p"))
    with pytest.raises(TreeError, match=r"^d: a symbolic link cannot replace a directory$"):
        tree.symlink("d", "f")
    with pytest.raises(TreeError, match=r"^f: a directory cannot replace a file$"):
        tree.add("f", Directory())
    with pytest.raises(TreeError, match=r"^p: a directory cannot replace a device$"):
        tree.add("p", Directory())


def test_a_hard_link_may_be_replaced_and_removed() -> None:
    tree = tree_of("f", "x")
    for name in ("g", "h"):
        tree.add(name, HardLink(target="f", mode=0o600))
    tree.add("g", Symlink(target="x"))
    tree.remove("h")
    tree.remove("f")
    assert list(tree) == ["", "g", "x"]
    assert tree["g"] == Symlink(target="x")


def test_the_other_names_of_a_file_stay_together() -> None:
    tree = tree_of("a")
    tree.change("a", mode=0o4711)
    for name in ("d", "c", "b"):
        tree.add(name, HardLink(target="a"))
    tree.remove("a")
    assert isinstance(tree["b"], File)
    assert (tree["c"], tree["d"]) == (HardLink(target="b", mode=0o4711), HardLink(target="b", mode=0o4711))
    tree.remove("b")
    assert (tree.read("c"), tree["d"]) == (b"a", HardLink(target="c", mode=0o4711))


def test_new_directories_and_their_parents() -> None:
    tree = tree_of("a/")
    tree.change("a", mode=0o711)
    tree.mkdir("a/b/c", mode=0o2700, uid=1, gid=2, mtime=3)
    assert tree["a"] == Directory(mode=0o711)
    assert tree["a/b"] == Directory(mtime=3)
    assert tree["a/b/c"] == Directory(mode=0o2700, uid=1, gid=2, mtime=3)
    tree.mkdir("a/b/c")
    assert tree["a/b/c"].mode == 0o2700


def test_new_and_old_files_that_are_written() -> None:
    tree = Tree()
    tree.write("a/b", "x", mode=0o600, uid=1, gid=2, mtime=3)
    assert tree["a/b"] == File(content=Inline(b"x"), mode=0o600, uid=1, gid=2, mtime=3)
    assert tree["a"] == Directory(mtime=3)
    tree.write("a/b", "y", uid=7, mtime=4)
    assert tree["a/b"] == File(content=Inline(b"y"), mode=0o600, uid=1, gid=2, mtime=4)
    tree.write("a/b", "z", mode=0)
    assert tree["a/b"].mode == 0
    tree.write("new", "")
    assert tree["new"] == File(content=Inline(b""))
    tree.symlink("a/l", "../deep/file", mtime=5)
    tree.write("a/l", "through")
    assert tree.text("deep/file") == "through"
    assert tree["a/l"] == Symlink(target="../deep/file", mtime=5)


def test_change_leaves_alone_what_is_not_given() -> None:
    tree = Tree()
    tree.write("f", "", mode=0o600, uid=1, gid=2)
    for change, expected in (({"mode": 0}, (0, 1, 2)), ({"uid": 0}, (0, 0, 2)), ({"gid": 0}, (0, 0, 0))):
        tree.change("f", **change)
        assert (tree["f"].mode, tree["f"].uid, tree["f"].gid) == expected


def test_a_change_by_another_name_is_one_of_the_file() -> None:
    tree = tree_of("f")
    tree.add("h", HardLink(target="f", mode=0o600))
    for change, expected in (
        ({"mode": 0o711}, (0o711, 0, 0)),
        ({"uid": 5}, (0o711, 5, 0)),
        ({"gid": 6}, (0o711, 5, 6)),
    ):
        tree.change("h", **change)
        assert (tree["f"].mode, tree["f"].uid, tree["f"].gid) == expected
    assert tree["h"] == HardLink(target="f", mode=0o600)


def test_a_copy_is_independent() -> None:
    tree = tree_of("d/f", "d/g")
    tree.add("h", HardLink(target="d/f"))
    copy = tree.copy()
    copy.remove("d/g")
    copy.remove("d/f")
    copy.write("new", "")
    assert list(tree) == ["", "d", "d/f", "d/g", "h"]
    assert list(copy) == ["", "d", "h", "new"]
    assert tree["h"] == HardLink(target="d/f")
    assert (len(tree), len(copy)) == (5, 4)
    tree.replace_with(copy)
    assert list(tree.items()) == list(copy.items())


def test_what_is_in_directories() -> None:
    tree = tree_of("d/b", "d/a/x", "f", "l -> d")
    assert tree.children("") == ["d", "f", "l"]
    assert tree.children("d") == ["d/a", "d/b"]
    assert tree.children("f") == tree.children("l") == tree.children("none") == []
    assert [tree.count(path) for path in ("", "d", "d/a", "f", "none")] == [3, 2, 1, 0, 0]
    assert [path for path, _ in tree.walk("d")] == ["d", "d/a", "d/a/x", "d/b"]
    assert [path for path, _ in tree.walk("l")] == ["l"]


def test_nodes_that_paths_lead_to() -> None:
    tree = tree_of("f", "l -> f", "dangling -> none")
    tree.add("h", HardLink(target="f"))
    assert tree.stat("l") == tree.stat("h") == tree.stat("f") == tree["f"]
    assert tree.stat("dangling") is None
    assert tree.get("dangling") == Symlink(target="none")
    assert tree.get("none") is None
    assert "dangling" in tree
    assert "none" not in tree


def test_the_size_of_the_contents_counts_a_file_once() -> None:
    tree = tree_of("abc", "d/", "l -> abc")
    tree.add("h", HardLink(target="abc"))
    tree.write("five", "12345")
    assert tree.content_size == 8


def test_equal_trees_make_equal_archives() -> None:
    archives = []
    for order in (("b", "a/x", "c"), ("c", "b", "a/x")):
        tree = tree_of(*order)
        tree.add("0", HardLink(target="b"))
        sink = io.BytesIO()
        tree.write_tar(sink)
        archives.append(sink.getvalue())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        assert archive.getnames() == [".", "./a", "./a/x", "./b", "./c", "./0"]


@pytest.mark.parametrize(
    ("kind", "tar_type"), [("c", tarfile.CHRTYPE), ("b", tarfile.BLKTYPE), ("p", tarfile.FIFOTYPE)]
)
def test_devices_in_the_archive(kind: str, tar_type: bytes) -> None:
    tree = Tree()
    tree.add("x", Device(kind=kind, major=8, minor=1, mode=0o640, uid=1, gid=2, mtime=3))
    sink = io.BytesIO()
    tree.write_tar(sink)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as archive:
        info = archive.getmember("./x")
    assert info.type == tar_type
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o640, 1, 2, 3)
    assert kind == "p" or (info.devmajor, info.devminor) == (8, 1)


def test_extended_attributes_of_an_archive() -> None:
    assert xattrs_of({"SCHILY.xattr.user.a": "\udcff", "path": "x"}) == {"user.a": b"\xff"}
    assert xattrs_of({"path": "x"}) == {}


def test_the_root_may_be_replaced_but_not_removed() -> None:
    tree = tree_of("f")
    tree.add("", Directory(mode=0o700))
    assert tree[""].mode == 0o700
    assert tree.children("") == ["f"]
    tree.remove("f")
    with pytest.raises(TreeError, match=r"^/: directory is not empty$"):
        tree.remove("")


def test_the_modes_that_nodes_have_by_default() -> None:
    assert Directory().mode == 0o755
    assert File(content=Inline(b"")).mode == HardLink(target="f").mode == 0o644
    assert Symlink(target="f").mode == 0o777
    assert Device(kind="c") == Device(kind="c", major=0, minor=0, mode=0o600, uid=0, gid=0, mtime=0)


def test_iteration_follows_every_change() -> None:
    tree = Tree()
    tree.write("b/x", b"")
    assert list(tree) == ["", "b", "b/x"]
    tree.symlink("a", "b")
    assert list(tree) == ["", "a", "b", "b/x"]
    copy = tree.copy()
    copy.remove("a")
    assert list(copy) == ["", "b", "b/x"]
    copy.replace_with(tree)
    tree.add("b/w", HardLink(target="b/x"))
    tree.remove("b/x")
    assert list(tree) == ["", "a", "b", "b/w"]
    assert list(copy) == ["", "a", "b", "b/x"]
