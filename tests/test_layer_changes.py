"""What differs between two Trees, as a layer: by cases, and by two simple engines that apply layers."""

from __future__ import annotations

import pytest
from hypothesis import given

from imgkit.errors import InputError
from imgkit.oci.layerchanges import LayerChanges, changes
from imgkit.tree import Directory, File, HardLink, Inline, Node, Symlink, Tree, kind, parent
from tests.ocitrees import EPOCH, STEPS, Inode, facts, looks, lower_tree, play, remove, upper_tree, view


def paths(before: Tree | None, after: Tree) -> list[str]:
    return [path for path, _ in changes(before, after).entries]


def tree_with(*names: str) -> Tree:
    """Return a Tree with files and, for names that end in a slash, directories."""
    tree = Tree()
    for name in names:
        if name.endswith("/"):
            tree.mkdir(name[:-1])
        else:
            tree.write(name, name)
    return tree


def test_everything_of_the_first_tree() -> None:
    tree = tree_with("b", "a/x")
    layer = changes(None, tree)
    assert layer.entries == (("a", tree["a"]), ("a/x", tree["a/x"]), ("b", tree["b"]))
    assert changes(Tree(), tree) == layer
    assert layer.content_size == 4
    assert layer


def test_nothing_where_nothing_changed() -> None:
    assert not changes(lower_tree(), lower_tree())
    assert not changes(None, Tree())
    assert changes(lower_tree(), lower_tree()) == LayerChanges(())


def test_the_directories_that_lead_to_a_change_come_with_it() -> None:
    before = tree_with("tmp/x/y/", "other/")
    before.change("tmp", mode=0o1777)
    after = before.copy()
    after.write("tmp/x/y/f", "new")
    assert changes(before, after).entries == (
        ("tmp", Directory(mode=0o1777)),
        ("tmp/x", Directory()),
        ("tmp/x/y", Directory()),
        ("tmp/x/y/f", File(content=Inline(b"new"))),
    )


@pytest.mark.parametrize("attribute", [{"mode": 0o700}, {"uid": 1}, {"gid": 1}])
def test_changed_attributes(attribute: dict[str, int]) -> None:
    before = tree_with("d/f", "d/g")
    after = before.copy()
    after.change("d", **attribute)
    assert paths(before, after) == ["d"]
    after.change("d/f", **attribute)
    assert paths(before, after) == ["d", "d/f"]


def test_the_root_is_an_entry_only_if_something_about_it_but_its_time_changed() -> None:
    after = Tree()
    after.add("", Directory(mtime=EPOCH))
    assert not changes(None, after)
    after.add("", Directory(mode=0o711, mtime=EPOCH))
    assert changes(None, after).entries == (("", Directory(mode=0o711, mtime=EPOCH)),)
    assert not changes(after, after)


def test_what_is_gone_is_a_whiteout() -> None:
    before = tree_with("d/f", "d/g", "top", "e/")
    after = before.copy()
    for path in ("d/f", "top", "e"):
        after.remove(path)
    layer = changes(before, after)
    assert [path for path, _ in layer.entries] == [".wh.e", ".wh.top", "d", "d/.wh.f"]
    assert layer.entries[0][1] == File(content=Inline(b""), mode=0o600)


def test_a_directory_that_is_gone_is_one_whiteout() -> None:
    before = tree_with("a/d/e/f", "a/d/g")
    after = before.copy()
    remove(after, "a/d")
    assert paths(before, after) == ["a", "a/.wh.d"]


def test_what_changes_its_kind_needs_no_whiteout() -> None:
    before = tree_with("d/x", "f")
    before.symlink("l", "d")
    after = tree_with("d", "f/x")
    after.write("l/y", "")
    assert paths(before, after) == ["d", "f", "f/x", "l", "l/y"]
    after = tree_with("f", "l/")
    after.symlink("d", "l")
    assert [(path, kind(node)) for path, node in changes(before, after).entries] == [
        ("d", "symbolic link"),
        ("l", "directory"),
    ]


# ---- hard links ------------------------------------------------------------------------------------------------------


def test_a_new_link_to_an_old_file_repeats_the_file_and_all_its_names() -> None:
    before = tree_with("z", "other")
    before.add("b", HardLink(target="z"))
    after = before.copy()
    after.add("a", HardLink(target="z"))
    assert paths(before, after) == ["z", "a", "b"]


def test_all_names_of_a_changed_file_are_repeated() -> None:
    before = tree_with("f")
    before.add("a", HardLink(target="f"))
    after = before.copy()
    after.write("f", "changed")
    after.change("f", mode=0o4711, uid=5, gid=6)
    layer = changes(before, after)
    assert layer.entries[0] == ("f", File(content=Inline(b"changed"), mode=0o4711, uid=5, gid=6))
    assert layer.entries[1] == ("a", HardLink(target="f", mode=0o4711, uid=5, gid=6))


def test_a_name_that_is_gone_does_not_repeat_the_others() -> None:
    before = tree_with("a")
    for name in "bc":
        before.add(name, HardLink(target="a"))
    after = before.copy()
    after.remove("b")
    assert paths(before, after) == [".wh.b"]
    after = before.copy()
    after.remove("a")  # b becomes the file
    assert isinstance(after["b"], File)
    assert paths(before, after) == [".wh.a"]


