"""``imgkit diff``: what differs between two images, whatever each side is, and nothing where nothing differs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.apkbuild import Entry
from fixtures.keys import Keys
from fixtures.server import Site
from imgkit.api import comparing
from imgkit.api.comparing import Comparison
from imgkit.cli.main import main
from imgkit.cli.reports import difftext
from imgkit.comparison import imagecontents, stated
from imgkit.comparison.differences import ChangedFact, ChangedFile, ChangedPackage, ListedState, compare
from imgkit.comparison.snapshot import PackageState, Snapshot
from imgkit.disk.grub import grub_cfg
from imgkit.engines.engineerrors import LimitError, UnreadableImageError
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import Limits
from imgkit.engines.reading import Archive
from imgkit.errors import InputError, UsageError
from imgkit.host import terminal
from imgkit.planning import lockfile
from imgkit.recipe import load
from imgkit.rootfs.digest import records
from imgkit.tree import Tree
from imgkit.verification import contents
from tests.commandline import ROOT, Place
from tests.mirrors import RECIPE, Small, package
from tests.test_faults import Builder
from tests.test_lockfile import plan_of

FOREVER = time.monotonic() + 1e6
DATABASE = """\
P:hello
V:1.0-r0
A:x86_64
S:1
I:1
C:Q1wfhYCRBDL4DP2XgUTCHhv7vhYUA=
F:usr/bin
R:hello
R:hi
F:bin
R:sh

