"""Images as skopeo, umoci, Podman and GNU tar see them, and as imgkit's own reader of images does."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from imgkit.oci.applying import tree_of
from imgkit.oci.archives import write_docker_archive, write_oci_archive
from imgkit.oci.compression import Algorithm, Compression
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import parse_config, parse_manifest
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image, write_layout_index
from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Symlink, Tree
from tests.conftest import need, need_program
from tests.ocitrees import AMD64, EPOCH, STEPS, lower_tree, play, remove, small_image, upper_tree, view, write_layers

NAME = "docker.io/library/linux:main"
_TIMEOUT = 120


def run(*words: object) -> bytes:
    """Run a program to its end and return its output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, timeout=_TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def skopeo(*words: object) -> bytes:
    return run(need_program("skopeo"), *words)


class Written:
    """A layout with an image of two layers, for one platform or two."""

    def __init__(
        self, folder: Path, architectures: Sequence[str] = ("amd64", "arm64"), algorithm: Algorithm = "gzip"
    ) -> None:
        self.folder = folder
        self.layout = OciLayout.create(folder / "image.oci")
        self.images = [
            small_image(self.layout, Platform("linux", name), Compression(algorithm)) for name in architectures
        ]
        self.top = write_layout_index(self.layout, self.images, name=NAME)

    @property
    def diff_ids(self) -> list[str]:
        manifest = parse_manifest(self.layout.read(self.images[0]), "")
        return parse_config(self.layout.read(manifest.config.value), "").rootfs.diff_ids


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


# ---- skopeo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
@pytest.mark.parametrize("reference", ["", ":main"])
def test_skopeo_finds_the_image_of_a_platform(written: Written, architecture: str, reference: str) -> None:
    source = f"oci:{written.layout.folder}{reference}"
    found = json.loads(skopeo("--override-arch", architecture, "inspect", source))
    assert (found["Digest"], found["Architecture"], found["Os"]) == (written.top.digest, architecture, "linux")
    assert found["Created"] == "2023-11-14T22:13:20Z"
    image = written.images[["amd64", "arm64"].index(architecture)]
    assert found["Layers"] == [layer.digest for layer in parse_manifest(written.layout.read(image), "").layers]


def test_skopeo_does_not_choose_from_several_images_of_a_layout(written: Written) -> None:
    """Otherwise an index of its own would not be needed (:func:`imgkit.oci.writing.write_layout_index`)."""
    written.layout.write_index(written.images)
    words = [need_program("skopeo"), "inspect", f"oci:{written.layout.folder}"]
    done = subprocess.run(words, capture_output=True, timeout=_TIMEOUT, check=False)
    assert b"more than one image in oci" in done.stderr


def test_skopeo_copies_every_digest(written: Written) -> None:
    target = written.folder / "copied"
    skopeo("copy", "--all", f"oci:{written.layout.folder}", f"dir:{target}")
    copied = {path.name: path.read_bytes() for path in target.iterdir() if path.name != "version"}
    assert hashlib.sha256(copied["manifest.json"]).hexdigest() == written.top.digest[7:]
    blobs = {path.name for path in written.layout.folder.glob("blobs/sha256/*")}
    assert blobs == {hashlib.sha256(data).hexdigest() for data in copied.values()}


def test_skopeo_makes_an_archive_for_docker_of_it(tmp_path: Path) -> None:
    """It inflates every layer and compares it with its diff id."""
    written = Written(tmp_path, ["amd64"])
    skopeo("copy", f"oci:{written.layout.folder}", f"docker-archive:{tmp_path / 'x.tar'}:{NAME}")
    members = run(need_program("tar"), "-tf", tmp_path / "x.tar").decode().split()
    assert [diff_id for diff_id in written.diff_ids if f"{diff_id[7:]}.tar" not in members] == []


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_skopeo_reads_archives(written: Written, kind: str) -> None:
    archive = written.folder / "x.tar"
    if kind == "oci-archive":
        write_oci_archive(written.layout, archive)
    else:
        write_docker_archive(written.layout, written.images[0], archive, name=NAME)
    skopeo("--override-arch", "amd64", "copy", f"{kind}:{archive}", f"oci:{written.folder / 'back'}")
    back = OciLayout.open(written.folder / "back")
    manifest = parse_manifest(back.read(back.index().manifests[0].value), "")
    assert parse_config(back.read(manifest.config.value), "").rootfs.diff_ids == written.diff_ids


# ---- Podman ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def podman() -> Iterator[Callable[..., bytes]]:
    """Yield a function that runs Podman with a store of its own."""
    program = need_program("podman")
    with tempfile.TemporaryDirectory(prefix="imgkit-", dir="/tmp") as folder:  # Podman allows it 50 characters
        store = ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        yield partial(run, program, *store)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_podman_loads_archives(tmp_path: Path, podman: Callable[..., bytes], kind: str, algorithm: Algorithm) -> None:
    """It inflates every layer and compares it with its diff id."""
    written, archive = Written(tmp_path, algorithm=algorithm), tmp_path / "x.tar"
    if kind == "oci":
        write_oci_archive(written.layout, archive)
    else:
        write_docker_archive(written.layout, written.images[0], archive, name=NAME)
    loaded = podman("load", "-q", "-i", archive).decode()
    image = json.loads(podman("image", "inspect", loaded.rpartition(": ")[2].strip()))[0]
    assert image["RootFS"]["Layers"] == written.diff_ids
    assert image["Config"]["Cmd"] == ["/bin/sh"]
    assert [entry["created_by"] for entry in image["History"]] == ["layer 1", "layer 2"]
    assert kind == "oci" or image["RepoTags"] == [NAME]


# ---- umoci -----------------------------------------------------------------------------------------------------------


