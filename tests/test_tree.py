"""The Tree: paths, links, invariants, and the archive it becomes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.tree import Device, Directory, File, HardLink, Inline, Slice, Symlink, Tree, TreeError, check_path, parent


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
    path.write_bytes(b"0123")
    with pytest.raises(EOFError):
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