def test_files_that_become_one_are_repeated() -> None:
    before = Tree()
    for name in "ab":
        before.write(name, "same")
    after = before.copy()
    after.remove("b")
    after.add("b", HardLink(target="a"))
    assert paths(before, after) == ["a", "b"]
    assert paths(after, before) == ["b"]


def test_a_link_has_the_attributes_of_its_file() -> None:
    tree = Tree()
    file = File(content=Inline(b""), mode=0o750, uid=1, gid=2, mtime=3, xattrs={"user.a": b"1"})
    tree.add("f", file)
    tree.add("a", HardLink(target="f"))
    assert changes(None, tree).entries[1] == (
        "a",
        HardLink(target="f", mode=0o750, uid=1, gid=2, mtime=3, xattrs={"user.a": b"1"}),
    )


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [".wh.x", "d/.wh.x", "d/.wh..wh..opq", ".wh./x"])
def test_files_with_the_names_of_whiteouts_are_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"^/(d/)?\.wh\.[^:]*: layers of container images remove files by such names"):
        changes(None, tree_with(path))


def test_names_with_a_whiteout_in_the_middle_are_names() -> None:
    assert paths(None, tree_with("a.wh.b", "x.wh./c")) == ["a.wh.b", "x.wh.", "x.wh./c"]


@pytest.mark.parametrize(
    ("name", "fits"), [("n" * 251, True), ("n" * 252, False), ("ü" * 126, False), ("ü" * 125, True)]
)
def test_names_that_are_too_long_to_be_removed(name: str, fits: bool) -> None:
    before = tree_with(name)
    if fits:
        assert paths(before, Tree()) == [".wh." + name]
    else:
        with pytest.raises(InputError, match=r"n*ü*: the name is too long to be removed by a layer"):
            changes(before, Tree())


# ---- two engines -----------------------------------------------------------------------------------------------------


def gone(inodes: dict[str, Inode], top: str) -> None:
    for path in [path for path in inodes if path == top or path.startswith(top + "/")]:
        del inodes[path]


def removed_by(path: str) -> str | None:
    """Return what a whiteout removes, or None for other entries."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name[4:]}" if name.startswith(".wh.") else None


def put(inodes: dict[str, Inode], path: str, node: Node) -> None:
    """Unpack an entry: directories merge, everything else replaces what was there."""
    old = inodes.get(path)
    if not (isinstance(node, Directory) and old is not None and isinstance(old.node, Directory)):
        gone(inodes, path)
    assert not path or isinstance(inodes[parent(path)].node, Directory)
    inodes[path] = inodes[node.target] if isinstance(node, HardLink) else Inode(node)


def unpack_onto(inodes: dict[str, Inode], layer: LayerChanges) -> dict[str, Inode]:
    """Apply a layer as umoci and containerd do: onto the layers below it."""
    for path, _ in layer.entries:
        if (victim := removed_by(path)) is not None:
            gone(inodes, victim)
    for path, node in layer.entries:
        if removed_by(path) is None:
            put(inodes, path, node)
    return inodes


def unpack_beside(lower: dict[str, Inode], layer: LayerChanges) -> dict[str, Inode]:
    """Apply a layer as Docker and Podman do: unpacked on its own, then mounted above the others (overlayfs)."""
    upper: dict[str, Inode] = {"": lower[""]}
    hidden = set()
    for path, node in layer.entries:
        if (victim := removed_by(path)) is None:
            put(upper, path, node)
        else:
            assert isinstance(upper[parent(path)].node, Directory)
            hidden.add(victim)
    merged = dict(upper)
    for path, inode in lower.items():
        above = [path.rsplit("/", count)[0] for count in range(path.count("/") + 1)]
        replaced = {name for name in above if name in upper and not isinstance(upper[name].node, Directory)}
        covered = replaced or hidden.intersection(above)
        if path not in upper and not covered:
            merged[path] = inode
    return merged


def inodes_of(tree: Tree) -> dict[str, Inode]:
    return unpack_onto({"": Inode(Directory())}, changes(None, tree))


@pytest.mark.slow
@given(STEPS, STEPS)
def test_applied_to_the_first_tree_the_layer_makes_the_second(
    first: list[tuple[str, str, Node]], second: list[tuple[str, str, Node]]
) -> None:
    before = play(Tree(), first)
    after = play(before.copy(), second)
    layer = changes(before, after)
    assert looks(unpack_onto(inodes_of(before), layer)) == view(after)
    assert looks(unpack_beside(inodes_of(before), layer)) == view(after)


@pytest.mark.slow
@given(STEPS, STEPS)
def test_between_trees_that_have_nothing_in_common(
    first: list[tuple[str, str, Node]], second: list[tuple[str, str, Node]]
) -> None:
    before, after = play(Tree(), first), play(Tree(), second)
    assert looks(unpack_onto(inodes_of(before), changes(before, after))) == view(after)
    assert looks(unpack_beside(inodes_of(before), changes(before, after))) == view(after)
    if not changes(before, after):
        assert view(before) == view(after)


def test_the_examples_of_everything() -> None:
    layer = changes(lower_tree(), upper_tree())
    assert looks(unpack_onto(inodes_of(lower_tree()), layer)) == view(upper_tree())
    assert looks(unpack_beside(inodes_of(lower_tree()), layer)) == view(upper_tree())
    assert facts(lower_tree()["big"]) == lower_tree()["big"]
    assert isinstance(upper_tree()["becomes-file"], File)
    assert isinstance(lower_tree()["lib"], Symlink)