"""


def snapshot(**values: Any) -> Snapshot:
    """Return a snapshot of little, with ``values``."""
    known: dict[str, Any] = {"source": Path("x"), "kind": "manifest", "arch": "amd64", "shape": "disk", "facts": {}}
    return Snapshot(**{"packages": {}, **known, **values})


def file(data: str = "", mode: str = "0644", **more: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(data.encode()).hexdigest()
    return {"type": "file", "mode": mode, "uid": 0, "gid": 0, "size": len(data), "sha256": sha256, **more}


def package_state(version: str, identity: str = "Q1a") -> PackageState:
    return PackageState(version, identity, "origin")


# ---- values ----------------------------------------------------------------------------------------------------------


def test_packages_by_the_order_of_versions() -> None:
    """1.10 is newer than 1.9, and a release is newer than its candidates."""
    before = {
        "gone": package_state("1"),
        "new-build": package_state("2-r0", "Q1x"),
        "same": package_state("3-r0"),
        "ten": package_state("1.9-r0"),
        "candidate": package_state("2.0-r0"),
        "unknown": package_state("1", ""),
    }
    after = {
        "came": package_state("1_rc1"),
        "new-build": package_state("2-r0", "Q1y"),
        "same": package_state("3-r0"),
        "ten": package_state("1.10-r0"),
        "candidate": package_state("2.0_rc1-r0"),
        "unknown": package_state("1"),
    }
    found = compare(snapshot(packages=before), snapshot(packages=after))
    assert found.packages_added == (ListedState("came", "1_rc1"),)
    assert found.packages_removed == (ListedState("gone", "1"),)
    assert found.packages_changed == (
        ChangedPackage("candidate", "2.0-r0", "2.0_rc1-r0", "down"),
        ChangedPackage("new-build", "2-r0", "2-r0", "rebuilt"),
        ChangedPackage("ten", "1.9-r0", "1.10-r0", "up"),
    )
    assert found.packages_same == 2
    assert not found.equal
    assert (found.files, found.files_same, found.before.files_size) == (None, 0, None)


@pytest.mark.parametrize(
    ("record", "aspects"),
    [
        (file("b"), ("content",)),
        (file("longer"), ("content",)),
        (file("a", "0600"), ("mode",)),
        (file("a", uid=7), ("owner",)),
        (file("a", gid=7, mode="0640"), ("mode", "owner")),
        (file("a", xattrs={"user.x": "00"}), ("attributes",)),
        (file("a", link="/b"), ("link",)),
        ({"type": "directory", "mode": "0755", "uid": 0, "gid": 0}, ("type",)),
        (file("a", later="unknown"), ()),
    ],
)
def test_what_differs_in_a_file(record: dict[str, Any], aspects: tuple[str, ...]) -> None:
    found = compare(snapshot(files={"/a": file("a")}), snapshot(files={"/a": record}, owners={"/a": "pkg"}))
    if not aspects:
        assert found.equal
        assert (found.files, found.files_same) == ((), 1)
        return
    (change,) = found.files or ()
    assert change == ChangedFile("/a", "changed", aspects, "pkg", 1, record.get("size", 0))
    assert (found.equal, found.files_same) == (False, 0)


def test_links_and_devices() -> None:
    link = {"type": "symbolic link", "mode": "0777", "uid": 0, "gid": 0, "target": "a"}
    device = {"type": "device", "mode": "0600", "uid": 0, "gid": 0, "device": "c 1:3"}
    before = snapshot(files={"/l": link, "/d": device, "/h": file("abc"), "/i": file("abc", link="/h")})
    after = snapshot(files={"/l": {**link, "target": "b"}, "/d": {**device, "device": "c 1:5"}, "/n": file("12345")})
    found = compare(before, after)
    assert [(change.path, change.change, change.aspects) for change in found.files or ()] == [
        ("/d", "changed", ("device",)),
        ("/h", "removed", ()),
        ("/i", "removed", ()),
        ("/l", "changed", ("target",)),
        ("/n", "added", ()),
    ]
    assert (found.before.files_size, found.after.files_size) == (3, 5), "a file with two names counts once"


def test_where_a_file_comes_from() -> None:
    known = snapshot(owners={"/usr/bin/a": "pkg"})
    paths = (
        "/usr/bin/a",
        "/opt/agent-runner",
        "/opt/agent-runner/x",
        "/opt/agent-runner-2",
        "/opt/agent/x",
        "/etc/motd",
    )
    assert [known.origin_of(path) for path in paths] == ["pkg", "payload", "payload", "setup", "payload", "setup"]
    assert [snapshot().origin_of(path) for path in ("/", *paths[:1])] == ["/", "/usr"]


def test_only_facts_that_both_know_are_compared_and_recipes_as_a_whole() -> None:
    before = snapshot(facts={"kernel": "1", "world": ["a"], "branch": "v3.23"})
    assert compare(before, snapshot(facts={"kernel": "2", "version": "3"})).facts == (ChangedFact("kernel", "1", "2"),)
    sized = snapshot(facts={"recipe.size": "4G", "recipe.old": 1})
    other = snapshot(facts={"recipe.size": "2G", "recipe.new": None})
    assert compare(sized, other).facts == (ChangedFact("recipe.old", 1, None), ChangedFact("recipe.size", "4G", "2G"))
    assert compare(sized, before).equal


RECORDS = st.dictionaries(
    st.sampled_from(["/a", "/b", "/c/d"]),
    st.builds(file, st.sampled_from(["", "x", "yy"]), st.sampled_from(["0644", "0600"])),
)
PACKAGES = st.dictionaries(
    st.sampled_from("abc"), st.builds(package_state, st.sampled_from(["1", "2"]), st.sampled_from(["Q1x", "Q1y"]))
)
SNAPSHOTS = st.builds(lambda files, packages: snapshot(files=files, packages=packages), RECORDS, PACKAGES)


@pytest.mark.slow
@given(SNAPSHOTS, SNAPSHOTS)
def test_differences_are_the_same_seen_from_the_other_side(one: Snapshot, other: Snapshot) -> None:
    there, back = compare(one, other), compare(other, one)
    assert compare(one, one).equal
    assert there.equal == back.equal == ((one.files, one.packages) == (other.files, other.packages))
    assert (there.packages_added, there.packages_removed) == (back.packages_removed, back.packages_added)
    turned = {"added": "removed", "removed": "added", "changed": "changed"}
    assert there.files is not None
    assert back.files is not None
    assert [(change.path, turned[change.change], change.aspects) for change in there.files] == [
        (change.path, change.change, change.aspects) for change in back.files
    ]
    assert there.files_same == back.files_same


# ---- disks -----------------------------------------------------------------------------------------------------------


def disk_tree(arguments: tuple[str, ...] = ("root=UUID=1", "quiet")) -> Tree:
    tree = Tree()
    tree.write("lib/apk/db/installed", DATABASE)
    tree.mkdir("usr/bin")
    tree.symlink("bin", "/usr/bin")
    for name in ("hello", "hi", "sh"):
        tree.write(f"usr/bin/{name}", name, mode=0o755)
    tree.write("boot/grub/grub.cfg", grub_cfg("uuid", arguments))
    tree.write("etc/imgkit-release", "IMGKIT_IMAGE=linux\nIMGKIT_ARCH=amd64\nIMGKIT_BUILD_ID=abc\n")
    tree.write("etc/alpine-release", "3.23.6\n")
    tree.write("etc/apk/world", "hello b\n")
    tree.mkdir("lib/modules/6.18-virt/kernel")
    tree.mkdir("lost+found", mode=0o700)
    return tree


class TarReader:
    """Reads a Tree as an appliance would read a disk."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        path = folder / "tar"
        with path.open("wb") as sink:
            tree.write_tar(sink)
        self._archive = Archive(path, 0, path.stat().st_size, complete=True, complaints="")
        self.opened = 0

    def archive(self, filesystem: str) -> Archive:
        assert filesystem == "root"
        return self._archive

    @contextmanager
    def open(self, image: Path, limits: Limits) -> Iterator[Any]:
        self.opened += 1
        yield self


