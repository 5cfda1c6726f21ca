"""Overlays, files and the time zone in the image: modes, owners, order, and what is refused or said."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import InputError, RecipeError
from imgkit.recipe import FileSpec, OverlaySpec, Recipe, UserSpec, load
from imgkit.rootfs import accounts, digest, steps
from imgkit.rootfs.compose import Composition
from imgkit.rootfs.overlays import add_overlay_folder
from imgkit.tree import Directory, File, Slice, Symlink, Tree
from tests.conftest import need
from tests.images import RECIPE
from tests.test_compose import base, make
from tests.test_install import built, file
from tests.trees import read_newc

EPOCH = 1_700_000_000
ROOT = Path(__file__).parents[1]


def tree() -> Tree:
    made = Tree()
    made.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:100:101::/:/sbin/nologin\n")
    made.write("etc/group", "root:x:0:\nweb:x:101:web\nwww-data:x:82:\n")
    return made


def put(into: Tree, **fields: Any) -> list[str]:
    bare = {"overlay": None, "timezone": None, "files": ()}
    recipe: Recipe = load(RECIPE).model_copy(update=bare | fields)
    return steps.add_host_files(into, recipe, epoch=EPOCH)


def modes(of: Tree, *paths: str) -> list[str]:
    return [oct(of[path].mode) for path in paths]


def folder(top: Path, files: dict[str, int]) -> Path:
    """Make a folder with files of these modes; names that end with a slash are folders."""
    top.mkdir()
    for name in files:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(name)
    for name, mode in files.items():
        (top / name).chmod(mode)
    return top


# ---- overlays --------------------------------------------------------------------------------------------------------

MIXED = {"a": 0o600, "b": 0o664, "c": 0o751, "d/": 0o700, "d/e": 0o444, "f": 0o000}


def test_bits_of_the_host_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    into = Tree()
    written = put(into, overlay=OverlaySpec(path=folder(tmp_path / "o", MIXED)))
    assert written == ["a", "b", "c", "d", "d/e", "f"]
    assert modes(into, *written) == ["0o600", "0o664", "0o751", "0o700", "0o444", "0o0"]
    assert {(into[path].uid, into[path].gid, into[path].mtime) for path in written} == {(0, 0, EPOCH)}
    assert not caplog.messages, "a folder that is in no work tree of git is nobody's clone"


def test_bits_that_git_keeps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    into = Tree()
    put(into, overlay=OverlaySpec(path=folder(tmp_path / "o", MIXED), modes="git"))
    assert modes(into, "a", "b", "c", "d", "d/e", "f") == ["0o644", "0o644", "0o755", "0o755", "0o644", "0o644"]
    assert not caplog.messages


def test_special_bits_are_named_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    top = folder(tmp_path / "o", {"a": 0o4755, "b": 0o2711, "c/": 0o2755, "d/": 0o1777, "e": 0o644})
    for kind in ("host", "git"):
        caplog.clear()
        into = Tree()
        add_overlay_folder(into, OverlaySpec.model_validate({"path": top, "modes": kind}), epoch=EPOCH)
        expected = ["0o755", "0o711" if kind == "host" else "0o755", "0o755", "0o777" if kind == "host" else "0o755"]
        assert modes(into, "a", "b", "c", "d") == expected
        assert caplog.messages == [
            f"{top}: set-user-id, set-group-id and sticky bits are not taken from overlays: "
            "a (4755), b (2711), c (2755) and 1 more"
        ]
        assert caplog.records[0].levelno == logging.WARNING


def test_folders_that_the_image_has_keep_their_attributes(tmp_path: Path) -> None:
    into = Tree()
    into.mkdir("tmp", mode=0o1777)
    into.mkdir("root", mode=0o700)
    put(into, overlay=OverlaySpec(path=folder(tmp_path / "o", {"tmp/": 0o755, "root/": 0o755})))
    assert modes(into, "tmp", "root") == ["0o1777", "0o700"]


def test_several_overlays_in_their_order(tmp_path: Path) -> None:
    first = folder(tmp_path / "1", {"a": 0o600, "b": 0o600})
    second = folder(tmp_path / "2", {"b": 0o755, "c": 0o640})
    into = Tree()
    written = put(into, overlays=(OverlaySpec(path=first), OverlaySpec(path=second, modes="git")))
    assert written == ["a", "b", "b", "c"]
    assert modes(into, "a", "b", "c") == ["0o600", "0o755", "0o644"]
    node = into["b"]
    assert isinstance(node, File)
    assert node.content == Slice(second / "b", 0, 1)


def clone(source: Path, target: Path, umask: int) -> Path:
    """Clone a repository with git under a umask, as another user of it does."""
    before = os.umask(umask)
    try:
        subprocess.run(["git", "clone", "-q", source, target], check=True, capture_output=True)
    finally:
        os.umask(before)
    return target


def repository(top: Path, files: dict[str, int]) -> Path:
    need("git", bool(shutil.which("git")))
    folder(top, files)
    git = ["git", "-C", str(top), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    return top


GIT_LOSES = "git does not keep these permission bits, so another clone may make another image: "
GIT_CURE = ' (write modes = "git" for this overlay, or state the modes in files)'


@pytest.mark.slow
def test_every_clone_makes_the_same_image_with_the_modes_of_git(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = repository(tmp_path / "source", {"o/a": 0o600, "o/b/c": 0o755})
    prints = {"git": set(), "host": set()}  # type: dict[str, set[str]]
    for umask in (0o022, 0o002, 0o077):
        place = clone(source, tmp_path / f"clone-{umask:o}", umask) / "o"
        for kind, found in prints.items():
            caplog.clear()
            into = Tree()
            add_overlay_folder(into, OverlaySpec.model_validate({"path": place, "modes": kind}), epoch=EPOCH)
            found.add(digest.fingerprint(digest.records(into)))
            said = {0o022: [], 0o002: ["a (0664), b (0775), b/c (0775)"], 0o077: ["a (0600), b (0700), b/c (0700)"]}
            expected = [f"{place}: {GIT_LOSES}{text}{GIT_CURE}" for text in said[umask] if kind == "host"]
            assert caplog.messages == expected
    assert (len(prints["git"]), len(prints["host"])) == (1, 3)


def test_a_secret_that_git_ignores_is_no_surprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its mode is nobody else's: what git does not track, a clone does not have."""
    source = repository(tmp_path / "source", {"o/a": 0o644})
    (source / "o/token").write_text("secret")
    (source / "o/token").chmod(0o600)
    into = Tree()
    put(into, overlay=OverlaySpec(path=source / "o"))
    assert modes(into, "a", "token") == ["0o644", "0o600"]
    assert not caplog.messages


