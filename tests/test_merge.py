"""Which package owns a file that several packages contain, and which files an upgrade keeps."""

from __future__ import annotations

import hashlib

import pytest

from imgkit.apk.index import Package
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import RecipeError
from imgkit.rootfs.accounts import AccountNumbers
from imgkit.rootfs.merge import Ledger, is_protected, merge, remove
from imgkit.tree import Directory, File, HardLink, Inline, Symlink, Tree

NAMES = AccountNumbers(users={"root": 0, "www": 80}, groups={"root": 0, "www": 81})


def package(name: str, version: str = "1-r0", *, replaces: str = "", priority: int = 0, origin: str = "") -> Package:
    return Package(
        name=name, version=version, replaces=tuple(replaces.split()), replaces_priority=priority, origin=origin
    )


def directory(path: str, mode: int = 0o755) -> PackageEntry:
    return PackageEntry(path, Directory(mode=mode), None, "root", "root")


def file(path: str, text: str, *, uname: str = "root", gname: str = "root", uid: int = 0) -> PackageEntry:
    data = text.encode()
    return PackageEntry(path, File(content=Inline(data), uid=uid, gid=uid), hashlib.sha1(data).digest(), uname, gname)


def installed(*steps: tuple[Package, list[PackageEntry]], tree: Tree | None = None) -> tuple[Tree, Ledger]:
    tree, ledger = tree or Tree(), Ledger()
    for each_package, entries in steps:
        merge(tree, ledger, each_package, entries, NAMES)
    return tree, ledger


def test_owners_are_resolved_by_name_and_unknown_names_keep_their_number() -> None:
    tree, ledger = installed(
        (package("a"), [file("x", "", uname="www", gname="www", uid=7), file("y", "", uname="who", gname="who", uid=7)])
    )
    assert (tree["x"].uid, tree["x"].gid) == (80, 81)
    assert (tree["y"].uid, tree["y"].gid) == (7, 7)
    assert ledger.files["x"].uid == 80


def test_root_is_0_whatever_the_accounts_say() -> None:
    tree = Tree()
    entry = file("x", "", uid=7)
    merge(tree, Ledger(), package("a"), [entry], AccountNumbers(users={"root": 5}, groups={"root": 6}))
    assert (tree["x"].uid, tree["x"].gid) == (0, 0)


def test_two_packages_with_one_file_conflict() -> None:
    with pytest.raises(RecipeError, match="a-1-r0 and b-1-r0 both install usr/x") as caught:
        installed((package("a"), [file("usr/x", "a")]), (package("b"), [file("usr/x", "b")]))
    assert caught.value.hint == "leave one of a and b out of the recipe's packages"


def test_packages_without_an_origin_do_not_share_one() -> None:
    with pytest.raises(RecipeError, match="both install"):
        installed((package("a", origin=""), [file("x", "a")]), (package("b", origin=""), [file("x", "b")]))


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        (package("a"), package("b", replaces="a"), "b"),
        (package("a", replaces="b"), package("b"), "a"),
        (package("a", replaces="b", priority=5), package("b", replaces="a", priority=9), "b"),
        (package("a", replaces="b", priority=9), package("b", replaces="a", priority=5), "a"),
        (package("a", replaces="b"), package("b", replaces="a"), "b"),
        (package("a", origin="o"), package("b", origin="o"), "b"),
        (package("a"), package("b", replaces="a<2"), "b"),
    ],
)
def test_replaces(first: Package, second: Package, winner: str) -> None:
    tree, ledger = installed((first, [file("x", "a")]), (second, [file("x", "b")]))
    assert tree.read("x").decode() == winner
    assert ledger.files["x"].package == winner


def test_replaces_of_another_version_does_not_count() -> None:
    with pytest.raises(RecipeError, match="both install"):
        installed((package("a"), [file("x", "a")]), (package("b", replaces="a>=2"), [file("x", "b")]))


@pytest.mark.parametrize("replaces", ["a=v2", "a<v2", "=v2", "a=", "!"])
def test_replaces_that_breaks_the_grammar_does_not_count(replaces: str) -> None:
    """Such a version compares as apk compares it; a word that is no dependency replaces nothing."""
    with pytest.raises(RecipeError, match="a-1-r0 and b-1-r0 both install x"):
        installed((package("a"), [file("x", "a")]), (package("b", replaces=replaces), [file("x", "b")]))


def test_replaces_of_a_version_that_breaks_the_grammar() -> None:
    steps = [(package("a", "v2"), [file("x", "a")]), (package("b", replaces="= a=v2"), [file("x", "b")])]
    assert installed(*steps)[0].read("x") == b"b"


@pytest.mark.parametrize("swap", [False, True])
def test_a_directory_takes_its_mode_from_the_highest_priority(swap: bool) -> None:
    steps = [
        (package("base", priority=1000, origin="base"), [directory("var", 0o700)]),
        (package("aaa", origin="aaa"), [directory("var", 0o755)]),
    ]
    tree, ledger = installed(*(reversed(steps) if swap else steps))
    assert tree["var"].mode == 0o700
    assert set(ledger.directories["var"]) == {"base", "aaa"}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (package("b", priority=2, origin="o"), package("a", priority=1, origin="a")),
        (package("b", origin="b"), package("a", origin="o")),
        (package("a", origin="o"), package("b", origin="o")),
        (package("a", origin="a"), package("b", origin="b")),
    ],
)
def test_whose_mode_a_shared_directory_has(first: Package, second: Package, swap: bool) -> None:
    """The highest priority, then the package that is named like its origin, then the first name."""
    steps = [(first, [directory("var", 0o700)]), (second, [directory("var", 0o755)])]
    tree, _ = installed(*(reversed(steps) if swap else steps))
    assert tree["var"].mode == 0o700