def read_disk(tree: Tree, folder: Path, name: str = "x.raw") -> Snapshot:
    image = folder / name
    image.write_bytes(b"disk")
    return imagecontents.of_disk(image, ImageInfo("raw", 4096, 4), Limits(), TarReader(tree, folder).open)


def test_what_is_read_of_a_disk(tmp_path: Path) -> None:
    found = read_disk(disk_tree(), tmp_path)
    assert (found.kind, found.arch, found.shape, found.image_size) == ("disk image", "amd64", "disk", 4)
    assert found.facts == {
        "name": "linux",
        "buildId": "abc",
        "version": "3.23.6",
        "kernel": "6.18-virt",
        "kernelArguments": ["quiet"],
        "virtualSize": 4096,
        "world": ["b", "hello"],
    }
    assert found.packages == {"hello": PackageState("1.0-r0", "Q1wfhYCRBDL4DP2XgUTCHhv7vhYUA=", "")}
    assert found.files == {path: record for path, record in records(disk_tree()).items() if path != "/lost+found"}
    assert found.owners == {f"/usr/bin/{name}": "hello" for name in ("hello", "hi", "sh")}


def test_a_disk_of_which_nothing_is_known(tmp_path: Path) -> None:
    tree = Tree()
    tree.write("etc/motd", "hi")
    found = read_disk(tree, tmp_path)
    assert found.facts == {"virtualSize": 4096, "world": []}
    assert (found.packages, found.arch) == ({}, "")


def manifest_of(tree: Tree, data: bytes, **more: Any) -> dict[str, Any]:
    listed = {path: record for path, record in records(tree).items() if path != "/lost+found"}
    image = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "virtualSize": 4096}
    return {"manifest": 1, "arch": "amd64", "buildId": "abc", "image": image, "files": listed, **more}


def test_the_manifest_beside_a_disk_is_used_only_if_the_disk_is_as_it_was_built(tmp_path: Path) -> None:
    image, reader = tmp_path / "linux.qcow2", TarReader(disk_tree(), tmp_path)
    image.write_bytes(b"disk")
    beside = tmp_path / "linux.manifest.json"
    beside.write_text(json.dumps(manifest_of(disk_tree(), b"disk", kernel="of the manifest")))
    info = ImageInfo("qcow2", 4096, 4)
    found = imagecontents.of_disk(image, info, Limits(), reader.open)
    assert (found.kind, found.source, found.facts["kernel"], reader.opened) == (
        "disk image", image, "of the manifest", 0,
    )  # fmt: skip
    image.write_bytes(b"disK")
    assert imagecontents.of_disk(image, info, Limits(), reader.open).facts["kernel"] == "6.18-virt"
    image.write_bytes(b"disk")
    beside.write_text("{}")
    assert imagecontents.of_disk(image, info, Limits(), reader.open).facts["kernel"] == "6.18-virt"
    assert reader.opened == 2