def test_the_repositorys_own_overlay_does_not_depend_on_a_umask() -> None:
    assert [overlay.modes for overlay in load(ROOT / "recipes" / "alpine.py").overlay_folders] == ["git"]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_with_owners(tmp_path: Path) -> None:
    source = tmp_path / "tool"
    source.write_text("#!/bin/sh\n")
    source.chmod(0o4700)
    into = tree()
    stated = (
        FileSpec(path="/etc/app/a", content="a\n", owner="web", mode=0o600),
        FileSpec(path="/usr/bin/tool", source=source, owner=100, group="www-data"),
        FileSpec(path="/etc/b", content=b"\xff", owner=7, group=8, mode=0o777),
        FileSpec(path="/etc/c", content="", group="web"),
    )
    assert put(into, files=stated) == ["etc/app/a", "usr/bin/tool", "etc/b", "etc/c"]
    facts = {path: (oct(into[path].mode), into[path].uid, into[path].gid, into[path].mtime) for path in (
        "etc/app", "etc/app/a", "usr/bin", "usr/bin/tool", "etc/b", "etc/c")}  # fmt: skip
    assert facts == {
        "etc/app": ("0o755", 0, 0, EPOCH),
        "etc/app/a": ("0o600", 100, 101, EPOCH),
        "usr/bin": ("0o755", 0, 0, EPOCH),
        "usr/bin/tool": ("0o755", 100, 82, EPOCH),
        "etc/b": ("0o777", 7, 8, EPOCH),
        "etc/c": ("0o644", 0, 101, EPOCH),
    }
    assert (into.text("etc/app/a"), into.text("usr/bin/tool")) == ("a\n", "#!/bin/sh\n")
    assert (into.read("etc/b"), into.read("etc/c")) == (b"\xff", b"")