def test_a_path_below_a_link_to_the_root() -> None:
    tree = Tree()
    tree.symlink("system", "/")
    installed((package("a"), [file("system/x", "x")]), tree=tree)
    assert tree.read("x") == b"x"


def test_folders_that_no_package_has_are_made_with_the_time_of_what_is_in_them() -> None:
    file_entry = PackageEntry("a/b/x", File(content=Inline(b"x"), mtime=9), hashlib.sha1(b"x").digest(), "root", "root")
    directory_entry = PackageEntry("c/d/y", Directory(mode=0o700, mtime=8), None, "root", "root")
    tree, ledger = installed((package("a"), [file_entry, directory_entry]))
    assert {path: (node.mode, node.mtime) for path, node in tree.items() if path} == {
        "a": (0o755, 9),
        "a/b": (0o755, 9),
        "a/b/x": (0o644, 9),
        "c": (0o755, 8),
        "c/d": (0o755, 8),
        "c/d/y": (0o700, 8),
    }
    assert set(ledger.directories) == {"c/d/y"}


def test_links_to_directories_are_followed() -> None:
    tree = Tree()
    tree.mkdir("usr/lib")
    tree.symlink("lib", "usr/lib")
    tree, ledger = installed(
        (
            package("a"),
            [directory("lib"), file("lib/x", "x"), PackageEntry("lib/y", HardLink(target="lib/x"), None, "", "")],
        ),
        tree=tree,
    )
    assert tree.read("usr/lib/x") == b"x"
    assert tree["usr/lib/y"] == HardLink(target="usr/lib/x")
    assert "lib/x" in ledger.files


def test_a_file_where_a_directory_is() -> None:
    tree = Tree()
    tree.mkdir("x/y")
    with pytest.raises(RecipeError, match="cannot be installed"):
        installed((package("a"), [file("x", "")]), tree=tree)


def test_changed_configuration_is_kept_and_the_packages_copy_put_beside_it() -> None:
    tree = Tree()
    tree.write("etc/conf", "mine")
    tree, _ = installed((package("a"), [file("etc/conf", "theirs")]), tree=tree)
    assert (tree.read("etc/conf"), tree.read("etc/conf.apk-new")) == (b"mine", b"theirs")


@pytest.mark.parametrize(
    ("path", "protected"),
    [
        ("etc/conf", True),
        ("etc/apk", True),
        ("etc/init.d", True),
        ("etc/apk/repositories", False),
        ("etc/init.d/agentd", False),
        ("etcetera/x", False),
        ("usr/etc/conf", False),
    ],
)
def test_which_paths_are_protected(path: str, protected: bool) -> None:
    assert is_protected(path) is protected
    tree = Tree()
    tree.write(path, "mine")
    tree, _ = installed((package("a"), [file(path, "theirs")]), tree=tree)
    assert tree.read(path) == (b"mine" if protected else b"theirs")
    assert (f"{path}.apk-new" in tree) is protected


def test_unchanged_configuration_is_upgraded() -> None:
    tree, ledger = installed((package("a"), [file("etc/conf", "old")]))
    merge(tree, ledger, package("a", "2-r0"), [file("etc/conf", "new")], NAMES)
    assert tree.read("etc/conf") == b"new"
    assert "etc/conf.apk-new" not in tree


def test_what_is_not_configuration_is_overwritten() -> None:
    tree = Tree()
    tree.symlink("bin/x", "/bin/busybox")
    tree, _ = installed((package("a"), [file("bin/x", "real")]), tree=tree)
    assert tree.read("bin/x") == b"real"


def test_removing_a_package_leaves_what_others_have_and_what_was_changed() -> None:
    tree, ledger = installed(
        (package("a"), [directory("d"), directory("d/own"), file("d/own/x", "x"), file("d/f", "f"),
                        directory("etc"), file("etc/same", "1"), file("etc/mine", "1"),
                        PackageEntry("d/l", Symlink(target="f"), hashlib.sha1(b"f").digest(), "", "")]),
        (package("b"), [directory("d"), file("d/g", "g")]),
    )  # fmt: skip
    tree.write("etc/mine", "2")
    assert remove(tree, ledger, "a").name == "a"
    assert list(tree) == ["", "d", "d/g", "etc", "etc/mine"]
    assert set(ledger.packages) == {"b"}
    assert {path: set(records) for path, records in ledger.directories.items()} == {"d": {"b"}}


def test_what_the_new_version_has_too_is_not_removed() -> None:
    tree, ledger = installed((package("a"), [directory("d"), file("d/x", "x"), file("d/y", "y")]))
    remove(tree, ledger, "a", keep=frozenset({"d", "d/x"}))
    assert list(tree) == ["", "d", "d/x"]
