"""Installing, upgrading and removing packages in a Tree, with their scripts, triggers and database."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from imgkit.apk.index import Package
from imgkit.apk.package import PackageFile
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import InputError
from imgkit.rootfs.install import ScriptReport, install, installed_in, world_in
from imgkit.tree import Directory, File, Inline, Tree

EPOCH = 1_700_000_000
Built = tuple[Package, PackageFile]


def directory(path: str) -> PackageEntry:
    return PackageEntry(path, Directory(), None, "root", "root")


def file(path: str, text: str, owner: str = "root") -> PackageEntry:
    data = text.encode()
    return PackageEntry(path, File(content=Inline(data), uid=7, gid=8), hashlib.sha1(data).digest(), owner, owner)


def built(
    name: str,
    *entries: PackageEntry,
    version: str = "1-r0",
    scripts: dict[str, str] | None = None,
    triggers: Sequence[str] = (),
    replaces: str = "",
    priority: int = 0,
) -> Built:
    """Return a package as the index has it, and its verified file. Its identity depends on all that it has."""
    text = repr((name, version, entries, scripts, triggers))
    identity = "Q1" + base64.b64encode(hashlib.sha1(text.encode()).digest()).decode()
    package = Package(name=name, version=version, identity=identity, arch="x86_64")
    verified = SimpleNamespace(
        entries=entries,
        scripts={kind: ("#!/bin/sh\n" + body).encode() for kind, body in (scripts or {}).items()},
        triggers=tuple(triggers),
        replaces=tuple(replaces.split()),
        replaces_priority=priority,
    )
    return package, cast("PackageFile", verified)


def run(tree: Tree, *packages: Built, world: Sequence[str] = (), skip: Sequence[str] = ()) -> ScriptReport:
    """Install the packages; the file of each one is opened at most once."""
    files = {package.identity: verified for package, verified in packages}
    order = [package for package, _ in packages]

    def open_file(package: Package) -> PackageFile:
        return files.pop(package.identity)

    return install(tree, order, open_file, world=world, arch="x86_64", epoch=EPOCH, skip=skip)


def names(tree: Tree) -> list[str]:
    return [record.package.name for record in installed_in(tree)]


def listed(tree: Tree, name: str) -> set[str]:
    """Return the paths of files that the database lists for a package."""
    (record,) = (record for record in installed_in(tree) if record.package.name == name)
    return {f"{folder.path}/{each.name}" for folder in record.directories for each in folder.files}


def test_a_fresh_installation() -> None:
    tree = Tree()
    report = run(tree, built("a", directory("usr"), file("usr/a", "a")), world=["b>1", "a", "b", "!c", "c"])
    assert tree.read("usr/a") == b"a"
    assert (names(tree), listed(tree, "a")) == (["a"], {"usr/a"})
    assert world_in(tree) == ("a", "b", "!c", "c")
    assert tree.text("etc/apk/arch") == "x86_64\n"
    assert (tree["lib/apk/db/lock"].mode, tree.read("lib/apk/db/lock")) == (0o600, b"")
    assert {tree[path].mtime for path in ("etc/apk/world", "etc/apk/arch", "lib/apk/db/lock")} == {EPOCH}
    assert tree["lib/apk/db/installed"].mtime == EPOCH
    assert report == ScriptReport((), (), ())


def test_a_tree_without_a_database() -> None:
    assert (installed_in(Tree()), world_in(Tree())) == ((), ())


def test_scripts_run_before_and_after_the_files_with_the_version() -> None:
    tree = Tree()
    tree.mkdir("log")
    scripts = {
        "pre-install": "[ -e /a ] || echo $1 >/log/pre",
        "post-install": "[ -e /a ] && echo $1 >/log/post; exit 3",
    }
    report = run(tree, built("a", file("a", "a"), scripts=scripts))
    assert (tree.text("log/pre"), tree.text("log/post")) == ("1-r0\n", "1-r0\n")
    assert [(ran.package, ran.kind, ran.outcome.status) for ran in report.ran] == [
        ("a", "pre-install", 0),
        ("a", "post-install", 3),
    ]
    assert installed_in(tree)[0].flags == "s", "its script failed"


def test_the_accounts_of_a_package_are_those_before_its_files() -> None:
    """The pre-install script adds the user; one that is missing leaves the number of the archive."""
    tree = Tree()
    scripts = {"pre-install": "addgroup -S web; adduser -S -G web web"}
    run(tree, built("a", file("a", "a", owner="web"), file("b", "b", owner="nobody"), scripts=scripts))
    assert (tree["a"].uid, tree["a"].gid) == (100, 100)
    assert (tree["b"].uid, tree["b"].gid) == (7, 8)
    (record,) = installed_in(tree)
    owners = {each.name: (each.attributes.uid, each.attributes.gid) for each in record.directories[0].files}
    assert owners == {"a": (100, 100), "b": (7, 8)}


def test_an_upgrade_runs_its_own_scripts_and_removes_what_is_gone() -> None:
    tree = Tree()
    tree.mkdir("log")
    run(tree, built("a", file("old", "x"), directory("etc"), file("etc/conf", "1"), file("etc/same", "1")))
    tree.write("etc/conf", "mine")
    scripts = {kind: f"echo {kind} $* >>/log/all" for kind in ("pre-upgrade", "post-upgrade", "pre-install")}
    new = (directory("etc"), file("etc/conf", "2"), file("etc/same", "2"), file("new", "x"))
    run(tree, built("a", *new, version="2-r0", scripts=scripts))
    assert tree.text("log/all") == "pre-upgrade 2-r0 1-r0\npost-upgrade 2-r0 1-r0\n"
    assert ("old" in tree, "new" in tree, tree.text("etc/same")) == (False, True, "2")
    assert (tree.text("etc/conf"), tree.text("etc/conf.apk-new")) == ("mine", "2")
    assert listed(tree, "a") == {"/new", "etc/conf", "etc/same"}


def test_a_package_that_is_installed_in_this_build_is_left_alone() -> None:
    tree = Tree()
    package = built("a", file("a", "a"), scripts={"post-install": "exit 1"})
    run(tree, package)
    tree.write("a", "changed")
    report = run(tree, package)
    assert tree.text("a") == "changed"
    assert report.ran == ()
    assert (listed(tree, "a"), installed_in(tree)[0].flags) == ({"/a"}, "s")


def test_a_package_that_fails_again_is_marked_once() -> None:
    tree = Tree()
    package = built("a", directory("d"), scripts={"trigger": "exit 1"}, triggers=["/d"])
    run(tree, package)
    run(tree, package, built("b", directory("d"), file("d/b", "")))
    assert [record.flags for record in installed_in(tree)] == ["s", ""]


def test_a_package_whose_scripts_succeed_is_not_marked() -> None:
    tree = Tree()
    run(tree, built("a", scripts={"post-install": "true"}), built("b", scripts={"post-install": "exit 1"}), built("c"))
    assert [record.flags for record in installed_in(tree)] == ["", "s", ""]


def test_directories_of_a_package_that_is_there_keep_their_owners_in_the_database() -> None:
    tree = Tree()
    shared = PackageEntry("var", Directory(mode=0o700, uid=5, gid=6), None, "someone", "someone")
    first = built("a", shared, file("var/a", "a"))
    run(tree, first)
    run(tree, first, built("b", directory("var"), file("var/b", "b")))
    records = {record.package.name: record for record in installed_in(tree)}
    owners = {
        name: [
            (each.path, each.attributes.uid, each.attributes.gid, each.attributes.mode) for each in record.directories
        ]
        for name, record in records.items()
    }
    assert owners == {"a": [("var", 5, 6, 0o700)], "b": [("var", 0, 0, 0o755)]}


def test_packages_that_are_not_wanted_are_removed() -> None:
    tree = Tree()
    run(tree, built("a", file("a", "a")), built("b", file("b", "b")))
    run(tree, built("b", file("b", "b")))
    assert (names(tree), "a" in tree, "b" in tree) == (["b"], False, True)


def test_scripts_that_need_not_run_and_scripts_that_cannot_be_computed() -> None:
    tree = Tree()
    scripts = {"post-install": "frobnicate"}
    report = run(tree, built("a", scripts=scripts), built("b", scripts=scripts), skip=["a"])
    assert report.skipped == ("a.post-install",)
    (pending,) = report.pending
    assert (pending.package, pending.kind, report.ran) == ("b", "post-install", ())
    assert "frobnicate" in pending.reason


def test_a_file_that_another_package_takes_over() -> None:
    """Its old owner has it in the database no more, whether it is installed in this run or was there before."""
    for together in (True, False):
        tree = Tree()
        first, second = built("a", file("x", "a"), file("y", "a")), built("b", file("x", "b"), replaces="a")
        if not together:
            run(tree, first)
        run(tree, first, second)
        assert tree.text("x") == "b"
        assert (listed(tree, "a"), listed(tree, "b")) == ({"/y"}, {"/x"})


def test_the_priority_of_an_installed_package_counts() -> None:
    tree = Tree()
    first = built("a", file("x", "a"), replaces="b", priority=5)
    run(tree, first)
    run(tree, first, built("b", file("x", "b"), replaces="a", priority=1))
    assert tree.text("x") == "a"


# ---- triggers --------------------------------------------------------------------------------------------------------

TRIGGER = {"trigger": "echo $* >>/log"}


def test_a_new_trigger_sees_all_directories_and_an_old_one_those_that_were_touched() -> None:
    tree = Tree()
    first = built("a", directory("d"), directory("e"), directory("f"), scripts=TRIGGER, triggers=["/d", "/e", "/none"])
    run(tree, first)
    assert tree.text("log") == "/d /e\n"
    run(tree, first, built("b", directory("e"), file("e/b", ""), directory("f")))
    assert tree.text("log") == "/d /e\n/e\n"
    run(tree, first, built("b", directory("e"), file("e/b", ""), directory("f")))
    assert tree.text("log") == "/d /e\n/e\n", "nothing was touched"


def test_triggers_run_after_all_packages_in_the_order_of_the_packages() -> None:
    tree = Tree()
    scripts = {"trigger": "echo a >>/log"}
    run(
        tree,
        built("a", scripts=scripts, triggers=["/d"]),
        built("b", directory("d"), scripts={"post-install": "echo b >>/log"}),
    )
    assert tree.text("log") == "b\na\n"


def test_a_pattern_of_modified_directories_matches_all_for_a_new_package() -> None:
    tree = Tree()
    first = built("a", directory("d"))
    second = built("b", directory("e"), scripts=TRIGGER, triggers=["+/d", "/e"])
    run(tree, first)
    run(tree, first, second)
    assert tree.text("log") == "/d /e\n"
    run(tree, first, second, built("c", directory("d")))
    assert tree.text("log") == "/d /e\n/d\n"


def test_packages_without_triggers_stand_in_nobodys_way() -> None:
    tree = Tree()
    run(tree, built("a", directory("d")), built("b", scripts=TRIGGER, triggers=["/d"]), built("c"))
    assert tree.text("log") == "/d\n"


def test_triggers_of_old_and_new_packages_run_in_the_order_of_the_packages() -> None:
    tree = Tree()
    scripts = {name: {"trigger": f"echo {name} $* >>/log"} for name in "ab"}
    packages = [built(name, scripts=scripts[name], triggers=["/d"]) for name in "ab"]
    run(tree, *packages)
    assert "log" not in tree
    run(tree, packages[0], built("b", directory("d"), scripts=scripts["b"], triggers=["/d"], version="2-r0"))
    assert tree.text("log") == "a /d\nb /d\n"


def test_a_trigger_without_a_matching_directory_does_not_run() -> None:
    tree = Tree()
    assert run(tree, built("a", directory("d"), scripts=TRIGGER, triggers=["/x"])).ran == ()


@pytest.mark.parametrize("count", [200, 201])
def test_too_many_patterns_of_a_trigger(count: int) -> None:
    package = built("a", directory("d"), scripts=TRIGGER, triggers=["/d"] * count)
    if count == 200:
        assert len(run(Tree(), package).ran) == 1
    else:
        with pytest.raises(InputError, match=r"^a: its trigger has more than 200 patterns$"):
            run(Tree(), package)


def test_patterns_that_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.rootfs.scripts.budget.Budget.__init__.__defaults__", (100, 100))
    package = built("a", *(directory(f"d{n}") for n in range(200)), scripts=TRIGGER, triggers=["/d*"])
    with pytest.raises(InputError, match=r"^a: the patterns of its trigger: matching them "):
        run(Tree(), package)


# ---- databases as others leave them ----------------------------------------------------------------------------------


def test_the_scripts_of_apk_3_are_read_and_replaced() -> None:
    tree = Tree()
    package = built("a", directory("d"), scripts=TRIGGER, triggers=["/d"])
    run(tree, package)
    tree.write("lib/apk/db/scripts.tar", tree.read("lib/apk/db/scripts.tar.gz"))
    run(tree, package)
    assert "lib/apk/db/scripts.tar" not in tree
    assert installed_in(tree)[0].scripts.keys() == {"trigger"}


def test_a_record_with_a_damaged_checksum_counts_as_changed() -> None:
    """So a file of etc is kept, and the new version is put beside it."""
    tree = Tree()
    run(tree, built("a", directory("etc"), file("etc/conf", "1")))
    database = tree.text("lib/apk/db/installed")
    checksum = "Q1" + base64.b64encode(hashlib.sha1(b"1").digest()).decode()
    assert f"Z:{checksum}" in database
    tree.write("lib/apk/db/installed", database.replace(f"Z:{checksum}\n", "Z:Q1A\n"))
    run(tree, built("a", directory("etc"), file("etc/conf", "2"), version="2-r0"))
    assert (tree.text("etc/conf"), tree.text("etc/conf.apk-new")) == ("1", "2")
