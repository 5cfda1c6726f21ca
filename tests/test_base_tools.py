"""Images that other programs wrote: layers and whiteouts by umoci, zstd by skopeo; read here, unpacked by umoci."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgkit.oci import mediatypes
from imgkit.oci.applying import tree_of
from imgkit.oci.choosing import choose_image, layout_entries
from imgkit.oci.ocilayout import OciLayout
from imgkit.tree import Directory, File, HardLink, Node, Symlink, Tree
from tests.conftest import need_program
from tests.ociimages import AMD64

# path → type, mode, uid, modification time, and target, size or names of the same file
Found = dict[str, tuple[object, ...]]


class Umoci:
    """An image that is made by changing an unpacked bundle again and again."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("umoci changes owners")
        self.program = need_program("umoci")
        self.folder = folder
        self.rootfs = folder / "bundle/rootfs"
        self.run("init", "--layout", "image")
        self.run("new", "--image", "image:1")
        self.run("unpack", "--image", "image:1", "bundle")

    def run(self, *arguments: str) -> None:
        subprocess.run([self.program, *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60)

    def commit(self) -> None:
        """Write what has changed as a new layer."""
        self.run("repack", "--refresh-bundle", "--image", "image:1", "bundle")


@pytest.fixture
def umoci(tmp_path: Path) -> Umoci:
    made = Umoci(tmp_path)
    root = made.rootfs
    (root / "usr/lib/deep").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    for name in ("a", "b", "deep/c"):
        (root / "usr/lib" / name).write_text(name * 1000)
    os.link(root / "usr/lib/a", root / "hard")
    (root / "usr/lib/b").chmod(0o4711)
    os.chown(root / "usr/lib/deep", 1000, 1001)
    (root / "old").mkdir(mode=0o700)
    (root / "old/file").write_text("x")
    (root / "turns").write_text("x")
    made.commit()
    (root / "lib/new").write_text("through the link")
    (root / "hard").unlink()
    shutil.rmtree(root / "old")
    (root / "turns").unlink()
    (root / "turns").mkdir()
    (root / "turns/into a directory with spaces").write_text("y")
    made.commit()
    shutil.rmtree(root / "turns")
    (root / "turns").symlink_to("/nowhere")
    (root / "old").write_text("a file again")
    os.link(root / "usr/lib/deep/c", root / "late")
    (root / "é").write_text("names that are not ASCII, and long ones")
    (root / ("n" * 200)).write_text("z")
    made.commit()
    return made


def on_disk(root: Path) -> Found:
    found: Found = {}
    inodes: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        inodes.setdefault(status.st_ino, []).append(name)
        if path.is_symlink():
            found[name] = ("symbolic link", status.st_uid, status.st_gid, str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", status.st_mode & 0o7777, status.st_uid, status.st_gid)
        else:
            facts = (status.st_mode & 0o7777, status.st_uid, status.st_gid, int(status.st_mtime))
            found[name] = ("file", *facts, path.read_bytes(), inodes[status.st_ino])
    return found


def in_tree(tree: Tree) -> Found:
    found: Found = {}
    names: dict[str, list[str]] = {}
    for path, node in tree.items():
        first = node.target if isinstance(node, HardLink) else path
        names.setdefault(first, []).append(path)
        if path:
            found[path] = _facts(tree[first], names[first])
    return found


def _facts(node: Node, names: list[str]) -> tuple[object, ...]:
    if isinstance(node, Symlink):
        return ("symbolic link", node.uid, node.gid, node.target)
    if isinstance(node, Directory):
        return ("directory", node.mode, node.uid, node.gid)
    assert isinstance(node, File)
    return ("file", node.mode, node.uid, node.gid, node.mtime, node.content.read(), names)


def read(layout: OciLayout, spool: Path) -> Tree:
    spool.unlink(missing_ok=True)
    return tree_of(layout, choose_image(layout, layout_entries(layout), AMD64, "it"), spool).tree


def test_an_image_of_umoci(umoci: Umoci, tmp_path: Path) -> None:
    layout = OciLayout.open(tmp_path / "image")
    tree = read(layout, tmp_path / "spool")
    umoci.run("unpack", "--image", "image:1", "again")
    assert in_tree(tree) == on_disk(tmp_path / "again/rootfs")
    assert {*tree} - {""} == {*on_disk(umoci.rootfs)}, "umoci rounds the times of files, so these may differ"
    assert {"lib", "usr/lib/new", "late", "old", "turns"} <= set(tree)
    assert "hard" not in tree


def test_skopeo_compresses_it_anew(umoci: Umoci, tmp_path: Path) -> None:
    skopeo = need_program("skopeo")
    source, target = "oci:image:1", "oci:zstd:1"
    command = [skopeo, "--insecure-policy", "copy", "--dest-compress-format", "zstd", source, target]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    tree = read(OciLayout.open(tmp_path / "image"), tmp_path / "spool")
    layout = OciLayout.open(tmp_path / "zstd")
    entry = choose_image(layout, layout_entries(layout, "1"), AMD64, "it")
    root = tree_of(layout, entry, tmp_path / "other")
    assert {layer.media_type for layer in root.layers} == {mediatypes.LAYER_ZSTD}
    assert len(root.layers) == 3
    assert in_tree(root.tree) == in_tree(tree)