def unpacked(layout: OciLayout, folder: Path) -> Path:
    """Unpack the only image of a layout by umoci; return the folder of its root filesystem."""
    need("root, for owners of files", os.geteuid() == 0)
    run(need_program("umoci"), "unpack", "--image", f"{layout.folder}:main", folder)
    return folder / "rootfs"


def on_disk(root: Path) -> dict[str, tuple[Node, frozenset[str]]]:
    """Return what can be seen of a folder, in the words of :func:`tests.ocitrees.view`."""
    nodes: dict[str, Node] = {}
    inodes: dict[int, set[str]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = "" if path == root else str(path.relative_to(root))
        nodes[name] = _node(path)
        if path.is_file() and not path.is_symlink():
            inodes.setdefault(path.lstat().st_ino, set()).add(name)
    others = {name: frozenset(names - {name}) for names in inodes.values() for name in names}
    return {name: (node, others.get(name, frozenset())) for name, node in nodes.items()}


def _node(path: Path) -> Node:
    status = path.lstat()
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("security.selinux")]
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    facts: dict[str, Any] = {
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": int(status.st_mtime),
        "xattrs": xattrs,
    }
    if path.is_symlink():
        return Symlink(target=str(path.readlink()), **facts)
    if path.is_dir():
        return Directory(**facts)
    if path.is_file():
        return File(content=Inline(path.read_bytes()), **facts)
    kind = {stat.S_IFIFO: "p", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}[stat.S_IFMT(status.st_mode)]
    return Device(kind=kind, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev), **facts)


def seen(tree: Tree) -> dict[str, tuple[Node, frozenset[str]]]:
    """Return what can be seen of a Tree; the root has the attributes that umoci gives it."""
    return view(tree) | {"": (Directory(), frozenset())}


def without_time_of_root(found: dict[str, tuple[Node, frozenset[str]]]) -> dict[str, tuple[Node, frozenset[str]]]:
    return found | {"": (replace(found[""][0], mtime=0), frozenset())}


def test_umoci_unpacks_the_same_tree(tmp_path: Path) -> None:
    written = Written(tmp_path, ["amd64"])
    found = on_disk(unpacked(written.layout, tmp_path / "bundle"))
    expected = seen(upper_tree())
    assert set(found) == set(expected)
    assert without_time_of_root(found) == expected


def test_umoci_applies_every_layer(tmp_path: Path) -> None:
    """A path is a file, a folder, a link, gone and a file again, in five layers."""
    trees = [lower_tree()]
    for step in range(4):
        tree = trees[-1].copy()
        remove(tree, "becomes-file")
        if step == 0:
            tree.write("becomes-file", "1")
        elif step == 1:
            tree.write("becomes-file/in/it", "2")
        elif step == 2:
            tree.symlink("becomes-file", "long")
        else:
            tree.write("becomes-file", "4", mode=0o4755)
            tree.add("bin/ninth", HardLink(target="bin/ping"))
        trees.append(tree)
    layout = OciLayout.create(tmp_path / "image.oci")
    layers = write_layers(LayerWriter(layout), *trees)
    image = write_image(layout, layers, ImageFacts(platform=AMD64, created=EPOCH))
    write_layout_index(layout, [image], name=NAME)
    assert without_time_of_root(on_disk(unpacked(layout, tmp_path / "bundle"))) == seen(trees[-1])


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(first=STEPS, second=STEPS)
def test_umoci_unpacks_generated_trees(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, str, Node]],
    second: list[tuple[str, str, Node]],
) -> None:
    folder = tmp_path_factory.mktemp("image")
    before = play(Tree(), _possible_here(first))
    before.write("etc/passwd", "root:x:0:0::/:\n")
    after = play(before.copy(), _possible_here(second))
    written = _image(folder, before, after)
    assert without_time_of_root(on_disk(unpacked(written[0], folder / "bundle"))) == seen(after)


def _possible_here(steps: list[tuple[str, str, Node]]) -> list[tuple[str, str, Node]]:
    """Return steps whose nodes umoci can unpack: no devices, no odd attributes, no huge numbers."""
    possible: list[tuple[str, str, Node]] = []
    for verb, path, node in steps:
        if isinstance(node, Device):
            continue
        kept = {name: value for name, value in node.xattrs.items() if name[:5] == "user." and value}
        kept = kept if isinstance(node, File | Directory) else {}
        changed = replace(node, xattrs=kept, uid=node.uid % 70000, gid=node.gid % 70000, mtime=node.mtime % (1 << 31))
        possible.append((verb, path.replace("\udcff", "raw"), changed))
    return possible


def _image(folder: Path, *trees: Tree) -> tuple[OciLayout, Descriptor]:
    layout = OciLayout.create(folder / "image.oci")
    layers = write_layers(LayerWriter(layout, threads=1), *trees)
    image = write_image(layout, layers, ImageFacts(platform=AMD64, created=EPOCH))
    write_layout_index(layout, [image], name=NAME)
    return layout, image


# ---- imgkit's own reader ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, STEPS, STEPS)
def test_what_is_written_is_the_root_filesystem_that_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, str, Node]],
    second: list[tuple[str, str, Node]],
    third: list[tuple[str, str, Node]],
) -> None:
    folder = tmp_path_factory.mktemp("image")
    trees = [play(Tree(), _without_devices(first))]
    trees.append(play(trees[0].copy(), _without_devices(second)))
    trees.append(play(Tree(), _without_devices(third)))
    layout, image = _image(folder, *trees)
    assert view(tree_of(layout, image, folder / "spool").tree) == view(trees[-1])


def _without_devices(steps: list[tuple[str, str, Node]]) -> list[tuple[str, str, Node]]:
    return [step for step in steps if not isinstance(step[2], Device)]