def test_a_disk_equals_its_manifest_whatever_its_hard_links_are_called_first(tmp_path: Path) -> None:
    tree = disk_tree()
    tree.write("usr/bin/z", "linked")
    manifest = manifest_of(tree, b"disk")
    linked = {**manifest["files"]["/usr/bin/z"]}
    manifest["files"]["/usr/bin/a"] = {**linked, "link": "/usr/bin/z"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(manifest))
    other = stated.of_manifest(path).files
    assert other is not None
    assert other["/usr/bin/a"] == linked
    assert other["/usr/bin/z"] == {**linked, "link": "/usr/bin/a"}


def test_limits_of_what_is_read_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = disk_tree()
    count = len(tree)
    monkeypatch.setattr(contents, "_MOST_PATHS", count)
    monkeypatch.setattr(contents, "_MOST_KEPT", len(DATABASE) + 1000)
    read_disk(tree, tmp_path)
    monkeypatch.setattr(contents, "_MOST_PATHS", count - 1)
    with pytest.raises(LimitError, match=rf"^the image has more than {count - 1} files$"):
        read_disk(tree, tmp_path)
    monkeypatch.setattr(contents, "_MOST_PATHS", count)
    monkeypatch.setattr(contents, "_MOST_KEPT", 10)
    with pytest.raises(LimitError, match=r"^/boot/grub/grub.cfg: has [0-9]+ bytes, more than 10 bytes$"):
        read_disk(tree, tmp_path)


def test_a_damaged_archive_and_one_that_takes_too_long(tmp_path: Path) -> None:
    path = tmp_path / "tar"
    with path.open("wb") as sink:
        disk_tree().write_tar(sink)
    data = path.read_bytes()
    with pytest.raises(UnreadableImageError, match=r"^the archive of its files "):
        contents.read_archive([data[:1000]], FOREVER)
    with pytest.raises(LimitError, match="could not be compared in time"):
        contents.read_archive([data], time.monotonic() - 1)
    kept = contents.read_archive([data], FOREVER, ("/etc/alpine-release", "/etc/none")).kept
    assert kept == {"/etc/alpine-release": b"3.23.6\n"}


# ---- manifests and lock files ----------------------------------------------------------------------------------------


def test_a_manifest_of_an_earlier_version_has_no_recipe_and_no_owners(tmp_path: Path) -> None:
    path = tmp_path / "linux.manifest.json"
    listed = [{"name": "hello", "version": "1-r0", "identity": "Q1", "origin": "hi", "license": "MIT"}]
    path.write_text(json.dumps(manifest_of(disk_tree(), b"", packages=listed)))
    old = stated.of_manifest(path)
    assert (old.owners, old.packages) == (None, {"hello": PackageState("1-r0", "Q1", "hi")})
    listed[0]["paths"] = ["/usr/bin/hello"]  # type: ignore[assignment]
    more: dict[str, Any] = {
        "recipe": {"size": "4G"},
        "kernelArguments": ["root=UUID=1", "quiet"],
        "world": ["b", "a"],
    }
    path.write_text(json.dumps(manifest_of(disk_tree(), b"", packages=listed, **more)))
    new = stated.of_manifest(path)
    assert new.owners == {"/usr/bin/hello": "hello"}
    assert (new.facts["recipe.size"], new.facts["kernelArguments"], new.facts["world"]) == ("4G", ["quiet"], ["a", "b"])
    assert compare(old, new).facts == (ChangedFact("world", [], ["a", "b"]),)


def test_manifests_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for body, fault in (({}, "files: Field required"), ({"files": {}, "packages": [{"name": 1}]}, "packages.0.name")):
        path.write_text(json.dumps(body))
        with pytest.raises(InputError, match=fault):
            stated.of_manifest(path)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    recipe = load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/alpine/"})
    path = tmp_path / "core.lock"
    lockfile.write(path, recipe, [plan_of(recipe, arch) for arch in ("amd64", "arm64")])
    return path


