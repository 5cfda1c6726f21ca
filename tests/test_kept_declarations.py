"""What services declare is taken from the cache only where every path that a script looked at is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imgkit.rootfs.keptsteps import KeptSteps
from imgkit.rootfs.openrc import depends, keptdeclarations
from imgkit.rootfs.openrc.keptdeclarations import declarations_or_take
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import HardLink, LazyCopy, Tree
from imgkit.tree.watchedtree import WatchedTree

SCRIPT = """#!/sbin/openrc-run
. /etc/extra
depend() {
    need $extra
    [ -e /opt/flag ] && use flag
    [ -d /opt/link/deep ] && use deep
    for file in /opt/parts/*; do want ${file##*/}; done
}
"""


def tree_with(script: str = SCRIPT) -> Tree:
    tree = Tree()
    for path in ("etc", "etc/init.d", "etc/conf.d", "opt", "opt/parts", "opt/place", "var"):
        tree.mkdir(path)
    tree.write("etc/init.d/one", script, mode=0o755)
    tree.write("etc/extra", "extra=net\n")
    tree.write("opt/parts/a", "")
    tree.symlink("opt/link", "place")
    tree.add("opt/same", HardLink(target="opt/parts/a"))
    return tree


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has an entry for each time that declarations were computed."""
    times: list[int] = []

    def declarations(tree: Tree) -> list[depends.ServiceDeclaration]:
        times.append(1)
        return depends.declarations(tree)

    monkeypatch.setattr(keptdeclarations, "declarations", declarations)
    return times


def test_they_are_computed_once(tmp_path: Path, computed: list[int]) -> None:
    kept = KeptSteps(tmp_path)
    first = declarations_or_take(tree_with(), kept)
    assert [service.declared for service in first] == [(("ineed", ("net",)), ("iwant", ("a",)))]
    assert declarations_or_take(tree_with(), kept) == first
    assert len(computed) == 1
    other = tree_with()
    other.write("var/other", "nobody looks at it")
    assert declarations_or_take(other, kept) == first
    assert len(computed) == 1
    declarations_or_take(tree_with(), KeptSteps())
    assert len(computed) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.write("etc/init.d/one", SCRIPT.replace("need", "use"), mode=0o755),
        lambda tree: tree.write("etc/init.d/two", SCRIPT, mode=0o755),
        lambda tree: tree.write("etc/extra", "extra=dev\n"),
        lambda tree: tree.write("etc/conf.d/one", "rc_need=more\n"),
        lambda tree: tree.write("etc/rc.conf", "rc_need=more\n"),
        lambda tree: tree.write("opt/flag", ""),
        lambda tree: tree.mkdir("opt/place/deep"),
        lambda tree: tree.write("opt/parts/b", ""),
        lambda tree: (tree.remove("opt/same"), tree.remove("opt/parts/a")),
        lambda tree: tree.change("etc/init.d/one", mode=0o644),
    ],
)
def test_a_change_that_matters_is_computed(
    change: Callable[[Tree], object], tmp_path: Path, computed: list[int]
) -> None:
    kept = KeptSteps(tmp_path)
    before = declarations_or_take(tree_with(), kept)
    tree = tree_with()
    change(tree)
    after = declarations_or_take(tree, kept)
    assert len(computed) == 2
    assert after == depends.declarations(tree)
    assert after != before
    assert declarations_or_take(tree, kept) == after
    assert len(computed) == 2, "the new result is kept"


def test_a_script_that_changes_something_is_computed_every_time(tmp_path: Path, computed: list[int]) -> None:
    kept, tree = KeptSteps(tmp_path), tree_with(f"{SCRIPT}echo x >/opt/written\n")
    assert declarations_or_take(tree, kept) == declarations_or_take(tree, kept)
    assert len(computed) == 2
    assert "opt/written" not in tree


def test_what_cannot_be_computed_is_an_error_every_time(tmp_path: Path) -> None:
    kept, tree = KeptSteps(tmp_path), tree_with("#!/sbin/openrc-run\ndepend() { need $(date); }\n")
    for _ in range(2):
        with pytest.raises(Unsupported, match="the command date"):
            declarations_or_take(tree, kept)


@pytest.mark.parametrize(
    ("look", "nodes", "directories"),
    [
        (lambda tree: tree.get("opt"), {"opt"}, set()),
        (lambda tree: "nothing" in tree, {"nothing"}, set()),
        (lambda tree: tree["etc/extra"], {"etc/extra"}, set()),
        (lambda tree: tree.stat("opt/link"), {"opt", "opt/link", "opt/place"}, set()),
        (lambda tree: tree.stat("opt/same"), {"opt", "opt/same", "opt/parts/a"}, set()),
        (lambda tree: tree.text("/etc/extra"), {"etc", "etc/extra"}, set()),
        (lambda tree: tree.children("opt/parts"), set(), {"opt/parts"}),
        (lambda tree: tree.count("none"), set(), {"none"}),
        (lambda tree: list(tree.walk("opt/place")), {"opt/place"}, {"opt/place"}),
    ],
)
def test_what_a_tree_was_asked(look: Callable[[Tree], object], nodes: set[str], directories: set[str]) -> None:
    original = tree_with()
    for copy in (lambda tree: tree, LazyCopy):
        watched = WatchedTree(original)
        assert look(copy(watched)) == look(original)
        assert (set(watched.nodes), set(watched.directories)) == (nodes, directories)
        assert all(watched.nodes[path] == original.get(path) for path in nodes)
        assert watched.is_complete


@pytest.mark.parametrize(
    "look", [list, len, lambda tree: dict(tree.items()), lambda tree: tree.count_links("opt/parts/a"), Tree.copy]
)
def test_a_look_at_everything_is_noticed(look: Callable[[Tree], object]) -> None:
    watched = WatchedTree(tree_with())
    look(watched)
    assert not watched.is_complete


def test_a_copy_that_is_changed_leaves_the_original() -> None:
    original = tree_with()
    watched = WatchedTree(original)
    copy = LazyCopy(watched)
    copy.write("opt/new", "")
    assert not watched.is_complete
    assert "opt/new" in copy
    assert "opt/new" not in original