def test_files_come_after_overlays_and_follow_links_of_folders_only(tmp_path: Path) -> None:
    into = tree()
    into.mkdir("run")
    into.symlink("var/run", "/run")
    into.write("etc/precious", "kept")
    into.symlink("etc/link", "/etc/precious")
    overlay = OverlaySpec(path=folder(tmp_path / "o", {"etc/x": 0o644}))
    stated = tuple(FileSpec(path=path, content="new") for path in ("/var/run/a", "/etc/link", "/etc/x"))
    assert put(into, overlay=overlay, files=stated) == ["etc", "etc/x", "run/a", "etc/link", "etc/x"]
    assert (into.text("run/a"), into.text("etc/link"), into.text("etc/x")) == ("new", "new", "new")
    assert into.text("etc/precious") == "kept"


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"owner": "wbe"}, "owner: the image has no user wbe", "did you mean web?"),
        (
            {"owner": "postgres"},
            "owner: the image has no user postgres",
            "add the package that makes the user, or the account to users",
        ),
        ({"group": "www-dat"}, "group: the image has no group www-dat", "did you mean www-data?"),
        ({"owner": 5}, "no account has the number 5, so its group must be given", 'write "group": 5'),
    ],
)
def test_accounts_that_the_image_lacks(fields: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        put(tree(), files=(FileSpec(path="/etc/a", content="", **fields),))
    assert (caught.value.message, caught.value.hint) == (f"files: /etc/a: {message}", hint)


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    into = tree()
    into.mkdir("etc/folder")
    into.symlink("etc/one", "two")
    into.symlink("etc/two", "one")
    for path, reason in (
        ("/etc/folder", "is a directory in the image"),
        ("/etc/passwd/x", "cannot be made: etc/passwd: a directory cannot replace a file"),
        ("/etc/one/x", "cannot be made: etc/one: too many levels of symbolic links"),
    ):
        with pytest.raises(RecipeError) as caught:
            put(into, files=(FileSpec(path=path, content=""),))
        assert caught.value.message == f"files: {path}: {reason}"
    with pytest.raises(InputError, match=r"gone: cannot be read: No such file or directory"):
        put(into, files=(FileSpec(path="/etc/a", source=tmp_path / "gone"),))


def test_accounts_of_packages_and_of_the_recipe_in_a_whole_image() -> None:
    """A script of a package adds an account, and the recipe another one; the initramfs gets files of the recipe."""
    adds = built("a", scripts={"pre-install": "addgroup -S app; adduser -S -D -H -G app app"})
    stated = (
        FileSpec(path="/etc/app.conf", content="x", owner="app", mode=0o640),
        FileSpec(path="/home/agent/.profile", content="y", owner="agent", mode=0o600),
        FileSpec(path="/etc/mkinitfs/features.d/mine.files", content="/etc/mine\n"),
        FileSpec(path="/etc/mine", content="z"),
    )

    def composed_with(*files: FileSpec) -> Composition:
        return make(base(), adds, files=files, users=(user,), initramfs_features=("base", "mine"))

    user = UserSpec(name="agent", uid=1000, home="/home/agent", owns=("/home/agent",))
    tree = composed_with(*stated).tree
    numbers = accounts.lookup(tree)
    app = tree["etc/app.conf"]
    assert (app.mode, app.uid, app.gid) == (0o640, numbers.users["app"], numbers.groups["app"])
    assert 100 <= app.uid < 1000
    assert (tree["home/agent/.profile"].mode, tree["home/agent/.profile"].uid) == (0o600, 1000)
    members = {member.name: member.data for member in read_newc(gzip.decompress(tree.read("boot/initramfs-virt")))}
    assert members["etc/mine"] == b"z"
    other = composed_with(*stated[:-1], FileSpec(path="/etc/mine", content="other"))
    private = composed_with(*stated[:-1], FileSpec(path="/etc/mine", content="z", mode=0o600))
    prints = {digest.fingerprint(digest.records(one)) for one in (tree, other.tree, private.tree)}
    assert len(prints) == 3, "contents and modes decide the build id"


# ---- time zone -------------------------------------------------------------------------------------------------------


def zones() -> Tree:
    made = tree()
    for name in ("Europe/Berlin", "Europe/Bern", "America/Argentina/Ushuaia", "UTC", "posix/Europe/Berlin"):
        made.write(f"usr/share/zoneinfo/{name}", f"TZif2 {name}")
    made.write("usr/share/zoneinfo/zone.tab", "#")
    made.write("etc/localtime", "old")
    return made


def test_a_time_zone() -> None:
    into = zones()
    put(into, timezone="Europe/Berlin")
    assert into["etc/localtime"] == Symlink(target="/usr/share/zoneinfo/Europe/Berlin", mtime=EPOCH)
    assert into.text("etc/localtime") == "TZif2 Europe/Berlin"
    assert "etc/timezone" not in into


def test_a_base_that_keeps_the_name_gets_the_new_one() -> None:
    into = zones()
    into.write("etc/timezone", "Etc/UTC\n")
    put(into, timezone="America/Argentina/Ushuaia")
    assert into.text("etc/timezone") == "America/Argentina/Ushuaia\n"


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berlni", "did you mean Europe/Berlin or Europe/Bern?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("ushuaia", "did you mean America/Argentina/Ushuaia?"),
        ("Europe", "did you mean Europe/Bern or Europe/Berlin?"),
        ("zzz", "names are those of the tz database: Europe/Berlin, UTC"),
        ("zone.tab".replace(".", "-"), "names are those of the tz database: Europe/Berlin, UTC"),
    ],
)
def test_time_zones_that_do_not_exist(zone: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        put(zones(), timezone=zone)
    assert (caught.value.message, caught.value.hint) == (f"timezone: {zone}: no such time zone", hint)


def test_an_image_without_time_zones() -> None:
    with pytest.raises(RecipeError) as caught:
        put(tree(), timezone="UTC")
    assert caught.value.message == "timezone: UTC: the image has no time zones (/usr/share/zoneinfo)"
    assert caught.value.hint == "start from a base that has tzdata"


def test_a_zone_from_a_package_in_a_whole_image() -> None:
    tzdata = built("tzdata", file("usr/share/zoneinfo/Europe/Berlin", "TZif2"))
    composed = make(base(), tzdata, timezone="Europe/Berlin")
    link = composed.tree["etc/localtime"]
    assert isinstance(link, Symlink)
    assert link.target == "/usr/share/zoneinfo/Europe/Berlin"
    assert isinstance(composed.tree["usr/share/zoneinfo/Europe"], Directory)