def test_two_lock_files(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.lock"
    body = json.loads(lock.read_text())
    packages = body["architectures"]["amd64"]["install"]
    packages[0]["path"] = packages[0]["path"].replace("1.37-r0", "1.38-r0")
    packages[0]["record"] = [line.replace("1.37-r0", "1.38-r0") for line in packages[0]["record"]]
    other.write_text(json.dumps(body))
    assert main(["diff", str(lock), str(lock)]) == 0
    assert capsys.readouterr().out == "".join(
        f"{lock} (lock file, {arch}) → {lock} (lock file, {arch})\nno difference: 3 packages\n{end}"
        for arch, end in (("amd64", "\n"), ("arm64", ""))
    )
    assert main(["diff", str(lock), str(other), "--arch", "amd64"]) == 1
    assert capsys.readouterr().out == (
        f"{lock} (lock file, amd64) → {other} (lock file, amd64)\n\n"
        "packages: 1 up, 2 the same\n  up busybox 1.37-r0 → 1.38-r0\n"
    )
    assert main(["diff", str(lock), str(other), "--arch", "arm64"]) == 0
    capsys.readouterr()
    del body["architectures"]["arm64"]
    other.write_text(json.dumps(body))
    assert main(["diff", str(other), str(lock), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["equal"], printed["onlyBefore"], printed["onlyAfter"]) == (False, [], ["arm64"])
    (pair,) = printed["pairs"]
    changed = {"name": "busybox", "before": "1.38-r0", "after": "1.37-r0", "direction": "down"}
    assert (pair["packagesChanged"], pair["files"]) == ([changed], None)
    assert main(["diff", str(lock), str(other), "--arch", "arm64"]) == 2
    error = f"error: nothing to compare for arm64: {lock} has amd64, arm64, {other} has amd64\n"
    assert capsys.readouterr().err.startswith(error)


def test_a_lock_file_for_something_else(lock: Path) -> None:
    body = json.loads(lock.read_text())
    body["architectures"]["amd64/other"] = body["architectures"]["amd64"]
    lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match="the entry 'amd64/other' is for nothing that imgkit makes"):
        stated.of_lock(lock)


def test_what_belongs_together() -> None:
    disk, container = snapshot(), snapshot(shape="container")
    arm, arm_container = snapshot(arch="arm64"), snapshot(arch="arm64", shape="container")

    def paired(before: list[Snapshot], after: list[Snapshot]) -> list[tuple[Snapshot, Snapshot]]:
        return list(comparing._paired(before, after))

    assert paired([disk], [arm_container]) == [(disk, arm_container)], "who names two images wants them compared"
    assert paired([disk], [container, arm_container]) == [(disk, container)]
    assert paired([disk, arm], [container, disk]) == [(disk, disk)]
    assert paired([disk, container], [arm, container]) == [(container, container)]
    assert paired([disk, container], [container, arm]) == [(container, container)]
    assert paired([arm, container], [disk, arm_container]) == [(arm, arm_container), (container, disk)]
    assert paired([], []) == []


# ---- container images, and the command -------------------------------------------------------------------------------

TOOL = Entry(name="usr/bin/tool", data=b"tool", mode=0o755)


@pytest.fixture
def built(
    here: Place,
    small: Small,
    site: Site,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:
    """Return the folders of two builds, of which the second has an overlay, a package more and one that is newer."""
    build = Builder(here, small, site, capsys, monkeypatch)
    words = ("--output", "oci", "--output", "oci-archive")
    assert build(*words, recipe=RECIPE).status == 0
    old = here.out.rename(here.base / "old")
    more = [package("hello", "1.1-r0", key=keys.signing), package("tool", "2-r0", TOOL, key=keys.signing)]
    for apk in more:
        small.file(f"/v3.23/main/x86_64/{apk.filename}").write_bytes(apk.blob)
    small.index(apk.record for apk in more)
    (here.base / "overlay").mkdir()
    (here.base / "overlay" / "motd").write_text("hello\n")
    recipe = RECIPE + 'packages = ["hello", "tool"]\noverlay = "overlay"\ncontainer = {"user": "1000"}\n'
    ran = build(*words, recipe=recipe)
    assert ran.status == 0, ran.err
    return old, here.out


def diff(capsys: pytest.CaptureFixture[str], before: Path, after: Path, *words: str) -> tuple[int, str]:
    status = main(["diff", str(before), str(after), *words])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linux.oci", "linux.oci:latest", "linux.oci.tar", "linux-amd64.container.json"])
def test_two_container_images(built: tuple[Path, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = built
    status, out = diff(capsys, old / name, new / name)
    lines = out.splitlines()
    assert status == 1
    assert "packages: 1 added, 1 up, 0 the same" in lines
    assert lines[lines.index("  + tool 2-r0") + 1] == "  up hello 1.0-r0 → 1.1-r0"
    assert "  ~ /etc/imgkit-release: content" in lines
    assert "  + /motd" in lines
    assert lines.index("  + /motd") < lines.index("  + /usr/bin/tool"), "what no package explains comes first"
    if name.endswith(".json"):
        assert "  recipe.container  {" in out
    else:
        assert any(line.split() == ["user", "root", "→", "1000"] for line in lines)
    status, out = diff(capsys, new / name, new / name)
    assert (status, out.splitlines()[1]) == (0, "no difference: 2 packages and 20 files")


@pytest.mark.slow
def test_an_image_equals_its_manifest_and_its_archive(
    built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, new = built
    for name in ("linux.oci.tar", "linux-amd64.container.json"):
        assert diff(capsys, new / "linux.oci", new / name)[0] == 0
        assert diff(capsys, new / name, new / "linux.oci", "--arch", "amd64")[0] == 0


@pytest.mark.slow
def test_json_has_everything(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = built
    status, out = diff(capsys, old / "linux.oci", new / "linux-amd64.container.json", "--json")
    printed = json.loads(out)
    assert (status, printed["equal"]) == (1, False)
    (pair,) = printed["pairs"]
    assert (pair["before"]["kind"], pair["after"]["kind"]) == ("container image", "manifest")
    assert pair["before"]["imageSize"] > 0
    assert pair["after"]["source"] == str(new / "linux-amd64.container.json")
    assert pair["packagesAdded"] == [{"name": "tool", "version": "2-r0"}]
    tool = {"path": "/usr/bin/tool", "change": "added", "aspects": [], "origin": "tool", "before": 0, "after": 4}
    assert tool in pair["files"]
    assert {"path", "change", "aspects", "origin", "before", "after"} == set(pair["files"][0])


def test_sides_that_are_missing_or_nothing(tmp_path: Path, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, error in (("no.qcow2", "no such image"), ("no.json", "No such file"), ("no.lock", "No such file")):
        assert main(["diff", str(lock), str(tmp_path / name)]) == 4
        assert error in capsys.readouterr().err
    assert main(["diff", str(lock), str(tmp_path)]) == 4
    assert "not an OCI image layout" in capsys.readouterr().err


def test_a_disk_that_the_appliance_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two copies one has other kernel arguments and a file more."""
    other = disk_tree(("root=UUID=2", "quiet", "debug"))
    other.write("etc/motd", "x" * 2_000_000)
    trees = {"a.raw": disk_tree(), "b.raw": other}
    opened = []

    @contextmanager
    def open_image(image: Path, folder: Path, options: object, limits: Limits, *, info: ImageInfo) -> Iterator[Any]:
        opened.append((image.name, options, limits.size, limits.seconds, info.format))
        yield TarReader(trees[image.name], folder)

    monkeypatch.setattr(comparing, "open_image", open_image)
    monkeypatch.setattr(comparing, "appliance_options", lambda: "options")
    monkeypatch.setattr(comparing, "image_info", lambda image: ImageInfo("raw", 4096, 4))
    for name in trees:
        (tmp_path / name).write_bytes(b"disk")
    status, out = diff(capsys, tmp_path / "a.raw", tmp_path / "b.raw", "--limit", "1G", "--timeout", "7")
    assert status == 1
    assert out == (
        f"{tmp_path}/a.raw (disk image, amd64, 4 bytes) → {tmp_path}/b.raw (disk image, amd64, 4 bytes)\n\n"
        "  kernelArguments  +debug\n\n"
        "packages: 1 the same\n\n"
        "files: 1 added, 1 changed, 21 the same; +2.0 MB\n"
        "  setup  1 added, 1 changed, +2.0 MB\n"
        "  ~ /boot/grub/grub.cfg: content\n"
        "  + /etc/motd\n"
    )
    assert opened == [(name, "options", 1 << 30, 7.0, "raw") for name in ("a.raw", "b.raw")]
    assert diff(capsys, tmp_path / "a.raw", tmp_path / "a.raw")[0] == 0
    assert opened[-1][2:4] == (16 << 30, 900.0)


# ---- text ------------------------------------------------------------------------------------------------------------


def shown(before: Snapshot, after: Snapshot) -> list[str]:
    return difftext.text(Comparison((compare(before, after),), (), ())).splitlines()


def test_one_screen_however_much_differs() -> None:
    names = [f"p{number:04}" for number in range(400)]
    before = snapshot(
        files={f"/usr/{name}": file(name) for name in names},
        packages={name: package_state("1") for name in names},
        facts={f"recipe.{name}": 1 for name in names},
        owners={f"/usr/{name}": name for name in names},
    )
    after = replace(
        before,
        files={f"/usr/{name}": file(name * 2) for name in names},
        packages={name: package_state("2") for name in names},
        facts={f"recipe.{name}": 2 for name in names},
    )
    lines = shown(before, after)
    assert len(lines) == 1 + (1 + 12) + (2 + 15) + (2 + 8 + 10)
    assert [line for line in lines if "more" in line] == [
        "  … and 389 more; --json has all",
        "  … and 386 more; --json has all",
        "  … and 393 more; --json has all",
        "  … and 391 more; --json has all",
    ]


@pytest.mark.parametrize(("count", "last"), [(15, "  + p14 1"), (16, "  … and 2 more; --json has all")])
def test_the_last_line_says_how_many_are_left_out(count: int, last: str) -> None:
    packages = {f"p{number:02}": package_state("1") for number in range(count)}
    lines = shown(snapshot(), snapshot(packages=packages))
    assert (lines[-1], len(lines)) == (last, 18)


def test_facts_as_text() -> None:
    before = {"list": ["a", "b"], "order": ["a", "b"], "recipe.size": "4G", "virtualSize": 1 << 30, "world": None}
    after = {
        "list": ["b", "c"],
        "order": ["b", "a"],
        "recipe.size": "x" * 61,
        "virtualSize": None,
        "world": {"a": True},
    }
    lines = shown(snapshot(facts=before), snapshot(facts=after))
    assert lines[2:7] == [
        "  list         +c -a",
        "  order        in another order",
        "  recipe.size  4G → " + "x" * 59 + "…",
        "  virtualSize  1024 MiB → none",
        '  world        none → {"a": true}',
    ]
    assert lines[-1] == "packages: 0 the same"


def test_images_without_a_counterpart_as_text() -> None:
    pair = compare(snapshot(), snapshot())
    lines = difftext.text(Comparison((pair,), ("arm64",), ("a", "b"))).splitlines()
    assert lines[1:] == ["no difference: 0 packages", "", "only in the first: arm64", "", "only in the second: a, b"]
    assert not Comparison((pair,), (), ("a",)).equal
    assert not Comparison((pair,), ("a",), ()).equal
    assert Comparison((pair,), (), ()).equal


def test_what_an_image_says_of_itself_is_escaped() -> None:
    hostile = "\x1b[2Jnice\r\n"
    files = {f"/{hostile}": file()}
    packages = {hostile: package_state(hostile)}
    one = snapshot(files=files, packages=packages, facts={"kernel": hostile}, owners={f"/{hostile}": hostile})
    other = snapshot(files={}, packages={}, facts={"kernel": "x"})
    text = terminal.block(difftext.text(Comparison((compare(one, other),), (), ())))
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("nice") >= 4


def test_nothing_in_common(lock: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        comparing.diff(lock, lock, arch="riscv64")
